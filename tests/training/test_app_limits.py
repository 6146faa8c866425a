"""What a client may have: so many requests a minute, and settings within bounds."""

import pytest

from configs.load import UserError
from training.app_limits import Bounds, RequestLimit, Wish, client_of, wish_of

BOUNDS = Bounds(max_sounds=8, max_steps=50, samplers=("ddim", "euler"))
USUAL = Wish(steps=25, guidance=2.0)


def test_a_client_has_so_many_requests_in_any_minute_and_others_theirs() -> None:
    limit = RequestLimit(per_minute=2)
    assert [limit.take("192.0.2.1", now) for now in (0.0, 30.0)] == [0, 0]
    assert limit.take("192.0.2.1", 40.0) == 20
    assert limit.take("192.0.2.2", 40.0) == 0
    # the first of them is a minute old, the refused one counts for nothing
    assert limit.take("192.0.2.1", 60.0) == 0
    assert limit.take("192.0.2.1", 61.0) == 29


def test_a_network_of_many_addresses_is_one_client_and_is_forgotten_after_a_minute() -> None:
    limit = RequestLimit(per_minute=1)
    assert limit.take("2001:db8::1", 0.0) == 0
    assert limit.take("2001:db8::2", 1.0) == 59
    assert limit.take("2001:db8:0:1::1", 2.0) == 0
    assert client_of("fe80::1%eth0") == "fe80::/64"
    assert limit.take("192.0.2.1", 100.0) == 0
    assert list(limit.times) == ["192.0.2.1"]


def test_settings_of_a_form_are_read_and_missing_ones_are_the_usual() -> None:
    fields = {"seed": "7", "takes": " 3 ", "guidance": "1.5", "steps": "", "sampler": "euler"}
    assert wish_of(fields, USUAL, BOUNDS) == Wish(25, 7, 3, 1.5, "euler")
    assert wish_of({}, USUAL, BOUNDS) == USUAL


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("steps", "51", "steps=51: give a whole number from 1 to 50"),
        ("steps", "0", "steps=0: give a whole number from 1 to 50"),
        ("steps", "1e1", "steps=1e1: give a whole number"),
        ("steps", "٣", "give a whole number"),
        ("steps", "9" * 200, "give a whole number"),
        ("takes", "9", "takes=9: give a whole number from 1 to 8"),
        ("seed", "-1", "seed=-1: give a whole number from 0 to"),
        ("guidance", "nan", "guidance=nan: give a number from 0 to 100"),
        ("guidance", "a", "guidance=a: give a number from 0 to 100"),
        ("sampler", "magic", "sampler=magic: give one of ddim, euler"),
        ("model", "/etc", "model: is no setting of a sound"),
    ],
)
def test_what_no_request_may_ask_is_one_line(name: str, value: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        wish_of({name: value}, USUAL, BOUNDS)
    assert said in str(caught.value) and len(str(caught.value)) < 200
