"""What a shell offers behind `python -m` and `stillsound`: rooms, verbs, presets, settings, values, sections.

    eval "$(python -m cluster completion)"     # in ~/.bashrc or once; then TAB

The script asks `python -m configs.completion LINE` at each TAB. That reads docs/settings.md and the commands'
text, and imports neither: an answer takes a tenth of a second.
"""

import re
import sys
from pathlib import Path

from configs.meanings import Setting
from configs.settings_page import PAGE, sections_of, settings_in

ROOT = Path(__file__).parents[1]
ROOMS = ("cluster", "ingest", "training")
OPTIONS = ("--dry-run", "--help", "--json", "--settings")
# anything else behind `python` gets names of files, as before
SCRIPT = r"""
_stillsound() {
  COMPREPLY=()
  local IFS=$'\n' ask
  if [[ ${COMP_WORDS[0]} == *stillsound ]]; then ask=(--complete)
  elif [[ ${COMP_WORDS[1]} == -m && -f configs/completion.py ]]; then ask=(-m configs.completion)
  else return; fi
  COMPREPLY=($("${COMP_WORDS[0]}" "${ask[@]}" "${COMP_LINE:0:COMP_POINT}" 2>/dev/null))
  if [[ ${COMPREPLY[0]} == *= ]]; then compopt -o nospace; fi
}
complete -o default -F _stillsound python python3 .venv/bin/python stillsound .venv/bin/stillsound
"""


def candidates(line: str) -> list[str]:
    """What may stand at the end of a command line; of `name=…` only the value, as bash wants it."""
    *before, word = re.split(r"\s+", line.lstrip())
    if before and before[0].rpartition("/")[2] == "stillsound":
        before[:1] = ["python", "-m"]
    if len(before) < 2 or before[1] != "-m":
        return []
    if len(before) == 2:
        return _starting(word, ROOMS)
    room = before[2]
    if room not in ROOMS:
        return []
    if len(before) == 3:
        return _starting(word, verbs_of(room))
    settings = settings_in(PAGE.read_text(), f"{room} {before[3]}")
    if before[-1] == "--settings":
        return _starting(word, [name for name in sections_of(settings) if name])
    return _of_settings(word, room, settings)


def _of_settings(word: str, room: str, settings: list[Setting]) -> list[str]:
    if word.startswith("-"):
        return _starting(word, OPTIONS)
    name, equals, value = word.partition("=")
    if equals:
        kinds = [setting.type for setting in settings if setting.name == name]
        return _starting(value, ("false", "true")) if kinds == ["bool"] else []
    presets = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "configs" / room).glob("*.yaml"))]
    # of what has no place on a command line, an entry of a list
    names = [f"{setting.name}=" for setting in settings if "[]" not in setting.name]
    return [*_starting(word, names), *(_starting(word, presets) if settings else [])]


def verbs_of(room: str) -> list[str]:
    """From the text of its commands.

    >>> verbs_of("cluster")
    ['doctor', 'submit', 'demo', 'completion']
    """
    text = (ROOT / room / "__main__.py").read_text()
    found = re.findall(r"^@app\.command\((.*)\)\ndef (\w+)", text, re.MULTILINE)
    named = [(re.search(r'name="([\w-]+)"', options), function) for options, function in found]
    # as typer calls them
    return [name[1] if name else function.replace("_", "-") for name, function in named]


def _starting(word: str, names: list[str] | tuple[str, ...]) -> list[str]:
    return [name for name in names if name.startswith(word)]


if __name__ == "__main__":
    print("\n".join(candidates(sys.argv[1])))
