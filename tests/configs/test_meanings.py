"""A setting's meaning is read from its own comment, else from the docstring; its type and default as typed."""

import doctest
from dataclasses import dataclass, field
from typing import Literal

from configs import meanings
from configs.load import operational
from configs.meanings import Setting, settings_of


@dataclass
class Inner:
    """What is inside. `far`: how far it goes; more is more. `wide`, `deep`: of the whole thing."""

    far: float = 1.5
    wide: int = 2
    deep: int = 3
    said: str = ""  # beside, not from `said`: here


@dataclass
class Outer:
    # --- A heading is of no setting ---------------------
    path: str
    # above,
    # on two lines
    names: list[str] = operational(["a", "b"])
    mode: Literal["x", "y"] = "x"  # noqa: E501
    inner: Inner = field(default_factory=Inner)
    several: list[Inner] = field(default_factory=list)  # any number
    maybe: float | None = None


def by_name() -> dict[str, Setting]:
    return {setting.name: setting for setting in settings_of(Outer)}


def test_the_comment_comes_first_then_the_docstring() -> None:
    assert {name: setting.meaning for name, setting in by_name().items()} == {
        "path": "",
        "names": "above, on two lines",
        "mode": "",
        "several": "any number",
        "maybe": "",
        "inner.far": "how far it goes; more is more",
        "inner.wide": "of the whole thing",
        "inner.deep": "of the whole thing",
        "inner.said": "beside, not from `said`: here",
        "several[].far": "how far it goes; more is more",
        "several[].wide": "of the whole thing",
        "several[].deep": "of the whole thing",
        "several[].said": "beside, not from `said`: here",
    }


def test_type_default_section_and_mark() -> None:
    found = by_name()
    assert found["path"] == Setting("path", "", "text", "required", "", True)
    assert found["names"] == Setting("names", "", "list of text", '["a","b"]', "above, on two lines", False)
    assert (found["mode"].type, found["mode"].default) == ("x or y", "x")
    assert (found["maybe"].type, found["maybe"].default) == ("float or null", "null")
    assert (found["inner.said"].section, found["inner.said"].default) == ("inner", '""')
    assert found["several"].type == "list of sections"


def test_its_examples_are_true() -> None:
    assert doctest.testmod(meanings).failed == 0
