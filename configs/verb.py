"""A verb that says which settings it takes: in `--help`, by `--settings SECTION`, and to one given as a flag.

    @app.command(cls=with_settings("ingest.scrape:ScrapeConfig"))
    def scrape(args: list[str] = ARGS): …

The schema is named, not imported: what is shown stands in docs/settings.md.
"""

import shutil
from collections.abc import Sequence
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand

from configs.early import check_early, check_place
from configs.hints import flag_hint, near
from configs.load import ClickException, UserError
from configs.meanings import Setting
from configs.settings_page import PAGE, sections_of, settings_in

FLAG = "--settings"
LEGEND = f"Settings, as name=value; * changes bytes, the others do not. {FLAG} SECTION shows one section."
# of what is piped; a terminal has its own
WIDTH = 120


class SettingsCommand(TyperCommand):
    """A command with the settings of `schema`, "module:Class"; `argument` is the one with its own place."""

    schema = ""
    argument = ""

    def settings(self) -> list[Setting]:
        """From the page; none where it has not been written."""
        room = self.schema.partition(".")[0]
        text = PAGE.read_text() if PAGE.exists() else ""
        return settings_in(text, f"{room} {self.name}")

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        print_settings(self.settings())

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given = list(args)
        if FLAG in given:
            self._show_section(*given[given.index(FLAG) + 1 :][:1])
            raise typer.Exit
        try:
            rest = super().parse_args(ctx, args)
        except ClickException as error:
            option = getattr(error, "option_name", "")
            hint = flag_hint(option, given, [setting.name for setting in self.settings()])
            if type(error).__name__ != "NoSuchOption" or not hint:
                raise
            raise UserError(f'no option "{option}": settings are given as name=value{hint}') from None
        self._check_early(ctx.params)
        return rest

    def _check_early(self, params: dict[str, Any]) -> None:
        """What can be told without the schema, which may take seconds to load."""
        place = next((param.name for param in self.params if param.param_type_name == "argument"), None)
        if self.argument and place:
            check_place(str(self.name), place.upper(), str(params[place]))
        args = params.get("args") or []
        check_early(args, self.settings(), self.schema.partition(".")[0], self.argument)

    def _show_section(self, section: str = "") -> None:
        settings = self.settings()
        shown = [setting for setting in settings if not section or section in _names(setting)]
        if not shown:
            known = [name for name in sections_of(settings) if name]
            hint = near(section, [*known, *(setting.name for setting in settings)])
            hint = hint or f"; sections: {', '.join(known) or 'none, leave the name out'}"
            raise UserError(f"{FLAG} {section}: {self.name} has no such section{hint}")
        print_settings(shown)


def _names(setting: Setting) -> set[str]:
    """The setting's own name, and every section that it is in."""
    parts = setting.name.split(".")
    prefixes = {".".join(parts[:depth]) for depth in range(1, len(parts) + 1)}
    # the last part of a section's name is enough: youtube is source.youtube
    return prefixes | set(parts[:-1])


def with_settings(schema: str, argument: str = "") -> type[SettingsCommand]:
    """The class of a command that takes the settings of `schema`; `argument`: the one its argument gives."""
    return type("Verb", (SettingsCommand,), {"schema": schema, "argument": argument})


def print_settings(settings: Sequence[Setting]) -> None:
    """By section: name, type, default and meaning of each."""
    console = Console(width=shutil.get_terminal_size((WIDTH, 24)).columns, highlight=False)
    console.print(Text(LEGEND))
    for section in sections_of(settings):
        table = Table(box=None, title=section or None, title_justify="left", show_header=False)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        table.add_column(ratio=1)
        for setting in settings:
            if setting.section == section:
                star = "*" if setting.changes_bytes else " "
                kind = f"{setting.type}, {setting.default}"
                cells = (f"{star} {setting.name}", kind, setting.meaning)
                table.add_row(*map(Text, cells))
        console.print(table)
