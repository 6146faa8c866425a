"""The plan of the house, enforced: which room may import what, and the budgets that keep files readable.

Every rule is a function from a tree of sources ({path: text}) to complaints; the repository must have none,
and each rule is shown to see the breach it exists for on a small synthetic tree.
"""

import ast
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("configs", "cluster", "ingest", "training")  # imports point left only
BRIDGES = {
    "configs.environment",
    "configs.load",
    "configs.verb",
    "configs.completion",
    "configs.terminal",
    "cluster.chain",  # what comes next, said by the verbs of every room
    "cluster.storage",
    "cluster.dataset",
    "cluster.files",
    "cluster.learnt",
    "cluster.objects",
    "cluster.pool",
    "cluster.progress",
    "cluster.rebind",
    "cluster.runs",
    "cluster.worklist",
    "cluster.shards",
    "cluster.jsonl",
    "cluster.scratch",
    "cluster.units",
    "cluster.record",
    "cluster.seals",  # one hash over itself: of a dataset's objects, and of the report of a take-down
    "ingest.pages.card",  # how sources are credited, in the card of a model as of a dataset
    "ingest.licenses",  # what weights may be used for, as what clips may
    "ingest.pages.spectrogram",  # one picture of sounds: the report's, and of what a model made
    "ingest.photos",  # which files are photos, for stills and generate
    "ingest.pixels",  # one way for pictures: ingest, training and the exported pipeline
    "ingest.sample",
    "ingest.scenes",
}
MODELS = {"torch", "diffusers", "transformers", "deepspeed", "accelerate", "safetensors"}
SOUND = {"soundfile", "av", "ffmpeg", "imageio_ffmpeg", "yt_dlp", "scipy", "librosa", "torchaudio"}
FORBIDDEN = {
    "configs": MODELS | SOUND | {"ray"},
    "cluster": MODELS | SOUND,
    "ingest": MODELS,
    "training": {"yt_dlp", "ffmpeg", "av"},
}
BROAD_EXCEPT_ALLOWED = {"cluster/pool.py"}  # the unit border
LONG_FUNCTION_ALLOWED = {"training/run/loop.py"}  # the training loop reads top to bottom
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}
TESTED_ELSEWHERE: dict[str, str] = {
    "cluster/__main__.py": "a table of commands; tests/whole types them",
    "cluster/demo.py": "`make demo` in CI is its test",
    "ingest/__main__.py": "a table of commands; tests/whole types them",
    "ingest/rows.py": "names and types of columns alone; the tests of their readers see them",
}
"""Modules without a test file of their name, and why."""
MAX_FUNCTION_LINES = 60
COMPUTED = (ast.Call, ast.BinOp, ast.IfExp, ast.ListComp, ast.DictComp, ast.SetComp)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
SHIPPED = ("training/pipeline/", "training/networks/")
SHIPPABLE = ("training.pipeline", "training.networks", "ingest.pixels")
MAX_FILE_LINES = 500

parse = cache(ast.parse)  # a dozen rules read each file
Tree = dict[str, str]
Rule = Callable[[Tree], list[str]]


def house() -> Tree:
    """The git-tracked Python files of this checkout, by path."""
    listed = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    return {path: (ROOT / path).read_text() for path in listed if (ROOT / path).exists()}


def module_name(path: str) -> str:
    parts = PurePosixPath(path).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(path: str) -> str | None:
    first = path.split("/")[0]
    return first if first in ROOMS and "/" in path else None


