"""What people read in a terminal: untrusted text literally, dates by ISO 8601, one unit and two units."""

import re
import subprocess
import sys

from configs.terminal import counted, printable
from tests.conftest import ROOT


def test_control_and_direction_characters_become_spaces() -> None:
    assert printable("a\x1b[2J\x9b\u202eb\x07") == "a [2J  b "


def test_lines_and_tabs_stay() -> None:
    assert printable("a\n\tb") == "a\n\tb"


def test_a_lone_surrogate_is_spelt_out() -> None:
    assert printable("a\ud800") == "a\\ud800"


def test_a_log_line_has_an_iso_date() -> None:
    code = "import logging; from configs.terminal import log_to_stderr; log_to_stderr(); logging.info('a')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d INFO +a", done.stderr), done.stderr


def test_one_thing_is_no_plural() -> None:
    assert [counted(count, "unit") for count in (0, 1, 2)] == ["0 units", "1 unit", "2 units"]
