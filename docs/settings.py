"""Writes docs/settings.md from the code: every verb's settings, with type, default and meaning.

    python docs/settings.py

Run it after a setting was added or its comment changed; tests/configs/test_settings_page.py says when.
"""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from configs.meanings import Setting, settings_of  # noqa: E402
from configs.settings_page import PAGE, page  # noqa: E402
from configs.verb import SettingsCommand  # noqa: E402

ROOMS = ("ingest", "training", "cluster")


def verbs() -> Iterator[tuple[str, list[Setting]]]:
    """("ingest scrape", its settings) of every verb that takes some; imports all of the code."""
    for room in ROOMS:
        for command in importlib.import_module(f"{room}.__main__").app.registered_commands:
            if command.cls and issubclass(command.cls, SettingsCommand):
                module, name = command.cls.schema.split(":")
                settings = settings_of(getattr(importlib.import_module(module), name))
                verb = command.name or command.callback.__name__.replace("_", "-")
                yield f"{room} {verb}", [one for one in settings if one.name != command.cls.argument]


if __name__ == "__main__":
    PAGE.write_text(page(verbs()))
    print(f"wrote {PAGE.relative_to(ROOT)}")
