"""What a person sees in a terminal: foreign words are shown as they are, and none of them moves the cursor."""

import logging
import unicodedata

from rich.console import Console
from rich.logging import RichHandler


def printable(text: str) -> str:
    """`text` without escape sequences and characters that turn its direction; lines and tabs stay, lone
    surrogates are spelt out.
    """
    kept = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c in "\n\t" or unicodedata.category(c)[0] != "C" else " " for c in kept)


class Inert(logging.Formatter):
    """Sites' and libraries' own words are in the log."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def log_to_stderr() -> None:
    """What a command logs, from INFO on."""
    handler = RichHandler(console=Console(stderr=True), show_path=False)
    handler.setFormatter(Inert("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
