"""How much of the app a client may have, and what a request may ask for.

    limit = RequestLimit(per_minute=20)
    wait_s = limit.take("127.0.0.1", time.monotonic())       # 0: go on; else seconds until the next may come
    wish = wish_of({"takes": "2"}, Wish(steps=25), bounds)   # `UserError` for what no request may ask

Nothing here reads a socket or makes a sound (training.app, training.app_sounds).
"""

import ipaddress
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from configs.load import UserError

MINUTE_S = 60.0
# of IPv6, one household or machine has a network of this size, and any address in it
NETWORK_BITS = 64
# JavaScript's numbers are exact up to here
MAX_SEED = 2**53 - 1
MAX_GUIDANCE = 100.0


class RequestLimit:
    """At most `per_minute` requests of one client within any minute."""

    def __init__(self, per_minute: int):
        self.per_minute = per_minute
        self.times: dict[str, deque[float]] = {}

    def take(self, address: str, now_s: float) -> float:
        """Counts a request, if it may go on (0), else says after how many seconds the next one may."""
        self._forget(now_s)
        times = self.times.setdefault(client_of(address), deque())
        if len(times) >= self.per_minute:
            return times[0] + MINUTE_S - now_s
        times.append(now_s)
        return 0.0

    def _forget(self, now_s: float) -> None:
        """What is older than a minute: many clients over time must not fill the memory."""
        for client, times in list(self.times.items()):
            while times and times[0] <= now_s - MINUTE_S:
                times.popleft()
            if not times:
                del self.times[client]


def client_of(address: str) -> str:
    """Who is told apart from others.

    >>> client_of("192.0.2.7"), client_of("2001:db8::1:2"), client_of("::ffff:192.0.2.7")
    ('192.0.2.7', '2001:db8::/64', '192.0.2.7')
    """
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, NETWORK_BITS), strict=False))


@dataclass(frozen=True)
class Bounds:
    """The most that one request may ask for."""

    max_sounds: int
    max_steps: int
    samplers: tuple[str, ...]


@dataclass(frozen=True)
class Wish:
    """What a request asks for. `guidance` None: the model's usual one; `sampler` "": the model's own."""

    steps: int
    seed: int = 0
    takes: int = 1
    guidance: float | None = None
    sampler: str = ""


def wish_of(fields: Mapping[str, str], usual: Wish, bounds: Bounds) -> Wish:
    """The settings of a form; a field that is missing or empty is as in `usual`.

    `UserError` for a setting that is unknown or out of bounds.
    """
    given = {name: value.strip() for name, value in fields.items() if value.strip()}
    unknown = sorted(given.keys() - {"steps", "seed", "takes", "guidance", "sampler"})
    if unknown:
        raise UserError(f"{unknown[0][:80]}: is no setting of a sound")
    sampler = given.get("sampler", usual.sampler)
    if sampler and sampler not in bounds.samplers:
        raise UserError(f"sampler={sampler[:80]}: give one of {', '.join(bounds.samplers)}")
    return Wish(
        steps=_whole(given, "steps", usual.steps, 1, bounds.max_steps),
        seed=_whole(given, "seed", usual.seed, 0, MAX_SEED),
        takes=_whole(given, "takes", usual.takes, 1, bounds.max_sounds),
        guidance=_guidance(given["guidance"]) if "guidance" in given else usual.guidance,
        sampler=sampler,
    )


def _whole(given: Mapping[str, str], name: str, usual: int, least: int, most: int) -> int:
    text = given.get(name, str(usual))
    # only ASCII digits: int() reads "1_0" and other scripts' digits, too
    value = int(text) if text.isascii() and text.isdigit() and len(text) <= len(str(most)) else -1
    if not least <= value <= most:
        raise UserError(f"{name}={text[:80]}: give a whole number from {least} to {most}")
    return value


def _guidance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= MAX_GUIDANCE:
        raise UserError(f"guidance={text[:80]}: give a number from 0 to {MAX_GUIDANCE:g} (1 = none)")
    return value
