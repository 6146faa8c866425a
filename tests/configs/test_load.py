"""A config is a checked dataclass, and every mistake in it is one line that names the setting, the value and
the fix.
"""

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.load import (
    UserError,
    describe_difference,
    load_config,
    operational,
    semantic_dict,
    semantic_hash,
    to_dict,
)


@dataclass
class Clip:
    duration_s: float = 10.24
    mode: Literal["keyframe", "grid"] = "keyframe"


@dataclass
class Source:
    kind: str
    path: str


@dataclass
class Network:
    timeout_s: float = operational(30.0)
    allow_private: list[str] = field(default_factory=list)


@dataclass
class Settings:
    output: str
    source: Source
    workers: int = operational(2)
    count: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    clip: Clip = field(default_factory=Clip)
    network: Network = field(default_factory=Network)
    proof: Clip | None = None
    retries: Network = operational(Network)

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(f"workers = {self.workers} is negative; use 0 or more")


REQUIRED = ["output=out/x", "source.kind=folder", "source.path=/data"]


def load(*args: str) -> Settings:
    return load_config(Settings, [*REQUIRED, *args])


def refusal(*args: str) -> str:
    with pytest.raises(UserError) as caught:
        load(*args)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_file_is_overridden_by_words_and_both_by_nothing(tmp_path: Path) -> None:
    path = tmp_path / "preset.yaml"
    path.write_text("clip: {duration_s: 2, mode: grid}\nworkers: 5\n")
    config = load(str(path), "workers=7", "network.allow_private=[127.0.0.1:8000,localhost:30]")
    assert (config.clip.duration_s, config.clip.mode, config.workers, config.count) == (2.0, "grid", 7, None)
    assert config.network.allow_private == ["127.0.0.1:8000", "localhost:30"]
    assert isinstance(config.clip, Clip) and isinstance(config.clip.duration_s, float)


@pytest.mark.parametrize("text", ["123", "yes", "1e3", "a=b", "a: b", "s3://bucket/x", "[x]"])
def test_text_settings_are_taken_letter_by_letter(text: str) -> None:
    assert load(f"output={text}").output == text


def test_free_dictionaries_optional_numbers_and_optional_sections() -> None:
    config = load("extra.a.b=3", "count=4", "proof.mode=grid")
    assert config.extra == {"a": {"b": 3}} and config.count == 4
    assert config.proof == Clip(mode="grid")
    assert load("count=4", "count=null").count is None


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["clip.duraton_s=3"], ["clip.duraton_s", 'did you mean "clip.duration_s"']),
        (["workrs=3"], ['did you mean "workers"']),
        (["zzz=3"], ["zzz", "output, source, workers"]),
        (["clip.duration_s=abc"], ["clip.duration_s", '"abc"', "float"]),
        (["workers=2.5"], ["workers", "2.5", "int"]),
        (["network.allow_private=3"], ["network.allow_private", "3", "list[str]"]),
        (["clip.mode=fast"], ["clip.mode", "fast", "keyframe, grid"]),
        (["clip=3"], ["clip = 3", "section"]),
        (["clip.mode.x=3"], ["clip.mode"]),
        (["workers=-1"], ["workers = -1", "use 0 or more"]),
        (["network.allow_private=[a"], ["network.allow_private=[a", "quote"]),
        (["=3"], ["=3", "name=value"]),
        (["nowhere.yaml"], ["no such config file", "nowhere.yaml"]),
        (["a.yaml", "b.yaml"], ["more than one", "a.yaml, b.yaml"]),
    ],
)
def test_a_mistake_is_one_line_naming_value_and_fix(args: list[str], words: list[str]) -> None:
    text = refusal(*args)
    assert [word for word in words if word not in text] == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("clip: {duration_s: [", ["not valid YAML"]),
        ("- a\n- b\n", ["must hold settings"]),
        ("clip:\n  duraton_s: 3\n", ["clip.duraton_s", "preset.yaml", "clip.duration_s"]),
        ("workers: many\n", ["workers", '"many"', "int", "preset.yaml"]),
    ],
)
def test_a_mistake_in_a_file_names_the_file(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "preset.yaml"
    path.write_text(text)
    message = refusal(str(path))
    assert [word for word in [*words, str(path)] if word not in message] == []


def test_a_misspelt_file_is_found_and_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "demo.yaml").write_text("workers: 3\n")
    assert 'demo.yaml"?' in refusal(str(tmp_path / "dmo.yaml"))
    assert "cannot read" in refusal(str(tmp_path))


