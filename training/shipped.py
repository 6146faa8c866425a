"""What ships beside the weights: the text of pipeline.py, and the packages that it needs.

text = shipped_source()          # the pipeline's module after those of ours that it imports
requirements(text)               # requirements.txt, in the versions of this environment
"""

import ast
from importlib.metadata import packages_distributions, version
from pathlib import Path

ROOT = Path(__file__).parent.parent
PIPELINE = "training/pipeline/pipeline.py"


def shipped_source() -> str:
    """The text of the exported pipeline.py: `shipped_files` in a row, without their imports of each other."""
    return "\n".join(_without_our_imports((ROOT / path).read_text()) for path in shipped_files()) + "\n"


def shipped_files() -> list[str]:
    """The pipeline's file after those of ours that it needs, each after what it needs itself."""
    files: list[str] = []

    def add(path: str) -> None:
        for statement in _our_imports((ROOT / path).read_text()):
            add(f"{str(statement.module).replace('.', '/')}.py")
        if path not in files:
            files.append(path)

    add(PIPELINE)
    return files


def _our_imports(text: str) -> list[ast.ImportFrom]:
    """Those of a module's top level; ours are always written `from … import …`."""
    imports = [node for node in ast.parse(text).body if isinstance(node, ast.ImportFrom)]
    return [node for node in imports if str(node.module).split(".")[0] in ("ingest", "training")]


def _without_our_imports(text: str) -> str:
    """By statement and not by line: an import that is wrapped over several lines goes as one."""
    lines = text.splitlines()
    for statement in reversed(_our_imports(text)):  # from the end: deleting moves the lines that follow
        del lines[statement.lineno - 1 : statement.end_lineno]
    return "\n".join(lines)


def requirements(text: str, *more: str) -> str:
    """A line per package that a program of this text imports, in the version that is installed here.

    `more`: modules that its models import besides.
    """
    names = set(more)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).split(".")[0])
    distributions = packages_distributions()
    needed = sorted({distributions[name][0] for name in names if name in distributions})
    # without what says of which build it is: torch 2.11.0+cpu is 2.11.0 for others
    return "".join(f"{name}=={version(name).partition('+')[0]}\n" for name in needed)
