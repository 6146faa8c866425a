"""From settings (a YAML preset, `a.b=c` arguments) to a checked dataclass; from a mistake to one clear line.

Each component keeps a small dataclass beside its code. `load_config(Schema, args)` fills it and refuses
unknown keys with "did you mean", wrong types with key, value and expected type, and missing required
settings. Fields made with `operational` never change bytes: they are left out of `semantic_dict`, and so of
the hash that guards a dataset. `run_app` runs a typer app and turns `UserError` and usage errors into one
line `error: …` on stderr and exit code 2.

It does not know any component, print anything else, or read the environment.
"""

import copy
import dataclasses
import enum
import hashlib
import json
import os
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import typer
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs.environment import CHECKOUT, set_defaults
from configs.hints import near, preset_hint
from configs.terminal import printable

T = TypeVar("T")
# settings as plain JSON data, name -> value or section; which names there are is each schema's matter
SettingsTree = dict[str, Any]

# typer carries its own copy of click and exports only some of its exceptions
ClickException: type[Any] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


class UserError(ValueError):
    """A user's mistake; its text is one line naming the value and the fix.

    Raise it before any work starts.
    """


class StoppedError(RuntimeError):
    """A run that ended before its work was done: its text is one line that says why.

    The same command resumes.
    """


def operational(default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field for a setting that does not change bytes (workers, retries, rates).

    A class is used as default factory.
    """
    metadata = {"operational": True}
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=metadata)
    if isinstance(default, (list, dict, set)) or dataclasses.is_dataclass(default):
        return dataclasses.field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def positive(config: Any, *names: str, section: str = "") -> None:
    """`UserError` for the first setting that is not above 0. `section`: a prefix such as "clip."."""
    for name in names:
        value = getattr(config, name)
        # not `value <= 0`: NaN is refused, too
        if not value > 0:
            raise UserError(f"{section}{name}={value}: give a positive number")


def at_least(config: Any, least: float, *names: str, section: str = "", meaning: str = "") -> None:
    """`UserError` for the first setting below `least`. `meaning`: what `least` does, such as "off"."""
    bound = f"{least:g} ({meaning})" if meaning else f"{least:g}"
    for name in names:
        value = getattr(config, name)
        if not value >= least:
            raise UserError(f"{section}{name}={value}: give {bound} or more")


def load_config(schema: type[T], args: Sequence[str]) -> T:
    """The dataclass `schema`, filled from at most one YAML path (without `=`) and any number of `a.b=c`.

    Later overrides win over earlier ones and over the file. Raises `UserError` for every mistake, also for a
    `ValueError` raised by a `__post_init__` of the schema.
    """
    paths = [arg for arg in args if "=" not in arg]
    if len(paths) > 1:
        names = ", ".join(paths)
        raise UserError(f"more than one config file given: {names}; give one, and settings as name=value")
    config = OmegaConf.structured(schema)
    if paths:
        _merge(config, schema, read_yaml(paths[0], schema.__module__.partition(".")[0]), paths[0])
    for arg in args:
        if "=" in arg:
            _merge(config, schema, _read_override(schema, arg), arg)
    return _instantiate(config, schema)


def as_arguments(schema: type, settings: Mapping[str, Any]) -> list[str]:
    """Settings as they are typed: sections, given as dicts, by dotted names; all but text as JSON.

    `{"clip": {"duration_s": 2.0}, "output": "clips"}` -> `["clip.duration_s=2.0", "output=clips"]`.
    """
    return [
        f"{'.'.join(names)}={value if isinstance(value, str) else json.dumps(value, default=str)}"
        for names, value in _typed(schema, settings, ())
    ]


def _typed(
    schema: type, settings: Mapping[str, Any], above: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in settings.items():
        names = (*above, name)
        if isinstance(value, Mapping) and _section(_annotation(schema, names)):
            yield from _typed(schema, value, names)
        else:
            # a path is text, also where it is a Path
            yield names, str(value) if isinstance(value, Path) else value


def unresolved(schema: type, args: Sequence[str]) -> str:
    """The settings as they were given, file and overrides in one YAML: no defaults, `${…}` not looked up.

    Nothing from the environment is in it, and no password of a URL.
    """
    paths = [find_config(arg) for arg in args if "=" not in arg]
    presets = [OmegaConf.load(path) for path in paths if os.path.exists(path)]
    overrides = [_read_override(schema, arg) for arg in args if "=" in arg]
    settings = OmegaConf.merge({}, *presets, *overrides)
    return hide_passwords(OmegaConf.to_yaml(settings, resolve=False))


def hide_passwords(text: str) -> str:
    """The text with the password of every `scheme://user:password@host` replaced by stars.

    >>> hide_passwords("proxy: http://me:secret@host:3128")
    'proxy: http://me:***@host:3128'
    """
    return re.sub(r"(://[^\s/@:]*):[^\s/@]+@", r"\1:***@", text)


def to_dict(config: Any) -> SettingsTree:
    """The whole dataclass as plain JSON data (paths and enums become strings, tuples lists)."""
    return {field.name: _plain(getattr(config, field.name), False) for field in dataclasses.fields(config)}


def semantic_dict(config: Any) -> SettingsTree:
    """`to_dict` without the fields made by `operational`, at every depth: what decides the bytes."""
    return cast(SettingsTree, _plain(config, True))


def semantic_hash(d: SettingsTree) -> str:
    """sha256 hex of the canonical JSON of `d`: sorted keys, no spaces, no NaN, which JSON does not have."""
    text = json.dumps(d, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def describe_difference(old: SettingsTree, new: SettingsTree) -> str:
    """What differs, in one line such as "clip.duration_s: 1.6 (existing) -> 2.0 (yours)"; or ""."""
    before = dict(_leaves(old))
    after = dict(_leaves(new))
    changes = []
    for key in sorted(before.keys() | after.keys()):
        was = _show(before[key]) if key in before else "absent"
        now = _show(after[key]) if key in after else "absent"
        if was != now:
            changes.append(f"{key}: {was} (existing) -> {now} (yours)")
    return "; ".join(changes)


def run_app(app: typer.Typer) -> None:
    """Runs a command line and exits: 2 for a user's mistake, 1 for a run that had to stop, 130 for Ctrl-C.

    Each is one line on stderr; a defect keeps its traceback.
    """
    set_defaults()
    try:
        code = typer.main.get_command(app)(standalone_mode=False)
    except UserError as error:
        # Ray raises a subclass whose text is a traceback; the real one is in .cause
        _refuse(str(getattr(error, "cause", error)))
    except StoppedError as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)
        sys.exit(1)
    except ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message(), file=sys.stderr)
            sys.exit(2)
        _refuse(f"{error.format_message()} (--help shows what there is)")
    except (typer.Abort, KeyboardInterrupt):
        print("stopped", file=sys.stderr)
        sys.exit(130)
    else:
        sys.exit(code if isinstance(code, int) else 0)


def _refuse(message: str) -> typing.NoReturn:
    print(f"error: {_one_line(message)}", file=sys.stderr)
    sys.exit(2)


def _one_line(message: object) -> str:
    return " ".join(printable(str(message)).split())


def find_config(path: str) -> str:
    """Where a config file is: as given, else below the checkout, whatever folder a command is typed in."""
    return path if os.path.exists(path) or not (CHECKOUT / path).is_file() else str(CHECKOUT / path)


def read_yaml(path: str, room: str) -> SettingsTree:
    """The settings of a file; `room`: whose presets a mistake may mean. `UserError` where it is none."""
    path = find_config(path)
    if not os.path.exists(path):
        hint = preset_hint(path, room)
        raise UserError(f"no such config file: {path}{hint} (settings are given as name=value)")
    try:
        tree = OmegaConf.load(path)
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {_one_line(error)}") from error
    except (OSError, UnicodeDecodeError) as error:
        problem = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read config file {path}: {problem}") from error
    if not isinstance(tree, DictConfig):
        raise UserError(f"{path} must hold settings (name: value), not a list or a single value")
    return cast(SettingsTree, OmegaConf.to_container(tree))


def _read_override(schema: type, arg: str) -> SettingsTree:
    """`a.b=c` as {"a": {"b": c}}; text settings are taken literally, everything else is read as YAML."""
    key, text = arg.split("=", 1)
    names = key.split(".")
    if not all(names):
        raise UserError(f'"{arg}" has no setting name: write name=value or section.name=value')
    # null empties a text setting, too; every other text stands for itself, such as 007 or "yes"
    is_literal = _field_type(schema, names) is str and text != "null"
    return _nested(names, text if is_literal else _read_value(arg, text))


def _read_value(arg: str, text: str) -> Any:
    try:
        tree = OmegaConf.from_dotlist([f"value={text}"])
        return OmegaConf.to_container(tree)["value"]  # type: ignore[call-overload,index]
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        fix = "quote it, or write lists as [a,b]"
        raise UserError(f'the value of "{arg}" cannot be read: {_one_line(error)}; {fix}') from error


def _nested(names: Sequence[str], value: Any) -> SettingsTree:
    """{"a": {"b": value}} for the names a, b."""
    tree = value
    for name in reversed(names):
        tree = {name: tree}
    return cast(SettingsTree, tree)


def _merge(config: DictConfig, schema: type, tree: SettingsTree, origin: str) -> None:
    """Merge leaf by leaf, so that every refusal can name its own key and value."""
    _refuse_unknown(schema, tree, "", origin)
    for names, value in _assignments(schema, tree, ()):
        try:
            config.merge_with(_nested(names, value))
        except (OmegaConfBaseException, ValueError, TypeError) as error:
            expected = _type_name(_annotation(schema, names))
            raise UserError(f"{'.'.join(names)} = {_show(value)} is not {expected} (in {origin})") from error


def _assignments(
    schema: Any, tree: SettingsTree, above: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in tree.items():
        inner = _section(_hints(schema)[str(key)])
        if inner and isinstance(value, dict) and value:
            yield from _assignments(inner, value, (*above, str(key)))
        else:
            yield (*above, str(key)), value


def _refuse_unknown(schema: Any, tree: SettingsTree, prefix: str, origin: str) -> None:
    hints = _hints(schema)
    for key, value in tree.items():
        if key not in hints:
            full_name = f"{prefix}{key}"
            hint = near(full_name, [prefix + name for name in hints])
            hint = hint or f"; known here: {', '.join(hints)}"
            # an override names itself; of a file, the user needs its name
            where = "" if origin.split("=")[0] == full_name else f" in {origin}"
            raise UserError(f'unknown setting "{full_name}"{where}{hint}')
        inner = _section(hints[key])
        if inner and isinstance(value, dict):
            _refuse_unknown(inner, value, f"{prefix}{key}.", origin)


def _instantiate(config: DictConfig, schema: type[T]) -> T:
    try:
        missing: list[str] = []
        for name in sorted(OmegaConf.missing_keys(config)):
            missing += _required(schema, name)
        if missing:
            plural = "s" if len(missing) > 1 else ""
            names = ", ".join(missing)
            raise UserError(f"missing setting{plural}: {names}; add {missing[0]}=… to the command")
        return cast(T, OmegaConf.to_object(config))
    except UserError:
        raise
    except (OmegaConfBaseException, ValueError) as error:
        raise UserError(_one_line(error) or type(error).__name__) from error


def _required(schema: type, name: str) -> list[str]:
    """A missing setting, or, where a whole section is missing, the settings in it that have no default."""
    section = _section(_annotation(schema, name.split(".")))
    if section is None:
        return [name]
    required: list[str] = []
    for field in dataclasses.fields(section):
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            required += _required(schema, f"{name}.{field.name}")
    return required or [name]


def _hints(schema: Any) -> dict[str, object]:
    hints = typing.get_type_hints(schema)
    return {field.name: hints[field.name] for field in dataclasses.fields(schema)}


def _without_none(annotation: Any) -> Any:
    """`X | None` -> X; any other annotation as it is."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        inner = [argument for argument in typing.get_args(annotation) if argument is not type(None)]
        return inner[0] if len(inner) == 1 else annotation
    return annotation


def _section(annotation: Any) -> Any:
    """The dataclass behind an annotation, or None."""
    inner = _without_none(annotation)
    return inner if dataclasses.is_dataclass(inner) else None


def _annotation(schema: Any, names: Sequence[str]) -> Any:
    """The annotation of a dotted setting; None where the schema has no such field."""
    annotation: Any = schema
    for name in names:
        section = _section(annotation)
        if section is None:
            return None
        annotation = _hints(section).get(name)
    return annotation


def _field_type(schema: Any, names: Sequence[str]) -> Any:
    return _without_none(_annotation(schema, names))


def _type_name(annotation: Any) -> str:
    """The expected type for an error message, such as "of type float"."""
    if _section(annotation):
        return "a section (name: value lines)"
    if typing.get_origin(annotation) is typing.Literal:
        return f"one of {', '.join(map(str, typing.get_args(annotation)))}"
    is_plain = isinstance(annotation, type) and not typing.get_args(annotation)
    return f"of type {annotation.__name__ if is_plain else str(annotation).replace('typing.', '')}"


def _plain(value: Any, semantic_only: bool) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _plain(getattr(value, field.name), semantic_only)
            for field in dataclasses.fields(value)
            if not (semantic_only and field.metadata.get("operational"))
        }
    if isinstance(value, dict):
        return {str(key): _plain(inner, semantic_only) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner, semantic_only) for inner in value]
    if isinstance(value, enum.Enum):
        return _plain(value.value, semantic_only)
    return str(value) if isinstance(value, Path) else value


def _leaves(tree: SettingsTree, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _show(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
