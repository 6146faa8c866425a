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


def counted(count: int, noun: str) -> str:
    """A number of things.

    >>> counted(1, "wav file"), counted(2, "wav file")
    ('1 wav file', '2 wav files')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


class Inert(logging.Formatter):
    """Escapes control characters in log lines, which may quote text from the web."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def log_to_stderr() -> None:
    """Sends what a command logs, from INFO on, to stderr; stdout is the summary's."""
    # only commands log so: children and workers start sooner without it
    from rich.console import Console
    from rich.logging import RichHandler

    handler = RichHandler(console=Console(stderr=True), show_path=False, log_time_format="%Y-%m-%d %H:%M:%S")
    handler.setFormatter(Inert("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
