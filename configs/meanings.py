"""What each setting of a schema is, for people: name, type, default, one line of meaning, whether it counts.

    for setting in settings_of(ScrapeConfig):
        print(setting.name, setting.meaning)

A meaning has one home, the source of its dataclass: the comment beside or above the field, else what the
class docstring says after "`name`:", up to the end of the sentence. Nothing is repeated in metadata.

It imports no component: a schema is handed in.
"""

import ast
import dataclasses
import enum
import inspect
import io
import json
import re
import textwrap
import tokenize
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REQUIRED = "required"


@dataclass(frozen=True)
class Setting:
    """One setting as `name=value` names it; `section` is "" at the top. `name` of an entry of a list has
    `[]`. `changes_bytes`: semantic; else operational.
    """

    name: str
    section: str
    type: str
    default: str
    meaning: str
    changes_bytes: bool


def settings_of(schema: Any) -> list[Setting]:
    """Every setting of a dataclass, those of its sections after those of its own; "" for a lacking meaning.

    The mark of a section is not that of its settings: of several, such as those of a source, one counts.
    """
    return list(_settings(schema, ""))


def _settings(schema: Any, section: str) -> Iterator[Setting]:
    hints = typing.get_type_hints(schema)
    meanings = meanings_of(schema)
    deeper: list[tuple[Any, str]] = []
    for field in dataclasses.fields(schema):
        name = f"{section}.{field.name}" if section else field.name
        counts = not field.metadata.get("operational")
        inner, is_list = _section_of(hints[field.name])
        if inner:
            deeper.append((inner, f"{name}[]" if is_list else name))
        if not inner or is_list:
            kind = "list of sections" if inner else type_text(hints[field.name])
            yield Setting(name, section, kind, default_text(field), meanings[field.name], counts)
    for inner, name in deeper:
        yield from _settings(inner, name)


def _section_of(annotation: Any) -> tuple[Any, bool]:
    """The dataclass that a setting is, or that each entry of its list is, and which of the two."""
    if dataclasses.is_dataclass(annotation):
        return annotation, False
    arguments = [inner for inner in typing.get_args(annotation) if dataclasses.is_dataclass(inner)]
    return (arguments[0], typing.get_origin(annotation) is list) if arguments else (None, False)


def type_text(annotation: Any) -> str:
    """As people read it.

    >>> type_text(float | None), type_text(list[int]), type_text(typing.Literal["a", "b"])
    ('float or null', 'list of int', 'a or b')
    """
    arguments = typing.get_args(annotation)
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return " or ".join(map(str, arguments))
    if origin in (list, tuple, set):
        return f"list of {type_text(arguments[0])}"
    if origin is dict:
        return "section of any names"
    if arguments:
        return " or ".join(map(type_text, arguments))
    if annotation is type(None):
        return "null"
    return "text" if annotation in (str, Path) else str(getattr(annotation, "__name__", annotation))


def default_text(field: Any) -> str:
    """What a setting is where nobody gives it, as it would be typed."""
    default = field.default
    if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    if default is dataclasses.MISSING:
        return REQUIRED
    plain = default.value if isinstance(default, enum.Enum) else default
    # no spaces: a shell takes a list as one word
    text = json.dumps(plain, ensure_ascii=False, default=str, separators=(",", ":"))
    return text[1:-1] if isinstance(plain, str) and plain else text


def meanings_of(schema: type) -> dict[str, str]:
    """Name -> meaning of a dataclass's own fields; "" where its source says nothing."""
    source = textwrap.dedent(inspect.getsource(schema))
    node = ast.parse(source).body[0]
    assert isinstance(node, ast.ClassDef)
    comments = _comments(source)
    lines = source.splitlines()
    docstring = " ".join((ast.get_docstring(node) or "").split())
    meanings: dict[str, str] = {}
    for field in node.body:
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            name = field.target.id
            beside = [comments[line] for line in _lines_of(field) if line in comments]
            above = _above(field.lineno, lines)
            meanings[name] = " ".join(beside or above) or _in_docstring(name, docstring)
    return {field.name: meanings.get(field.name, "") for field in dataclasses.fields(schema)}


def _lines_of(node: ast.AnnAssign) -> range:
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)


def _comments(source: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {
        token.start[0]: _words(token.string)
        for token in tokens
        if token.type == tokenize.COMMENT and _words(token.string)
    }


def _above(line: int, lines: Sequence[str]) -> list[str]:
    """The comment that ends just above a line; headings ("--- … ---") are of no setting."""
    found: list[str] = []
    for text in reversed(lines[: line - 1]):
        if not text.strip().startswith("#") or text.strip().startswith("# ---"):
            break
        found.insert(0, _words(text))
    return found


def _words(comment: str) -> str:
    """A comment without its mark and without what it says to a checker."""
    text = comment.strip().lstrip("#").strip()
    return "" if text.startswith(("type:", "noqa")) else text


def _in_docstring(name: str, docstring: str) -> str:
    """What follows "`name`:" or "`name`, `other`:", up to the sentence's end.

    >>> _in_docstring("b", "Two. `a`, `b`: both must be near, as in x.y. `c`: another.")
    'both must be near, as in x.y'
    """
    found = re.search(rf"`{name}`(?:,? (?:and )?`\w+`)*: (.+?)(?=[.;] [`A-Z]|\.$|$)", docstring)
    return found[1] if found else ""
