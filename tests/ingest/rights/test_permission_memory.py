"""How often the statements of a host are requested, what of them is kept as evidence, and under which name."""

import datetime
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from configs.load import UserError
from ingest.fetch.fetcher import Fetcher
from ingest.fetch.settings import FetchConfig
from ingest.rights.permission import LIFE_S, PATHS, Answer, Permission
from ingest.sample import Reason, Refused
from tests.ingest.fetch.test_fetcher import ALLOW, HostileSite, body, refused
from tests.ingest.fetch.test_fetcher import hostile as hostile
from tests.ingest.fetch.test_web import killed, nothing, recycled
from tests.ingest.rights.test_permission import fetch, web_of

FILES = list(PATHS.values())
FILM = body(b"\0film", "video/mp4")


@pytest.fixture
def other() -> Iterator[HostileSite]:
    """A second host: the CDN of the first."""
    with HostileSite() as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def fetcher(hostile: HostileSite, other: HostileSite, tmp_path: Path) -> Iterator[Fetcher]:
    ports = [f"127.0.0.1:{site.server_address[1]}" for site in (hostile, other)]
    with Fetcher(
        FetchConfig(allow_private=ports, contact="bot@example.org", retries=0), tmp_path, ALLOW
    ) as fetcher:
        yield fetcher


@pytest.mark.parametrize("event", [nothing, killed, recycled])
def test_a_host_is_requested_once_by_all_processes(
    hostile: HostileSite, fetcher: Fetcher, event: Callable[[Fetcher], None]
) -> None:
    hostile.answers = {
        "/robots.txt": body(b"User-agent: *\nDisallow: /b.mp4", "text/plain"),
        "/a.mp4": FILM,
        "/b.mp4": FILM,
    }
    fetcher.fetch(hostile.item("/a.mp4"), 64)
    event(fetcher)
    fetcher.fetch(hostile.item("/a.mp4"), 64)
    assert refused(lambda: fetcher.fetch(hostile.item("/b.mp4"), 64)) == Reason.OPT_OUT
    assert hostile.asked_first == FILES and "/b.mp4" not in hostile.asked


def test_a_statement_is_used_for_a_day_at_most() -> None:
    requests: list[str] = []

    def request(url: str) -> Answer:
        requests.append(url)
        return Answer(404)

    for age_s, count in ((LIFE_S - 60, 0), (LIFE_S + 60, 3)):
        young = Permission(request)
        young.begin("urls")
        young.check_url("http://a.example/x")
        old = Permission(request)
        old.learn([{**record, "requested_s": time.time() - age_s} for record in young.take_news()])
        old.begin("urls")
        requests.clear()
        old.check_url("http://a.example/x")
        assert len(requests) == count


def test_the_host_of_a_medium_has_its_own_statements(
    hostile: HostileSite, other: HostileSite, fetcher: Fetcher
) -> None:
    cdn = f"http://127.0.0.1:{other.server_address[1]}/a.mp4"
    hostile.answers = {
        "/page": body(f'<title>t</title><video src="{cdn}"></video>'.encode()),
        "/b.mp4": body(b"", status=302, Location=cdn),
    }
    other.answers = {
        "/a.mp4": FILM,
        "/robots.txt": body(b"User-agent: stillsound\nDisallow: /a", "text/plain"),
    }
    for path in ("/page", "/b.mp4"):
        assert refused(lambda path=path: fetcher.fetch(hostile.item(path), 64)) == Reason.OPT_OUT
    assert (other.asked, other.asked_first) == ([], ["/robots.txt"])


def test_evidence_is_kept_with_the_sample(hostile: HostileSite, fetcher: Fetcher) -> None:
    robots = b"User-agent: *\nAllow: /media/\nDisallow: /private/"
    hostile.answers = {
        "/page?token=secret": body(b'<title>t</title><video src="/media/a.mp4"></video>'),
        "/media/a.mp4": FILM,
        "/robots.txt": body(robots, "text/plain"),
    }
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    asked = fetcher.fetch(hostile.item("/page?token=secret"), 64).meta["permission"]["asked"]
    assert [entry["url"].partition("/")[2].partition("/")[2].partition("/")[2] for entry in asked] == [
        ".well-known/tdmrep.json",
        "ai.txt",
        "page?token=***",
        "robots.txt",
    ]
    assert asked[3]["sha256"] == hashlib.sha256(robots).hexdigest() and "Allow: /media/" in asked[3]["says"]
    assert {entry["date"] for entry in asked} <= {
        today,
        datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    assert [entry["status"] for entry in asked] == [404, 404, 200, 200] and "secret" not in str(asked)


def test_no_token_of_an_address_is_in_a_refusal(hostile: HostileSite, tmp_path: Path) -> None:
    hostile.answers = {"/a.mp4?sig=secret": body(b"", "video/mp4", tdm_reservation="1")}
    with pytest.raises(Refused) as caught:
        fetch(web_of(hostile), hostile.item("/a.mp4?sig=secret"), tmp_path)
    assert (
        caught.value.reason == Reason.OPT_OUT
        and "secret" not in caught.value.detail
        and "sig=***" in caught.value.detail
    )


def test_the_user_agent_has_a_contact(hostile: HostileSite, fetcher: Fetcher) -> None:
    agents: list[str] = []

    def answer(handler: object) -> None:
        agents.append(handler.headers["User-Agent"])  # type: ignore[attr-defined]
        FILM(handler)  # type: ignore[arg-type]

    hostile.answers = {path: answer for path in ("/a.mp4", *FILES)}
    fetcher.fetch(hostile.item("/a.mp4"), 64)
    assert len(agents) == 5 and set(agents) == {FetchConfig(contact="bot@example.org").full_user_agent}
    assert agents[0].startswith("stillsound/0.1 (+bot@example.org; ")


@pytest.mark.parametrize("contact", ["me", "a b@example.org", "https://example.org/\r\nCookie: x", "mailto"])
def test_an_unusable_contact_is_refused(contact: str) -> None:
    with pytest.raises(UserError, match="network.contact"):
        FetchConfig(contact=contact)


def test_the_configured_user_agent_counts_in_robots_txt(hostile: HostileSite, tmp_path: Path) -> None:
    hostile.answers = {
        "/a.mp4": FILM,
        "/robots.txt": body(b"User-agent: cellobot\nDisallow: /", "text/plain"),
    }
    assert (
        refused(lambda: fetch(web_of(hostile, user_agent="CelloBot/2.0"), hostile.item("/a.mp4"), tmp_path))
        == Reason.OPT_OUT
    )
    assert fetch(web_of(hostile, user_agent="violabot"), hostile.item("/a.mp4"), tmp_path)["picture"]
