"""YouTube, with yt-dlp's real extractors in the real fetch process, against a recorded one on loopback
(tests/fakes/tube.py).
"""

import dataclasses
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import pytest
from yt_dlp.extractor.youtube._base import INNERTUBE_CLIENTS

from cluster.dataset import Dataset
from configs.load import UserError
from ingest.clip.clipper import ClipConfig, FrameConfig
from ingest.fetch.access import YoutubeConfig
from ingest.fetch.fetcher import Fetcher
from ingest.fetch.settings import FetchConfig
from ingest.ffmpeg import ffmpeg_exe
from ingest.sample import Item, Media, Reason, Refused
from ingest.scrape import ScrapeConfig, scrape, semantic
from ingest.sources.registry import enumerate_items
from ingest.sources.settings import SourceConfig
from ingest.sources.youtube import enumerate_youtube, targets
from ingest.synth import SynthConfig, synth
from tests.fakes.tube import CHANNEL, Tube, Video, running_tube

PASSWORD, COOKIE, TOKEN = "hunter22", "cookie-secret-5711", "tokensecret9213abcde"
WATCH = "https://www.youtube.com/watch?v="


@pytest.fixture(scope="module")
def streams(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A picture without sound and a sound, of one video of 6 s with a keyframe amid every scene."""
    folder = tmp_path_factory.mktemp("streams")
    synth(
        SynthConfig(
            str(folder), videos=1, webm=0, hls=0, dash=0, stills=0, silent=0, scenes_per_video=3, workers=1
        )
    )
    for without, name in (("-an", "picture.mp4"), ("-vn", "sound.m4a")):
        words = [
            ffmpeg_exe(),
            "-v",
            "error",
            "-i",
            str(folder / "media/mp40000.mp4"),
            without,
            "-c",
            "copy",
            str(folder / name),
        ]
        subprocess.run(words, check=True)
    return folder / "picture.mp4", folder / "sound.m4a"


@pytest.fixture
def tube(streams: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tube]:
    (tmp_path / "tube").mkdir()
    with running_tube(tmp_path / "tube", *streams) as ours:
        monkeypatch.setenv("SSL_CERT_FILE", str(ours.ca))
        yield ours


@pytest.fixture
def youtube(tube: Tube, tmp_path: Path) -> YoutubeConfig:
    """Settings that lead to the tube through its proxy, with a secret of each kind, and no waiting."""
    (tmp_path / "proxies").write_text(f"# ours\nhttp://someone:{PASSWORD}@{tube.address}\n")
    (tmp_path / "cookies").write_text(
        f"# Netscape HTTP Cookie File\n.youtube.com\tTRUE\t/\tTRUE\t2000000000\tVISITOR_INFO1_LIVE\t{COOKIE}\n"
    )
    (tmp_path / "tokens").write_text(f"visionos.gvs+{TOKEN}\n")
    files = {
        name: str(tmp_path / name.split("_file")[0].replace("po_", ""))
        for name in ("proxies_file", "cookies_file", "po_tokens_file")
    }
    return YoutubeConfig(**files, sleep_requests_s=0, sleep_s=0, max_sleep_s=0, rest_s=0)  # type: ignore[arg-type]


def network(tube: Tube, **settings: Any) -> FetchConfig:
    return FetchConfig(**{"allow_private": [tube.address], "requests_per_s": 0, "retries": 0, **settings})


def item(id: str) -> Item:
    return Item("youtube", id, WATCH + id)


@pytest.fixture
def fetch(tube: Tube, youtube: YoutubeConfig, tmp_path: Path) -> Iterator[Callable[[Video], Media]]:
    with Fetcher(network(tube), tmp_path / "spool", ("CC-BY-3.0", "own"), {"youtube": youtube}) as fetcher:

        def one(video: Video) -> Media:
            tube.add(video)
            return fetcher.fetch(item(video.id), 64)

        yield one


def refused(what: Callable[[], object]) -> Refused:
    with pytest.raises(Refused) as caught:
        what()
    return caught.value


def says(status: str, reason: str, subreason: str = "") -> dict[str, Any]:
    screen = {
        "playerErrorMessageRenderer": {
            "reason": {"simpleText": reason},
            "subreason": {"simpleText": subreason},
        }
    }
    return {"status": status, "reason": reason, **({"errorScreen": screen} if subreason else {})}


def test_a_marked_video_takes_one_extraction_and_two_streams(
    tube: Tube, fetch: Callable[[Video], Media]
) -> None:
    media = fetch(Video("marked00000"))
    with av.open(str(media.picture)) as picture, av.open(str(media.sound)) as sound:
        assert [one.type for one in picture.streams] == ["video"] and [one.type for one in sound.streams] == [
            "audio"
        ]
    assert (media.license, media.channel, media.meta["author"]) == ("CC-BY-3.0", CHANNEL, "Someone")
    assert [path.split("?")[0] for _, path, _ in tube.requests] == [
        "/watch",
        "/youtubei/v1/player",
        "/picture",
        "/sound",
    ]
    assert all(f"pot={TOKEN}" in path for path in tube.paths("expire=")), "the PO token went with the media"


CLASSES = [
    (Reason.REMOVED, says("ERROR", "Video unavailable", "This video has been removed by the uploader")),
    (
        Reason.REMOVED,
        says(
            "ERROR",
            "Video unavailable",
            "This video is no longer available because the account has been terminated.",
        ),
    ),
    (Reason.REMOVED, says("ERROR", "This video isn't available anymore")),
    (
        Reason.PRIVATE,
        says("LOGIN_REQUIRED", "Private video", "Sign in if you've been granted access to this video"),
    ),
    (
        Reason.AGE,
        says(
            "LOGIN_REQUIRED", "Sign in to confirm your age", "This video may be inappropriate for some users."
        ),
    ),
    (
        Reason.GEO,
        says(
            "UNPLAYABLE",
            "Video unavailable",
            "The uploader has not made this video available in your country",
        ),
    ),
    (
        Reason.GEO,
        says(
            "UNPLAYABLE",
            "Video unavailable",
            "This video contains content from X, who has blocked it in your country",
        ),
    ),
    (
        Reason.MEMBERS_ONLY,
        says("UNPLAYABLE", "Join this channel to get access to members-only content like this video"),
    ),
    (Reason.MEMBERS_ONLY, says("UNPLAYABLE", "This video requires payment to watch")),
    (Reason.LIVE, says("LIVE_STREAM_OFFLINE", "This live event will begin in 3 hours.")),
    (Reason.LIVE, says("LIVE_STREAM_OFFLINE", "Premieres in 5 days")),
    (
        Reason.BOT_CHECK,
        says(
            "LOGIN_REQUIRED",
            "Sign in to confirm you’re not a bot",
            "This helps protect our community. Learn more",
        ),
    ),
    (
        Reason.RATE_LIMITED,
        says("UNPLAYABLE", "Video unavailable", "This content isn't available, try again later."),
    ),
    (Reason.EXTRACTOR, says("UNPLAYABLE", "Something that nobody has heard yet")),
]


@pytest.mark.parametrize(("reason", "playability"), CLASSES)
def test_each_state_of_a_video_has_a_reason(
    fetch: Callable[[Video], Media], reason: Reason, playability: dict[str, Any]
) -> None:
    refusal = refused(lambda: fetch(Video("broken00000", playability=playability)))
    assert refusal.reason == reason
    assert playability["reason"].split("’")[0][:20] in refusal.detail or "your country" in refusal.detail


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        (Reason.FORMAT, {"formats": False}),
        (Reason.LIVE, {"details": {"isLive": True}}),
        (Reason.LIVE, {"details": {"isUpcoming": True, "isLive": False}}),
        (Reason.BOT_CHECK, {"media_status": 403}),
        (Reason.RATE_LIMITED, {"media_status": 429}),
        (Reason.RATE_LIMITED, {"player_status": 429}),
        (Reason.SERVER_ERROR, {"player_status": 500}),
        (Reason.REMOVED, {"media_status": 404}),
        (Reason.TOO_LONG, {"details": {"lengthSeconds": "7200"}}),
    ],
)
def test_each_network_failure_has_a_reason(
    fetch: Callable[[Video], Media], reason: Reason, changes: dict[str, Any]
) -> None:
    assert refused(lambda: fetch(Video("broken00000", **changes))).reason == reason


def test_a_proxy_that_does_not_answer_is_a_network_failure(
    tube: Tube, youtube: YoutubeConfig, tmp_path: Path
) -> None:
    tube.shutdown()
    tube.server_close()
    with Fetcher(network(tube), tmp_path / "spool", ("CC-BY-3.0",), {"youtube": youtube}) as fetcher:
        refusal = refused(lambda: fetcher.fetch(item("marked00000"), 64))
    assert refusal.reason == Reason.NETWORK and PASSWORD not in refusal.detail


def test_an_unmarked_video_is_refused_before_its_media_is_requested(
    tube: Tube, fetch: Callable[[Video], Media]
) -> None:
    refusal = refused(lambda: fetch(Video("unmarked000", license="")))
    assert refusal.reason == Reason.LICENSE and not tube.paths("expire=")


def test_a_channel_the_operator_vouches_for_needs_no_mark(
    tube: Tube, youtube: YoutubeConfig, tmp_path: Path
) -> None:
    vouching = dataclasses.replace(youtube, vouched_channels={CHANNEL: "own"})
    tube.add(Video("unmarked000", license=""), Video("strange0000", license="", channel_id="UC" + "b" * 22))
    with Fetcher(network(tube), tmp_path / "spool", ("own",), {"youtube": vouching}) as fetcher:
        assert fetcher.fetch(item("unmarked000"), 64).license == "own"
        assert refused(lambda: fetcher.fetch(item("strange0000"), 64)).reason == Reason.LICENSE


def listed(tube: Tube, youtube: YoutubeConfig, path: Path | str) -> list[Item]:
    return list(enumerate_items(SourceConfig(str(path), "youtube", youtube=youtube), network(tube)))


@pytest.mark.parametrize(
    "target",
    [
        "ytsearch:rain",
        "ytsearch3:rain",
        "https://www.youtube.com/playlist?list=PLabcdefghijk",
        "https://www.youtube.com/watch?v=video000000&list=PLabcdefghijk",
        "https://www.youtube.com/@someone",  # two tabs that share videos
        "https://www.youtube.com/@someone/videos",
    ],
)
def test_every_kind_of_list_is_enumerated_flat_each_video_once(
    tube: Tube, youtube: YoutubeConfig, target: str
) -> None:
    tube.listed = [f"video{number:06d}" for number in range(3)]
    items = listed(tube, youtube, target)
    assert [one.id for one in items] == tube.listed
    assert {(one.channel, one.source, one.license) for one in items} == {(CHANNEL, "youtube", "")}
    assert items[0].url == f"{WATCH}video000000" and items[0].meta["found_by"] == target
    assert not tube.paths("/player")


def test_a_file_mixes_all_kinds_and_a_video_found_twice_is_one_item(
    tube: Tube, youtube: YoutubeConfig, tmp_path: Path
) -> None:
    tube.listed = ["video000001", "video000002"]
    (tmp_path / "list.txt").write_text(
        "# mine\nhttps://youtu.be/video000000\n\nytsearch:rain\nhttps://www.youtube.com/shorts/video000002\n"
    )
    assert [one.id for one in listed(tube, youtube, tmp_path / "list.txt")] == [
        "video000000",
        "video000001",
        "video000002",
    ]


def test_a_search_gives_no_more_than_max_results(tube: Tube, youtube: YoutubeConfig) -> None:
    tube.listed = [f"video{number:06d}" for number in range(9)]
    few = dataclasses.replace(youtube, max_results=4)
    for target in ("ytsearch:rain", "https://www.youtube.com/playlist?list=PLabcdefghijk"):
        assert len(listed(tube, few, target)) == 4


def test_a_list_that_fails_is_logged_and_the_others_continue(
    tube: Tube, youtube: YoutubeConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gone = "https://www.youtube.com/@someone/streams"  # a tab the channel lacks
    (tmp_path / "list.txt").write_text(f"{gone}\nytsearch:rain\n")
    tube.listed = ["video000001"]
    assert [one.id for one in listed(tube, youtube, tmp_path / "list.txt")] == ["video000001"]
    assert "streams tab" in caplog.text
    with pytest.raises(UserError, match="nothing could be listed: .*streams tab"):
        listed(tube, youtube, gone)


def config(tube: Tube, youtube: YoutubeConfig, path: Path, output: Path) -> ScrapeConfig:
    source = SourceConfig(str(path), "youtube", youtube=youtube)
    settings: dict[str, Any] = {
        "clip": ClipConfig(1.6),
        "frame": FrameConfig(64),
        "workers": 0,
        "unit_size": 5,
    }
    return ScrapeConfig(output=str(output), source=source, network=network(tube), **settings)


def test_a_whole_scrape_keeps_what_is_free_and_no_secret(
    tube: Tube,
    youtube: YoutubeConfig,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level("DEBUG")
    (tmp_path / "list.txt").write_text("https://www.youtube.com/playlist?list=PLabcdefghijk\n")
    tube.add(
        Video("marked00000"),
        Video("unmarked000", license=""),
        Video("private0000", playability=says("LOGIN_REQUIRED", "Private video")),
    )
    tube.add(Video("blocked0000", media_status=403))
    tube.listed = ["marked00000", "unmarked000", "private0000"]
    ours = config(tube, youtube, tmp_path / "list.txt", tmp_path / "clips")
    first = scrape(ours, progress=False)
    assert first.counts == {"kept": 3, "refused:license": 1, "refused:private": 1}
    assert scrape(ours, progress=False).units_done == 0, "listed again, nothing new"
    tube.listed += ["blocked0000"]
    more = scrape(ours, progress=False)
    assert (more.deferred, more.units_done) == (["u0000001"], 0), "a bot check is never made permanent"
    rows = [row for row in Dataset.open(str(tmp_path / "clips")).iter_rows() if row["status"] == "kept"]
    assert {(row["license"], row["channel"]) for row in rows} == {("CC-BY-3.0", CHANNEL)}
    assert all(row["key"].startswith("youtube_marked00000_") for row in rows)
    written = b"".join(path.read_bytes() for path in (tmp_path / "clips").rglob("*") if path.is_file())
    texts = (
        caplog.text
        + "".join(capfd.readouterr())
        + json.dumps(dataclasses.asdict(ours))
        + json.dumps(semantic(ours))
    )
    for secret in (PASSWORD, COOKIE, TOKEN):
        assert secret.encode() not in written and secret not in texts


def test_routes_are_operational_and_vouching_is_not(
    tube: Tube, youtube: YoutubeConfig, tmp_path: Path
) -> None:
    ours = config(tube, youtube, tmp_path, tmp_path)
    plain = config(tube, YoutubeConfig(extractor_args=["youtube:lang=en"]), tmp_path, tmp_path)
    vouching = config(tube, YoutubeConfig(vouched_channels={CHANNEL: "own"}), tmp_path, tmp_path)
    assert semantic(ours) == semantic(plain) != semantic(vouching)
    assert "youtube" not in semantic(dataclasses.replace(ours, source=SourceConfig("media")))["source"]


def test_a_proxy_on_a_private_address_must_be_allowed(
    tube: Tube, youtube: YoutubeConfig, tmp_path: Path
) -> None:
    tube.add(Video("marked00000"))
    with Fetcher(
        network(tube, allow_private=[]), tmp_path / "spool", ("CC-BY-3.0",), {"youtube": youtube}
    ) as fetcher:
        assert refused(lambda: fetcher.fetch(item("marked00000"), 64)).reason == Reason.ADDRESS
    assert not tube.tunnels


@pytest.mark.parametrize(
    "place", ["http://169.254.169.254/latest/meta-data", "https://example.org/", "https://notyoutube.com/"]
)
def test_no_other_host_is_requested_through_a_proxy(
    tube: Tube, fetch: Callable[[Video], Media], place: str
) -> None:
    tube.redirect = place  # what the far side of a proxy connects to, no guard of ours would see
    assert refused(lambda: fetch(Video("marked00000"))).reason == Reason.ADDRESS
    assert {host.rpartition(":")[0].split(".", 1)[1] for host, _ in tube.tunnels} <= {
        "youtube.com",
        "googlevideo.com",
    }


@pytest.mark.parametrize("recycle_items", [500, 1])
def test_a_cooldown_of_a_route_outlives_the_process(
    tube: Tube, youtube: YoutubeConfig, tmp_path: Path, recycle_items: int
) -> None:
    (tmp_path / "proxies").write_text(
        f"http://one:{PASSWORD}@{tube.address}\nhttp://two:{PASSWORD}@{tube.address}\n"
    )
    tube.add(
        Video("blocked0000", playability=says("LOGIN_REQUIRED", "Sign in to confirm you’re not a bot")),
        Video("marked00000"),
    )
    ours = network(tube, recycle_items=recycle_items)
    with Fetcher(
        ours, tmp_path / "spool", ("CC-BY-3.0",), {"youtube": dataclasses.replace(youtube, rest_s=600)}
    ) as fetcher:
        assert refused(lambda: fetcher.fetch(item("blocked0000"), 64)).reason == Reason.BOT_CHECK
        first, count = {way for _, way in tube.tunnels}, len(tube.tunnels)
        for _ in range(2):
            fetcher.fetch(item("marked00000"), 64)
        assert first.isdisjoint(way for _, way in tube.tunnels[count:]) and len(first) == 1
        assert refused(lambda: fetcher.fetch(item("blocked0000"), 64)).reason == Reason.BOT_CHECK
        asked = len(tube.tunnels)
        cooldowns = dict(fetcher.cooldowns.until_s)
        assert (
            "cools down" in refused(lambda: fetcher.fetch(item("marked00000"), 64)).detail
            and len(tube.tunnels) == asked
        )
        assert (
            "cools down" in refused(lambda: fetcher.list_site("youtube", "ytsearch3:rain")).detail
            and len(tube.tunnels) == asked
        )
        assert fetcher.cooldowns.until_s == cooldowns and PASSWORD not in str(cooldowns), (
            "a running cooldown is never extended"
        )


class Timed(list[Any]):
    """What was asked, and when."""

    def __init__(self) -> None:
        super().__init__()
        self.when_s: list[float] = []

    def append(self, asked: Any) -> None:
        self.when_s.append(time.monotonic())
        super().append(asked)


def test_sleeps_come_before_extractions_and_downloads(
    tube: Tube, youtube: YoutubeConfig, tmp_path: Path
) -> None:
    slow = dataclasses.replace(youtube, sleep_requests_s=0.7, sleep_s=1.2, max_sleep_s=1.3)
    tube.add(Video("marked00000"))
    tube.requests = timed = Timed()
    with Fetcher(network(tube), tmp_path / "spool", ("CC-BY-3.0",), {"youtube": slow}) as fetcher:
        fetcher.fetch(item("marked00000"), 64)
        fetcher.fetch(item("marked00000"), 64)
    paths = [path.split("?")[0].rsplit("/", 1)[1] for _, path, _ in timed]
    assert paths == ["watch", "player", "picture", "sound"] * 2
    gaps = [later - earlier for earlier, later in zip(timed.when_s, timed.when_s[1:], strict=False)]
    least = {"watch": 0.7, "player": 0.7, "picture": 1.2, "sound": 1.2}
    assert [gap >= least[path] for gap, path in zip(gaps, paths[1:], strict=True)] == [True] * 7


def test_cookies_go_to_youtube_alone_and_their_file_is_never_written(
    tube: Tube, youtube: YoutubeConfig, fetch: Callable[[Video], Media]
) -> None:
    before = Path(youtube.cookies_file).read_bytes()
    for id in ("marked00000", "marked00001"):
        fetch(Video(id))
    assert all((COOKIE in cookies) == ("youtube.com" in host) for host, _, cookies in tube.requests)
    assert Path(youtube.cookies_file).read_bytes() == before


@pytest.mark.parametrize(
    "path",
    [
        "missing.txt",
        "https://example.org/watch?v=video000000",
        "https://yewtu.be/watch?v=video000000",
        "ftp://youtube.com/watch?v=video000000",
    ],
)
def test_a_target_that_is_not_youtube_is_one_clear_line(path: str) -> None:
    with pytest.raises(UserError, match="source.path="):
        targets(path)


def test_cookies_without_a_javascript_runtime_are_warned_about(
    youtube: YoutubeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """And it is still so in the yt-dlp that is installed: no client takes cookies and needs no script."""
    clients = [client for name, client in INNERTUBE_CLIENTS.items() if not name.startswith("_")]
    assert not any(client["SUPPORTS_COOKIES"] and not client["REQUIRE_JS_PLAYER"] for client in clients)
    for config, lines in ((youtube, 1), (YoutubeConfig(), 0)):
        caplog.clear()
        enumerate_youtube("ytsearch5:rain", config, FetchConfig(), Path("unused"))
        assert sum("JavaScript runtime" in line for line in caplog.messages) == lines
