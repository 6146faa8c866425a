"""The examples in docstrings are true: doctests give what they say, and what a module's example calls exists.

Two kinds: `>>>` examples are run; the indented examples at the top of a module, which need a dataset or run,
are parsed, and every function and class that they call must be one of ours, imported or defined there.
"""

import ast
import builtins
import contextlib
import doctest
import importlib
import textwrap
from collections.abc import Iterator
from types import ModuleType

import pytest

from tests.test_architecture import ROOMS, house, module_name

MODULES = sorted(
    module_name(path)
    for path in house()
    if path.split("/")[0] in ROOMS and not path.endswith("__main__.py") and not path.endswith("__init__.py")
)


def example_lines(docstring: str) -> Iterator[ast.Module]:
    """The lines of the indented blocks that are Python, each parsed by itself; prose and drawings are not."""
    for line in docstring.splitlines()[1:]:
        if line.startswith("    ") and not line.strip().startswith(">>>"):
            code = textwrap.dedent(line).rstrip().removesuffix("…")
            for whole in (code, f"{code}\n    pass"):  # the head of a block needs a body
                with contextlib.suppress(SyntaxError):
                    yield ast.parse(whole)
                    break


def names_bound(tree: ast.AST) -> set[str]:
    """What a line of an example defines: assigned, imported or looped over."""
    stored = {
        node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    aliases = [alias for statement in imports for alias in statement.names]
    return stored | {alias.asname or alias.name.split(".")[0] for alias in aliases}


def names_of_ours() -> set[str]:
    """The public functions and classes of all rooms."""
    trees = [ast.parse(text) for path, text in house().items() if path.split("/")[0] in ROOMS]
    kinds = (ast.FunctionDef, ast.ClassDef)
    return {node.name for tree in trees for node in tree.body if isinstance(node, kinds)}


OURS = names_of_ours() | {"Path"}


def missing_names(module: ModuleType, docstring: str) -> list[str]:
    """What the docstring's example calls by a bare name and that exists nowhere."""
    lines = list(example_lines(docstring))
    bound = set(dir(builtins)) | set(dir(module)) | OURS
    bound |= {name for line in lines for name in names_bound(line)}
    calls = [node.func for line in lines for node in ast.walk(line) if isinstance(node, ast.Call)]
    return [call.id for call in calls if isinstance(call, ast.Name) and call.id not in bound]


@pytest.mark.parametrize("name", MODULES)
def test_examples_are_true(name: str) -> None:
    module = importlib.import_module(name)
    assert doctest.testmod(module).failed == 0
    assert missing_names(module, module.__doc__ or "") == []


def test_an_example_that_calls_what_is_gone_is_seen() -> None:
    docstring = "Cuts.\n\n    clips = cut_up(media)\n    with slicer(media) as one:\n        one.clip()\n"
    assert missing_names(ModuleType("cuts"), docstring) == ["cut_up", "slicer"]
