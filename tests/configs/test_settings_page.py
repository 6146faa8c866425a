"""docs/settings.md is what the code says: every verb that takes settings, every setting, with a meaning."""

import importlib
import inspect

import pytest

from configs.meanings import Setting
from configs.settings_page import PAGE, page, settings_in
from configs.verb import SettingsCommand
from docs.settings import ROOMS, verbs

SETTINGS = [
    Setting("output", "", "text", "required", "a | b, `c` and \\ d", False),
    Setting("clip.names", "clip", "list of text", '["a|b"]', "text", True),
]


def test_what_is_written_is_read_back() -> None:
    text = page([("ingest other", SETTINGS[:1]), ("ingest scrape", SETTINGS)])
    assert settings_in(text, "ingest scrape") == SETTINGS
    assert settings_in(text, "ingest other") == SETTINGS[:1]
    assert settings_in(text, "ingest scr") == []


def test_the_page_is_true_and_every_setting_has_a_meaning() -> None:
    tables = list(verbs())
    lacking = [f"{verb} {one.name}" for verb, settings in tables for one in settings if not one.meaning]
    assert lacking == [], "write what it means in a comment at its field"
    assert PAGE.read_text() == page(tables), "run: python docs/settings.py"


@pytest.mark.parametrize("room", ROOMS)
def test_every_verb_that_takes_settings_says_which(room: str) -> None:
    for command in importlib.import_module(f"{room}.__main__").app.registered_commands:
        takes = (
            "load_config(" in inspect.getsource(command.callback)
            or "args" in inspect.signature(command.callback).parameters
        )
        says = bool(command.cls) and issubclass(command.cls, SettingsCommand)
        # what submit takes is the command of another verb
        assert says == (takes and command.callback.__name__ != "submit"), command.callback.__name__
