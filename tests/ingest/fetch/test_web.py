"""Politeness: rates and bursts of all workers together, and hosts and ways that are left alone, by whichever
process asks next.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from configs.load import UserError
from ingest.fetch.fetcher import Fetcher
from ingest.fetch.settings import FetchConfig
from ingest.fetch.web import Web
from ingest.sample import Reason, Refused
from ingest.scrape import ScrapeConfig, ScrapeStage
from ingest.sources.settings import SourceConfig
from tests.ingest.fetch.test_fetcher import ALLOW, LICENSED, Answer, HostileSite, body, refused
from tests.ingest.fetch.test_fetcher import hostile as hostile
from tests.ingest.fetch.test_web_addresses import PUBLIC, named
from tests.ingest.fetch.test_web_addresses import private as private
from tests.ingest.fetch.test_web_addresses import resolved as resolved


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_all_workers_together_keep_the_rate_of_a_host(tmp_path: Path, workers: int) -> None:
    network = FetchConfig(requests_per_s=30.0, burst_requests=9.0)
    config = ScrapeConfig(
        str(tmp_path / "out"), SourceConfig("folder", str(tmp_path)), workers=workers, network=network
    )
    with contextlib.closing(ScrapeStage(config)) as stage:
        ours = stage.fetcher.config
    webs = [Web(ours, ()) for _ in range(max(1, workers))]

    def ask(web: Web) -> None:
        for _ in range(60 // len(webs)):
            web._pace_request("https://a.example/x")

    started_s = time.monotonic()
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(ask, webs))
    assert 60 <= 30 * (time.monotonic() - started_s) + 9 + len(webs)


def test_rate_and_burst_are_shared_out_and_one_request_stays_free() -> None:
    for workers in (0, 1, 2, 8):
        share = FetchConfig(requests_per_s=4.0, burst_requests=8.0, bytes_per_s=1e6).share(workers)
        parts = [4.0 / max(1, workers), 8.0 / max(1, workers), 1e6 / max(1, workers)]
        assert [share.requests_per_s, share.burst_requests, share.bytes_per_s] == parts
    assert FetchConfig().share(1000).burst_requests == 1.0
    with pytest.raises(UserError, match="burst_requests=0.5"):
        FetchConfig(burst_requests=0.5)


@pytest.mark.parametrize(
    "url", ["https://a.example:443/", "https://A.example./y", "https://u@a.example/", "https://a.example:/"]
)
def test_a_host_has_one_rate_however_it_is_written(url: str) -> None:
    web = Web(FetchConfig(requests_per_s=2.0, burst_requests=1.0), ())
    started_s = time.monotonic()
    for one in ("https://a.example/x", url):
        web._before_hop(one)
    assert time.monotonic() - started_s >= 0.45


def test_every_request_waits_for_the_rate_and_those_of_a_redirect_too(
    hostile: HostileSite, private: HostileSite, resolved: Callable[..., None], tmp_path: Path
) -> None:
    resolved([PUBLIC])
    hostile.answers = {
        "/small.mp4": body(b"\0\0\0\x10ftypmp42", "video/mp4"),
        "/a.mp4": body(b"", status=302, Location="/small.mp4"),
    }
    config = FetchConfig(
        allow_private=[f"127.0.0.1:{hostile.server_address[1]}"], requests_per_s=2.0, burst_requests=1.0
    )
    with Fetcher(config, tmp_path / "spool", ALLOW) as ours:
        ours.fetch(
            hostile.item("/small.mp4"), 64
        )  # the child runs; what is allowed by exception is not paced
        hostile.asked.clear()
        started_s = time.monotonic()
        ours.fetch(named(private, "/a.mp4"), 64)
        assert hostile.asked == ["/a.mp4", "/small.mp4", "/small.mp4"] and time.monotonic() - started_s >= 1.0


@pytest.mark.parametrize(("path", "num_bytes"), [("/a.mp4", 600_000), ("/page", 300_000)])
def test_a_host_sends_no_more_bytes_than_it_may(
    hostile: HostileSite,
    private: HostileSite,
    resolved: Callable[..., None],
    tmp_path: Path,
    path: str,
    num_bytes: int,
) -> None:
    """A page and a medium, of a host that no exception names: a second's worth comes at once, and the rest at
    the rate.
    """
    resolved([PUBLIC])
    hostile.answers |= {"/small.mp4": body(b"film", "video/mp4"), "/a.mp4": body(bytes(600_000), "video/mp4")}
    hostile.answers["/page"] = body(LICENSED.encode().ljust(300_000))
    config = FetchConfig(allow_private=[f"127.0.0.1:{hostile.server_address[1]}"], bytes_per_s=150_000)
    with Fetcher(config, tmp_path / "spool", ALLOW) as ours:
        ours.fetch(hostile.item("/small.mp4"), 64)  # the child runs
        started_s = time.monotonic()
        with contextlib.suppress(Refused):
            assert ours.fetch(named(private, path), 64).num_bytes == num_bytes
        assert path in hostile.asked and time.monotonic() - started_s > (num_bytes - 150_000) / 150_000


Opened = Callable[..., Fetcher]


@pytest.fixture
def fetcher(hostile: HostileSite, tmp_path: Path) -> Iterator[Opened]:
    """fetcher(*other sites, **settings)"""
    with contextlib.ExitStack() as stack:

        def opened(*others: HostileSite, **settings: object) -> Fetcher:
            allowed = [f"127.0.0.1:{site.server_address[1]}" for site in (hostile, *others)]
            config = FetchConfig(allow_private=allowed, **settings)  # type: ignore[arg-type]
            return stack.enter_context(Fetcher(config, tmp_path, ALLOW))

        yield opened


def nothing(ours: Fetcher) -> None:
    """The child lives on."""


def killed(ours: Fetcher) -> None:
    assert ours.child.pid
    os.kill(ours.child.pid, signal.SIGKILL)
    os.waitid(os.P_PID, ours.child.pid, os.WEXITED | os.WNOWAIT)  # dead, and left to its owner to reap


def recycled(ours: Fetcher) -> None:
    ours.child.num_served = ours.config.recycle_items


@pytest.mark.parametrize("event", [nothing, killed, recycled])
def test_a_long_retry_after_outlives_the_process(
    hostile: HostileSite, fetcher: Opened, event: Callable[[Fetcher], None]
) -> None:
    hostile.answers = {
        "/a.mp4": body(b"", status=429, Retry_After="3600"),
        "/b.mp4": body(b"film", "video/mp4"),
    }
    with HostileSite() as other:
        threading.Thread(target=other.serve_forever, args=(0.05,), daemon=True).start()
        other.answers["/b.mp4"] = hostile.answers["/b.mp4"]
        ours = fetcher(other)
        assert refused(lambda: ours.fetch(hostile.item("/a.mp4"), 64)) == Reason.RATE_LIMITED
        event(ours)
        for _ in range(2):
            assert refused(lambda: ours.fetch(hostile.item("/b.mp4"), 64)) == Reason.RATE_LIMITED
        assert hostile.asked == ["/a.mp4"]
        assert ours.fetch(other.item("/b.mp4"), 64).picture.read_bytes() == b"film"
        other.shutdown()


def test_a_cooldown_holds_behind_a_redirect(
    hostile: HostileSite, private: HostileSite, fetcher: Opened
) -> None:
    private.answers = {
        "/a.mp4": body(b"", status=503, Retry_After="3600")
    }  # allowed here, another host than the first
    for path in ("/1.mp4", "/2.mp4"):
        hostile.answers[path] = body(
            b"", status=302, Location=f"http://127.0.0.1:{private.server_address[1]}/a.mp4"
        )
    ours = fetcher(private)
    for path in ("/1.mp4", "/2.mp4"):
        assert refused(lambda path=path: ours.fetch(hostile.item(path), 64)) in (
            Reason.RATE_LIMITED,
            Reason.SERVER_ERROR,
        )
    assert (hostile.asked, private.asked) == (["/1.mp4", "/2.mp4"], ["/a.mp4"])


@pytest.mark.parametrize("event", [nothing, killed])
def test_a_short_retry_after_is_waited_for(
    hostile: HostileSite, fetcher: Opened, event: Callable[[Fetcher], None]
) -> None:
    asked_s: list[float] = []

    def noted(answer: Answer) -> Answer:
        return lambda handler: (asked_s.append(time.monotonic()), answer(handler))[1]

    hostile.answers = {
        "/a.mp4": noted(body(b"", status=503, Retry_After="2")),
        "/b.mp4": noted(body(b"film", "video/mp4")),
    }
    ours = fetcher(retries=0)
    assert refused(lambda: ours.fetch(hostile.item("/a.mp4"), 64)) == Reason.SERVER_ERROR
    event(ours)
    assert ours.fetch(hostile.item("/b.mp4"), 64).picture.read_bytes() == b"film"
    assert asked_s[1] - asked_s[0] >= 2.0
