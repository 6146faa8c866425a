"""docs/settings.md: the settings of every verb, written from the schemas and read back by `--help`.

    page([("ingest scrape", settings_of(ScrapeConfig))])     # its text; docs/settings.py writes it
    settings = settings_in(PAGE.read_text(), "ingest scrape")

`--help` and shell completion read the page instead of the schemas: they start without torch and Ray.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from configs.meanings import Setting

PAGE = Path(__file__).parents[1] / "docs/settings.md"
HEAD = """\
# Settings

Written by `python docs/settings.py` from the code, where each setting has its meaning; a test keeps it true.
Settings are given as `name=value`: in a YAML file, and behind it on the command line, where they win.

`changes bytes`: what a dataset, a run or a sound is made of; another value makes another one. The others may
change from one start to the next.

In a terminal: `python -m ingest scrape --help`; with `--settings network`, one section.
"""
COLUMNS = "| setting | type | default | meaning | changes bytes |\n| --- | --- | --- | --- | --- |"


def page(verbs: Iterable[tuple[str, Sequence[Setting]]]) -> str:
    """The text of the page, for verbs such as "ingest scrape" and their settings."""
    parts = [HEAD]
    for verb, settings in verbs:
        parts.append(f"## {verb}\n")
        for section in sections_of(settings):
            title = f"### {section}\n\n" if section else ""
            rows = "\n".join(_row(setting) for setting in settings if setting.section == section)
            parts.append(f"{title}{COLUMNS}\n{rows}\n")
    return "\n".join(parts)


def settings_in(text: str, verb: str) -> list[Setting]:
    """What the text of the page says of a verb; none of a verb that it does not have."""
    settings: list[Setting] = []
    section, is_within = "", False
    for line in text.splitlines():
        if line.startswith("## "):
            section, is_within = "", line == f"## {verb}"
        elif line.startswith("### "):
            section = line.removeprefix("### ")
        elif line.startswith("| `") and is_within:
            settings.append(_setting(line, section))
    return settings


def sections_of(settings: Iterable[Setting]) -> list[str]:
    """Their sections in order; "" is the top."""
    return list(dict.fromkeys(setting.section for setting in settings))


def _row(setting: Setting) -> str:
    changes = "yes" if setting.changes_bytes else "no"
    cells = (f"`{setting.name}`", setting.type, f"`{setting.default}`", setting.meaning, changes)
    escaped = [cell.replace("|", r"\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"


def _setting(line: str, section: str) -> Setting:
    cells = [cell.replace(r"\|", "|") for cell in re.split(r" (?<!\\)\| ", line[2:-2])]
    name, kind, default, meaning, changes = cells
    return Setting(name.strip("`"), section, kind, default.strip("`"), meaning, changes == "yes")
