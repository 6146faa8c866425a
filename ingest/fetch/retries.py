"""When a host or a route may be used again, and which reason a failure of the network is recorded under.

A route is a proxy, or "" for the direct connection. Nothing here sends a request.
"""

import email.utils
import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ingest.sample import Reason

MAX_COOLDOWN_S = 86_400.0  # of a host, whatever its Retry-After says: a day later the reason may be gone

STATUS_REASONS = {
    401: Reason.PRIVATE,
    402: Reason.PRIVATE,
    403: Reason.PRIVATE,
    404: Reason.REMOVED,
    408: Reason.TIMEOUT,
    410: Reason.REMOVED,
    425: Reason.RATE_LIMITED,
    429: Reason.RATE_LIMITED,
    451: Reason.REMOVED,
}
"""Statuses whose reason does not follow from their first digit."""


@dataclass
class Cooldowns:
    """Which hosts and routes cool down, and for how long.

    Both ends of the pipe keep one: the child adds, the parent merges the child's news, and a new child starts
    from the parent's `to_message`. Messages hold seconds to come, as the clocks of two processes may differ.
    """

    until_s: dict[str, float] = field(default_factory=dict)  # monotonic
    _added: dict[str, float] = field(default_factory=dict)  # since the last `take_news`

    def add(self, name: str, seconds: float) -> None:
        if seconds > 0:
            self.until_s[name] = time.monotonic() + seconds
            self._added[name] = seconds

    def remaining_s(self, name: str) -> float:
        return max(0.0, self.until_s.get(name, 0.0) - time.monotonic())

    def merge(self, message: Mapping[str, float]) -> None:
        """Takes over another process's cooldowns, and forgets those of ours that are over."""
        now_s = time.monotonic()
        # the newest message counts, even where ours would last longer: the child met the host last
        self.until_s |= {name: now_s + float(seconds) for name, seconds in message.items()}
        self.until_s = {name: until_s for name, until_s in self.until_s.items() if until_s > now_s}

    def to_message(self) -> dict[str, float]:
        """All that still run: name -> seconds to come."""
        now_s = time.monotonic()
        return {name: until_s - now_s for name, until_s in self.until_s.items() if until_s > now_s}

    def take_news(self) -> dict[str, float]:
        """What was added since the last call: name -> seconds."""
        added = self._added
        self._added = {}
        return added


def route_name(proxy: str) -> str:
    """A route by a name that gives no password away, as it leaves this process; "" is the direct route."""
    return hashlib.sha256(proxy.encode()).hexdigest()[:16] if proxy else ""


def status_reason(status: int) -> Reason:
    """The reason for an HTTP status that is an error."""
    default = Reason.SERVER_ERROR if status >= 500 else Reason.UNSUPPORTED
    return STATUS_REASONS.get(status, default)


def transport_reason(error: BaseException) -> tuple[Reason, str]:
    """timeout or network, from an error and everything that caused it; and its text."""
    for cause in causes(error):
        if isinstance(cause, TimeoutError) or "timed out" in str(cause).lower():
            return Reason.TIMEOUT, str(error)
    return Reason.NETWORK, str(error)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """`error` and what caused it, each once: yt-dlp's links (`exc_info`, `cause`), then Python's."""
    seen: set[int] = set()  # by identity: errors may cause each other in a circle
    queue = [error]
    while queue:
        cause = queue.pop(0)
        if cause is None or id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        exc_info = getattr(cause, "exc_info", None) or (None, None, None)
        linked = (getattr(cause, "cause", None), exc_info[1], cause.__cause__)
        queue += [link for link in linked if isinstance(link, BaseException)]


def retry_after_s(value: str | None, now_s: float) -> float | None:
    """Seconds that a Retry-After header (delta or HTTP date, RFC 9110, 10.2.3) asks for at `now_s` (epoch).

    None where it is missing or unreadable.
    """
    if not value:
        return None
    # a delta is digits only: "-5" or "1e9" are no Retry-After, and no date either
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now_s)
    except ValueError:
        return None
