"""What a person may have meant: the nearest name, a preset by its short name, a setting given as a flag.

    raise UserError(f'unknown setting "{name}"{near(name, known)}')

A hint is empty, or begins with a semicolon.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path

PRESETS = Path(__file__).parent


def near(name: str, candidates: Sequence[str]) -> str:
    """The candidate that is most like the name, if any is.

    >>> near("worker", ["workers", "output"])
    '; did you mean "workers"?'
    """
    found = difflib.get_close_matches(name, candidates, n=1, cutoff=0.6)
    return f'; did you mean "{found[0]}"?' if found else ""


def preset_hint(name: str, room: str) -> str:
    """For a config file that is not there: one beside it, or the preset of `room` that is called so."""
    folder = Path(name).parent
    beside = [str(path) for path in folder.glob("*.yaml")] if folder.is_dir() else []
    hint = near(name, beside)
    # found from any folder by this name
    presets = {path.stem: f"configs/{room}/{path.name}" for path in sorted((PRESETS / room).glob("*.yaml"))}
    stem = difflib.get_close_matches(Path(name).stem, presets, n=1, cutoff=0.6)
    if stem and (not hint or stem[0] == Path(name).stem):
        return f'; did you mean "{presets[stem[0]]}"?'
    return hint


def flag_hint(option: str, args: Sequence[str], settings: Sequence[str]) -> str:
    """For a flag that is none: the setting of this name, with the value that follows it in `args`.

    >>> flag_hint("--workers", ["--workers", "4"], ["workers"])
    '; did you mean "workers=4"?'
    """
    wanted = option.lstrip("-").replace("-", "_")
    if not wanted:
        return ""
    found = [name for name in settings if wanted in (name, name.rpartition(".")[2])]
    # the whole name first, then the shallowest section
    found.sort(key=lambda name: name.count("."))
    found = found or difflib.get_close_matches(wanted, settings, n=1, cutoff=0.8)
    return f'; did you mean "{found[0]}={_value_of(option, args)}"?' if found else ""


def _value_of(option: str, args: Sequence[str]) -> str:
    """Behind the flag or its "="; "…" where none is."""
    for index, arg in enumerate(args):
        if arg.startswith(f"{option}="):
            return arg.partition("=")[2]
        if arg == option and index + 1 < len(args) and not args[index + 1].startswith("-"):
            return args[index + 1]
    return "…"
