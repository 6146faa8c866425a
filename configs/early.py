"""Mistakes of settings, told before a verb's code is loaded: torch alone takes seconds.

    check_early(["configs/training/demo.yaml", "step=3"], settings, "training")     # did you mean "steps"?

Goes by docs/settings.md, which a test keeps true; where that says nothing of a verb, nothing is checked.
`load_config` checks everything again, by the schema itself, with the same words.
"""

import re
from collections.abc import Collection, Iterator, Sequence

from configs.hints import near
from configs.load import SettingsTree, UserError, read_yaml
from configs.meanings import REQUIRED, Setting

WORD = re.compile(r"[A-Za-z]+")
# that YAML or a schema may take for a number, or for nothing
NUMBER_WORDS = ("null", "nan", "inf", "infinity", "true", "false", "yes", "no", "on", "off")
LOOKS_LIKE_SETTING = re.compile(r"[a-z_]\w*(\.\w+)*=.*", re.DOTALL)


def check_early(args: Sequence[str], settings: Sequence[Setting], room: str, placed: str = "") -> None:
    """`UserError` for a setting that is none, of the file or the command line, a word for a number, a file
    that is not there, and for what is missing. `placed`: the setting that an argument of its own gives.
    """
    paths = [arg for arg in args if "=" not in arg]
    if not settings or len(paths) > 1:  # of several files, load_config has more to say
        return
    given = {placed}
    for path in paths:
        for name in _names_in(read_yaml(path, room)):
            _check_name(name, settings, path)
            given.add(name)
    for arg in args:
        name, equals, value = arg.partition("=")
        if equals:
            _check_name(name, settings, arg)
            _check_number(arg, value, next((one.type for one in settings if one.name == name), ""))
            given.add(name)
    missing = sorted(one.name for one in settings if one.default == REQUIRED and not _is_in(one.name, given))
    if missing:
        plural = "s" if len(missing) > 1 else ""
        fix = f"add {missing[0]}=… to the command"
        raise UserError(f"missing setting{plural}: {', '.join(missing)}; {fix}")


def check_place(verb: str, metavar: str, value: str) -> None:
    """`UserError` where a setting stands in the place of a folder: the folder would be called like it."""
    if LOOKS_LIKE_SETTING.fullmatch(value):
        raise UserError(f"{verb} {value}: {metavar} comes first, then settings; give a folder such as out/x")


def _names_in(tree: SettingsTree, above: str = "") -> Iterator[str]:
    """Full names of all leaves; a section without any is one."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _names_in(value, f"{above}{key}.")
        else:
            yield f"{above}{key}"


def _is_in(name: str, given: Collection[str]) -> bool:
    """Whether it, or a section that it is in, was given."""
    parts = name.split(".")
    return any(".".join(parts[:depth]) in given for depth in range(1, len(parts) + 1))


def _check_number(arg: str, value: str, kind: str) -> None:
    """Only what is a word beyond doubt: the schema reads numbers in all their forms."""
    if kind in ("int", "float") and WORD.fullmatch(value) and value.lower() not in NUMBER_WORDS:
        raise UserError(f'{arg.partition("=")[0]} = "{value}" is not of type {kind} (in {arg})')


def _check_name(name: str, settings: Sequence[Setting], origin: str) -> None:
    """Names the shortest part of `name` that is unknown."""
    known = [setting.name for setting in settings if "[]" not in setting.name]
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        part = ".".join(parts[:depth])
        if part in known:
            return  # what is below, such as the keys of a table, is the schema's matter
        if not any(other.startswith(f"{part}.") for other in known):
            prefix = part.rpartition(".")[0]
            beside = _beside(f"{prefix}." if prefix else "", known)
            hint = near(part, beside) or f"; known here: {', '.join(one.split('.')[-1] for one in beside)}"
            # an override names itself; of a file, the user needs its name
            where = "" if origin.split("=")[0] == part else f" in {origin}"
            raise UserError(f'unknown setting "{part}"{where}{hint}')


def _beside(prefix: str, known: Sequence[str]) -> list[str]:
    """Full names of the settings and sections directly below a section."""
    below = (name.removeprefix(prefix).split(".")[0] for name in known if name.startswith(prefix))
    return [f"{prefix}{name}" for name in dict.fromkeys(below)]
