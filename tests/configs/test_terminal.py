"""Untrusted text is printed literally."""

from configs.terminal import printable


def test_control_and_direction_characters_become_spaces() -> None:
    assert printable("a\x1b[2J\x9b\u202eb\x07") == "a [2J  b "


def test_lines_and_tabs_stay() -> None:
    assert printable("a\n\tb") == "a\n\tb"


def test_a_lone_surrogate_is_spelt_out() -> None:
    assert printable("a\ud800") == "a\\ud800"
