"""Prints untrusted text literally: no escape sequences, no characters that turn the direction of text."""

import logging
import unicodedata


def printable(text: str) -> str:
    """`text` with a space for every control and direction character but line feeds and tabs.

    Lone surrogates, which no terminal can encode, are spelt out.

    >>> printable("a\\x1b[2Jb")
    'a [2Jb'
    """
    encodable = text.encode("utf-8", "backslashreplace").decode()
    # categories that begin with C: control, format (which holds the direction marks), unassigned, private
    return "".join(c if c in "\n\t" or unicodedata.category(c)[0] != "C" else " " for c in encodable)


class Inert(logging.Formatter):
    """Escapes control characters in log lines, which may quote text from the web."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def log_to_stderr() -> None:
    """Sends what a command logs, from INFO on, to stderr; stdout is the summary's."""
    # only commands log so: children and workers start sooner without it
    from rich.console import Console
    from rich.logging import RichHandler

    handler = RichHandler(console=Console(stderr=True), show_path=False)
    handler.setFormatter(Inert("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
