"""The settings of every fetch, `network` in a YAML file: read by the parent, and by the child as they are."""

import re
from dataclasses import dataclass, replace

from configs.load import UserError, at_least, operational, positive
from ingest.fetch.guard import parse_allowed

CONTACT = re.compile(r"[!-~]+@[!-~]+\.[!-~]+|https?://[!-~]+")  # an e-mail address or a URL
USER_AGENT = re.compile(r"[!-~][ -~]*")  # what a header may hold: printable ASCII


@dataclass
class FetchConfig:
    """What a fetch may cost and how it behaves.

    Sizes and durations decide what is kept; the others never change bytes. Rates hold per host, for all
    workers together; hosts of `allow_private` are the operator's own and not paced.
    """

    allow_private: list[str] = operational([])  # host:port of your own servers on private addresses
    max_bytes: int = 500_000_000  # of one item, everything counted
    max_duration_s: float = 3600.0  # longer media are not fetched
    max_text_bytes: int = operational(16 << 20)  # of a page or a manifest
    timeout_s: float = operational(300.0)  # of one item, waits counted
    socket_timeout_s: float = operational(20.0)  # silence after which a connection is given up
    retries: int = operational(2)  # attempts after the first, of one request
    max_wait_s: float = operational(60.0)  # a longer Retry-After makes the item rate_limited
    requests_per_s: float = operational(4.0)  # to one host, by all workers together; 0 = unpaced
    burst_requests: float = operational(8.0)  # requests that a quiet host gets at once; one a worker at least
    bytes_per_s: float = operational(0.0)  # from one host, by all workers together; 0 = as fast as they come
    # the name sent; robots.txt is read for it and for stillsound
    user_agent: str = operational("stillsound/0.1")
    contact: str = operational("")  # an e-mail address or URL of yours, which the user agent carries
    recycle_items: int = operational(500)  # items after which the child is replaced

    def __post_init__(self) -> None:
        try:
            parse_allowed(self.allow_private)
        except ValueError as error:
            raise UserError(f"network.allow_private: {error}") from None
        if self.contact and not CONTACT.fullmatch(self.contact):
            advice = "give an e-mail address or a URL, such as https://example.org/bot"
            raise UserError(f"network.contact={self.contact}: {advice}")
        if not USER_AGENT.fullmatch(self.user_agent):
            advice = "give a name in plain ASCII, such as stillsound/0.1"
            raise UserError(f"network.user_agent={self.user_agent!r}: {advice}")
        sizes = ("max_bytes", "max_duration_s", "max_text_bytes")
        positive(self, *sizes, "timeout_s", "socket_timeout_s", "recycle_items", section="network.")
        at_least(self, 0, "retries", "max_wait_s", "requests_per_s", "bytes_per_s", section="network.")
        at_least(self, 1, "burst_requests", section="network.")

    def share(self, workers: int) -> "FetchConfig":
        """What one of so many workers may do: an equal part of rates and burst.

        So a host never meets more than the configured rate, without the workers talking to each other.
        """
        workers = max(1, workers)
        return replace(
            self,
            requests_per_s=self.requests_per_s / workers,
            # a burst below 1 would let no request leave at all
            burst_requests=max(1.0, self.burst_requests / workers),
            bytes_per_s=self.bytes_per_s / workers,
        )

    @property
    def full_user_agent(self) -> str:
        """As sent: the name, and in brackets how to reach the operator and what is obeyed."""
        contact = f"+{self.contact}; " if self.contact and self.contact not in self.user_agent else ""
        obeyed = "obeys robots.txt, opt-outs, licenses and Retry-After"
        return f"{self.user_agent} ({contact}dataset builder; {obeyed})"