def test_all_missing_settings_are_named() -> None:
    with pytest.raises(UserError, match="output, source.kind, source.path"):
        load_config(Settings, [])
    with pytest.raises(UserError, match="missing setting: source.path;"):
        load_config(Settings, REQUIRED[:2])


def test_operational_settings_do_not_move_the_hash_and_semantic_ones_do() -> None:
    def digest(*args: str) -> str:
        return semantic_hash(semantic_dict(load(*args)))

    assert digest() == digest("workers=9", "network.timeout_s=1", "retries.timeout_s=3")
    assert (
        len(
            {
                digest(),
                digest("clip.duration_s=2"),
                digest("network.allow_private=[a:1]"),
                digest("proof.mode=grid"),
            }
        )
        == 4
    )
    assert "workers" not in semantic_dict(load()) and to_dict(load())["workers"] == 2


@given(
    st.dictionaries(
        st.text(max_size=5), st.one_of(st.integers(), st.text(max_size=5), st.booleans()), max_size=6
    )
)
def test_the_hash_is_of_the_content_not_of_the_order(tree: dict[str, Any]) -> None:
    assert semantic_hash(tree) == semantic_hash(dict(reversed(tree.items())))
    assert describe_difference(tree, dict(tree)) == ""
    assert semantic_hash(tree) != semantic_hash({**tree, "another": 1})


def test_a_difference_names_setting_and_both_values() -> None:
    old, new = to_dict(load("clip.duration_s=1.6")), to_dict(load("clip.duration_s=2", "count=3"))
    assert (
        describe_difference(old, new)
        == "clip.duration_s: 1.6 (existing) -> 2.0 (yours); count: null (existing) -> 3 (yours)"
    )
    assert describe_difference({}, {"a": {"b": 1}}) == "a.b: absent (existing) -> 1 (yours)"


APP = """
import typer
from configs.load import UserError, run_app

app = typer.Typer()

class FromRay(UserError):  # Ray raises such a class: its text is a traceback, the real error is its cause
    cause = UserError("deep 'x'")

@app.command()
def work(args: list[str], as_json: bool = typer.Option(False, "--json")) -> None:
    actions = {"user": lambda: UserError("no 'x';\\n use y"), "ray": lambda: FromRay("Traceback\\n ..."),
               "bad": lambda: typer.BadParameter("no 'z'"), "exit": lambda: typer.Exit(5), "defect": lambda: KeyError("k")}
    if args[0] in actions:
        raise actions[args[0]]()
    print("done", args, as_json)

@app.command()
def rest() -> None:
    pass

run_app(app)
"""


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        ("work user", 2, "error: no 'x'; use y"),
        ("work ray", 2, "error: deep 'x'"),
        ("work bad", 2, "error: Invalid value: no 'z' "),
        ("work", 2, "error: Missing argument"),
        ("wrk a", 2, "error: No such command 'wrk'"),
        ("work a --jsn", 2, "error: No such option: --jsn"),
        ("", 2, "error: Missing command."),
    ],
)
def test_every_mistake_on_the_command_line_is_one_line_and_exit_code_2(
    tmp_path: Path, words: str, code: int, line: str
) -> None:
    done = run_words(tmp_path, words)
    assert done.returncode == code and done.stdout == ""
    assert done.stderr.startswith(line) and done.stderr.count("\n") == 1


def test_other_endings_keep_their_meaning(tmp_path: Path) -> None:
    good, code, defect = (run_words(tmp_path, f"work {word}") for word in ("a b=c --json", "exit", "defect"))
    assert (good.returncode, good.stdout) == (0, "done ['a', 'b=c'] True\n")
    assert code.returncode == 5
    assert defect.returncode == 1 and "Traceback" in defect.stderr and "KeyError" in defect.stderr


def run_words(folder: Path, words: str) -> subprocess.CompletedProcess[str]:
    (folder / "app.py").write_text(APP)
    root = Path(__file__).parents[2]
    command = [sys.executable, str(folder / "app.py"), *words.split()]
    return subprocess.run(
        command, env={"PYTHONPATH": str(root), "COLUMNS": "80"}, capture_output=True, text=True, timeout=60
    )