def imports(text: str, modules: set[str]) -> Iterator[tuple[int, str]]:
    """(line, module) of every import, also inside functions; `from a import b` is a.b where that is a module."""
    for node in ast.walk(parse(text)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from ((node.lineno, name if name in modules else str(node.module)) for name in names)


def room_imports(tree: Tree) -> Iterator[tuple[str, str, int, str]]:
    """(path, its room, line, imported module) over all rooms."""
    modules = {module_name(path) for path in tree}
    for path, text in tree.items():
        room = room_of(path)
        if room:
            yield from ((path, room, line, target) for line, target in imports(text, modules))


def check_direction(tree: Tree) -> list[str]:
    found = []
    for path, room, line, target in room_imports(tree):
        other = target.split(".")[0]
        outside = other == "tests" or (other in ROOMS and ROOMS.index(other) > ROOMS.index(room))
        if outside:
            found.append(
                f"{path}:{line} imports {target}: imports point to {' <- '.join(ROOMS)} leftwards only"
            )
    return found


def check_bridges(tree: Tree) -> list[str]:
    found = []
    bridges = ", ".join(sorted(BRIDGES))
    for path, room, line, target in room_imports(tree):
        other = target.split(".")[0]
        if other in ROOMS and other != room and target not in BRIDGES:
            found.append(f"{path}:{line} imports {target}, which is not a bridge: {bridges}")
    return found


def check_forbidden_packages(tree: Tree) -> list[str]:
    return [
        f"{path}:{line} imports {target}: not in {room}/"
        for path, room, line, target in room_imports(tree)
        if target.split(".")[0] in FORBIDDEN[room]
    ]


def check_commands(tree: Tree) -> list[str]:
    """A command never imports a command: nothing imports a __main__, and `python -m` of another room is text."""
    return [
        f"{path}:{line} imports the command {target}"
        for path, _, line, target in room_imports(tree)
        if "__main__" in target.split(".")
    ]


def check_cycles(tree: Tree) -> list[str]:
    modules = {module_name(path) for path in tree}
    graph: dict[str, set[str]] = {name: set() for name in modules}
    for path, _, _, target in room_imports(tree):
        if target in modules:
            graph[module_name(path)].add(target)
    done: set[str] = set()
    found: list[str] = []

    def visit(name: str, trail: list[str]) -> None:
        if name in trail:
            found.append("import cycle: " + " -> ".join([*trail[trail.index(name) :], name]))
        elif name not in done:
            for target in sorted(graph[name]):
                visit(target, [*trail, name])
            done.add(name)

    for name in sorted(graph):
        visit(name, [])
    return found


def check_relative_imports(tree: Tree) -> list[str]:
    nodes = ((path, node) for path, text in tree.items() for node in ast.walk(parse(text)))
    return [
        f"{path}:{node.lineno} has a relative import"
        for path, node in nodes
        if isinstance(node, ast.ImportFrom) and node.level
    ]


def check_empty_init(tree: Tree) -> list[str]:
    return [f"{path} is not empty" for path, text in tree.items() if path.endswith("__init__.py") and text]


def functions(text: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (
        node for node in ast.walk(parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


def check_function_length(tree: Tree) -> list[str]:
    found = []
    for path, text in tree.items():
        for node in functions(text):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION_LINES and path not in LONG_FUNCTION_ALLOWED:
                found.append(
                    f"{path}:{node.lineno} {node.name} has {lines} lines, more than {MAX_FUNCTION_LINES}"
                )
    return found


def check_file_length(tree: Tree) -> list[str]:
    long = {path: text.count("\n") for path, text in tree.items() if text.count("\n") > MAX_FILE_LINES}
    return [f"{path} has {lines} lines, more than {MAX_FILE_LINES}" for path, lines in long.items()]


def check_file_names(tree: Tree) -> list[str]:
    return [
        f"{path}: name it after what it is"
        for path in tree
        if FORBIDDEN_NAMES & set(PurePosixPath(path).with_suffix("").parts)
    ]


def check_broad_except(tree: Tree) -> list[str]:
    found = []
    for path, text in tree.items():
        for node in ast.walk(parse(text)):
            if (
                isinstance(node, ast.ExceptHandler)
                and path not in BROAD_EXCEPT_ALLOWED
                and is_broad(node.type)
            ):
                found.append(f"{path}:{node.lineno} has a broad except: only the unit border may")
    return found


def is_broad(caught: ast.expr | None) -> bool:
    names = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    return any(
        name is None or (isinstance(name, ast.Name) and name.id in ("Exception", "BaseException"))
        for name in names
    )


def check_notes(tree: Tree) -> list[str]:
    marks = ("TO" + "DO", "FIX" + "ME", "XX" + "X:")
    lines = (
        (path, number, line)
        for path, text in tree.items()
        for number, line in enumerate(text.splitlines(), 1)
    )
    return [
        f"{path}:{number} leaves a note instead of the work"
        for path, number, line in lines
        if any(mark in line for mark in marks)
    ]


def check_module_docstrings(tree: Tree) -> list[str]:
    return [
        f"{path} does not say what it is"
        for path, text in tree.items()
        if text.strip() and not ast.get_docstring(parse(text))
    ]


def check_typed_signatures(tree: Tree) -> list[str]:
    found = []
    for path, text in tree.items():
        if not room_of(path):
            continue
        for owner, node in public_functions(parse(text)):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            untyped = [
                a.arg for a in arguments if a.annotation is None and not (owner and a.arg in ("self", "cls"))
            ]
            if untyped or (node.returns is None and node.name != "__init__"):
                found.append(
                    f"{path}:{node.lineno} {node.name}: no type for {', '.join(untyped) or 'what it returns'}"
                )
    return found


def check_tuple_packs(tree: Tree) -> list[str]:
    """One thought a line: `a, b = f(x), g(y)` is two, each with a computed side."""
    found = []
    for path, text in tree.items():
        for node in ast.walk(parse(text)) if room_of(path) else ():
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple):
                sides = node.value.elts if isinstance(node.value, ast.Tuple) else []
                if sum(isinstance(side, COMPUTED) for side in sides) > 1:
                    found.append(f"{path}:{node.lineno} assigns several computed values in one line")
    return found


def check_nested_comprehensions(tree: Tree) -> list[str]:
    """A comprehension within a comprehension is a loop that wants a name."""
    found = []
    for path, text in tree.items():
        for node in ast.walk(parse(text)) if room_of(path) else ():
            inner = (child for child in ast.walk(node) if child is not node)
            if isinstance(node, COMPREHENSIONS) and any(isinstance(child, COMPREHENSIONS) for child in inner):
                found.append(f"{path}:{node.lineno} has a comprehension within a comprehension")
    return found


def check_shipped(tree: Tree) -> list[str]:
    """What ships with a model, and the networks, import nothing of ours but each other and ingest.pixels."""
    return [
        f"{path}:{line} imports {target}: it ships, so only training.pipeline, networks and ingest.pixels"
        for path, room, line, target in room_imports(tree)
        if path.startswith(SHIPPED) and target.split(".")[0] in ROOMS and not target.startswith(SHIPPABLE)
    ]


def check_tests(tree: Tree) -> list[str]:
    """Each module has a test file of its name in the folder that mirrors its own, or a reason for none."""
    return [
        f"{path} has no {_test_of(path)}.py and no reason for none"
        for path in tree
        if room_of(path)
        and not path.endswith("__init__.py")
        and path not in TESTED_ELSEWHERE
        # a long one is split by subject: test_web_refusals.py belongs to web.py
        and not any(
            other == f"{_test_of(path)}.py" or other.startswith(f"{_test_of(path)}_") for other in tree
        )
    ]


def _test_of(path: str) -> str:
    """tests/ingest/fetch/test_web of ingest/fetch/web.py."""
    module = PurePosixPath(path)
    return f"tests/{module.parent}/test_{module.stem.strip('_')}"


def public_functions(module: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    for node in module.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield "", node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            methods = (inner for inner in node.body if isinstance(inner, ast.FunctionDef))
            yield from (
                (node.name, method)
                for method in methods
                if not method.name.startswith("_") or method.name == "__init__"
            )


def check_map(tree: Tree, page: str) -> list[str]:
    """docs/map.md draws the rooms as a tree: every file of them stands there, with a phrase."""
    phrases = mapped_files(page)
    files = [path for path in tree if room_of(path) and not path.endswith("__init__.py")]
    lacking = [f"docs/map.md lacks {path}" for path in files if not phrases.get(path)]
    gone = [f"docs/map.md names {path}, which does not exist" for path in phrases if path not in tree]
    return lacking + gone


def mapped_files(page: str) -> dict[str, str]:
    """{path: phrase} of the Python files in the page's drawing; a folder ends in a slash, two spaces are a level."""
    phrases: dict[str, str] = {}
    folders: list[str] = []
    for line in page.partition("```")[2].partition("```")[0].strip().splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name, _, phrase = line.strip().partition(" ")
        del folders[depth:]
        if name.endswith("/"):
            folders.append(name)
        elif name.endswith(".py"):
            phrases["".join(folders) + name] = phrase.strip()
    return phrases


RULES: list[Rule] = [
    check_direction,
    check_bridges,
    check_forbidden_packages,
    check_commands,
    check_cycles,
    check_relative_imports,
    check_empty_init,
    check_function_length,
    check_file_length,
    check_file_names,
    check_broad_except,
    check_notes,
    check_module_docstrings,
    check_typed_signatures,
    check_tuple_packs,
    check_nested_comprehensions,
    check_shipped,
    check_tests,
]

LONG_BODY = "def f() -> None:\n" + "    a = 1\n" * 60
BREACHES: list[tuple[Rule, Tree]] = [
    (check_direction, {"cluster/a.py": "import ingest.sample"}),
    (check_direction, {"ingest/a.py": "def f():\n    from training.pipeline.mel import mel"}),
    (check_direction, {"configs/a.py": "from cluster import storage", "cluster/storage.py": ""}),
    (check_direction, {"ingest/a.py": "from tests.world import site"}),
    (check_bridges, {"training/a.py": "from ingest.clip.clipper import Clipper"}),
    (check_bridges, {"training/a.py": "from ingest import clip", "ingest/clip/clipper.py": ""}),
    (check_bridges, {"ingest/a.py": "import cluster"}),
    (check_forbidden_packages, {"ingest/a.py": "import torch.nn"}),
    (check_forbidden_packages, {"ingest/a.py": "def f():\n    from transformers import CLIPModel"}),
    (check_forbidden_packages, {"cluster/a.py": "import soundfile"}),
    (check_forbidden_packages, {"training/a.py": "if x:\n    import yt_dlp"}),
    (check_commands, {"ingest/a.py": "from ingest.__main__ import app"}),
    (check_cycles, {"ingest/a.py": "import ingest.b", "ingest/b.py": "def f():\n    from ingest import a"}),
    (
        check_cycles,
        {
            "ingest/a.py": "import ingest.b",
            "ingest/b.py": "import ingest.c",
            "ingest/c.py": "import ingest.a",
        },
    ),
    (check_relative_imports, {"ingest/a.py": "from . import b"}),
    (check_relative_imports, {"ingest/a.py": "from .b import c"}),
    (check_empty_init, {"ingest/__init__.py": "\n"}),
    (check_function_length, {"ingest/a.py": LONG_BODY}),
    (check_function_length, {"tests/test_a.py": "async " + LONG_BODY}),
    (check_file_length, {"ingest/a.py": "a = 1\n" * 501}),
    (check_file_names, {"ingest/utils.py": ""}),
    (check_file_names, {"training/helpers/mel.py": ""}),
    (check_broad_except, {"ingest/a.py": "try:\n    f()\nexcept Exception:\n    pass"}),
    (check_broad_except, {"ingest/a.py": "try:\n    f()\nexcept:\n    pass"}),
    (check_broad_except, {"ingest/a.py": "try:\n    f()\nexcept (OSError, BaseException):\n    pass"}),
    (check_notes, {"ingest/a.py": "# TO" + "DO later"}),
    (check_notes, {"ingest/a.py": "a = 1  # FIX" + "ME"}),
    (check_module_docstrings, {"ingest/a.py": "import os"}),
    (check_typed_signatures, {"ingest/a.py": "def f(a, b: int) -> None: ..."}),
    (check_typed_signatures, {"ingest/a.py": "def f(a: int): ..."}),
    (check_tuple_packs, {"ingest/a.py": "a, b = f(1), g(2)"}),
    (
        check_tuple_packs,
        {"ingest/a.py": "self.a, self.b = x + 1, y or [z for z in x] and (1 if a else 2), f()"},
    ),
    (check_nested_comprehensions, {"ingest/a.py": "a = [b for b in (c for c in d)]"}),
    (check_nested_comprehensions, {"ingest/a.py": "a = {b: [c for c in b] for b in d}"}),
    (check_shipped, {"training/pipeline/a.py": "from training.recipes.clips import decode_wav"}),
    (check_shipped, {"training/networks/a.py": "from configs.load import UserError"}),
    (check_tests, {"ingest/a.py": ""}),
    (
        check_tests,
        {"ingest/fetch/a.py": "", "tests/ingest/test_a.py": "", "tests/ingest/fetch/test_ab.py": ""},
    ),
    (check_typed_signatures, {"ingest/a.py": "class A:\n    def f(self, *, b) -> None: ..."}),
]
CLEAN: Tree = {
    "configs/load.py": '"""Loads."""\nimport yaml\n',
    "cluster/units.py": '"""Tells."""\nfrom cluster.pool import f\n',
    "cluster/pool.py": '"""Runs."""\nfrom configs.load import load\ntry:\n    import ray\nexcept Exception:\n    pass\n',
    "ingest/a.py": '"""Cuts."""\nfrom cluster import units\nimport ingest.b\ndef cut(a: int) -> int:\n    def inner(b): ...\n',
    "ingest/b.py": '"""Holds."""\nclass A:\n    def f(self, b: int) -> "A":\n        return self\n',
    "ingest/__init__.py": "",
    "training/run/loop.py": '"""Trains."""\nimport torch\nfrom ingest.sample import Item\n' + LONG_BODY,
    "tests/test_a.py": '"""Tests."""\nimport torch\nfrom ingest.b import A\nfrom training import loop\ndef test_x(a):\n    pass\n',
    "tests/configs/test_load.py": "",
    "tests/cluster/test_units.py": "",
    "tests/cluster/test_pool.py": "",
    "tests/ingest/test_a.py": "",
    "tests/ingest/test_b_limits.py": "",
    "tests/training/run/test_loop.py": "",
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps_the_rule(rule: Rule) -> None:
    assert rule(house()) == []


@pytest.mark.parametrize(("rule", "tree"), BREACHES)
def test_the_rule_sees_a_breach(rule: Rule, tree: Tree) -> None:
    assert len(rule(tree)) == 1


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_rule_lets_good_code_pass(rule: Rule) -> None:
    assert rule(CLEAN) == []


def test_every_rule_is_shown_a_breach() -> None:
    assert {rule.__name__ for rule, _ in BREACHES} == {rule.__name__ for rule in RULES}


def test_the_map_names_every_file() -> None:
    assert check_map(house(), (ROOT / "docs/map.md").read_text()) == []


def test_the_map_check_sees_what_is_missing_and_what_is_gone() -> None:
    paths = ("ingest/clip/clipper.py", "ingest/fetch/web.py", "ingest/__init__.py", "tests/test_a.py")
    tree = dict.fromkeys(paths, "")
    page = (
        "```\ningest/  all\n  clip/  cuts\n    clipper.py  cuts\n  fetch/\n    web.py\n    hops.py  asks\n```"
    )
    assert check_map(tree, page) == [
        "docs/map.md lacks ingest/fetch/web.py",
        "docs/map.md names ingest/fetch/hops.py, which does not exist",
    ]
