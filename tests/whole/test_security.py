"""Nothing that gives access is written down: not in an index, a member, a report, a card, a log or Ray's
metadata.

Addresses, redirects, bodies, media, archives and texts have tests of their own: test_guard, test_fetch,
test_hostile, test_sandbox, test_sources, test_page.
"""

import logging
from pathlib import Path
from unittest.mock import patch

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from cluster.dataset import Dataset
from cluster.record import show_units
from cluster.storage import open_store
from cluster.submit import submission
from configs.load import StoppedError, UserError, run_app
from configs.terminal import Inert, printable
from ingest.clip.clipper import ClipConfig, FrameConfig
from ingest.fetch.settings import FetchConfig
from ingest.report import ReportConfig, write_report
from ingest.sample import Reason, Refused, without_tokens
from ingest.scrape import ScrapeConfig, scrape
from ingest.sources.settings import SourceConfig
from ingest.synth import SynthConfig, synth
from tests.ingest.fetch.test_fetcher import HostileSite, body
from tests.ingest.fetch.test_fetcher import hostile as hostile

SECRET = "hunter2hunter2"
NAMES = (
    "token",
    "access_token",
    "X-Amz-Signature",
    "X-Amz-Security-Token",
    "X-Amz-Credential",
    "sig",
    "key",
    "api_key",
    "accessToken",
    "jwt",
)
BEFORE, AFTER = ("?", "?v=1&", "#", "?a;"), ("", "&t=3", "#x", " and more")


@given(name=st.sampled_from(NAMES), before=st.sampled_from(BEFORE), after=st.sampled_from(AFTER))
def test_a_parameter_that_gives_access_is_masked_and_nothing_else(name: str, before: str, after: str) -> None:
    masked = f"https://example.org/watch{before}{name}=***{after}"
    url = masked.replace("***", SECRET)
    assert without_tokens(url) == masked == without_tokens(masked)
    apart = [without_tokens(text, apart=True) for text in (url, url.replace(SECRET, "other"))]
    assert apart[0] != apart[1] and SECRET not in apart[0]


@pytest.mark.parametrize(
    "url",
    [
        "https://www.youtube.com/watch?v=abc&list=x",
        "https://a.org/?keyword=rain&tokens=3",
        "https://a.org/token/3",
    ],
)
def test_what_gives_no_access_stays(url: str) -> None:
    assert without_tokens(url) == url


def test_a_signed_url_is_fetched_and_nowhere_shown(
    hostile: HostileSite, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The work list alone knows it: whoever resumes has to."""
    synth(SynthConfig(str(tmp_path / "world"), videos=1, webm=0, hls=0, dash=0, stills=0, scenes_per_video=2))
    video = next((tmp_path / "world/media").glob("*.mp4"))
    query = f"X-Amz-Signature={SECRET}&access_token={SECRET}"
    hostile.answers[f"/a.mp4?{query}"] = body(video.read_bytes(), "video/mp4")
    hostile.answers[f"/gone.mp4?{query}"] = body(b"", status=404)
    place = f"127.0.0.1:{hostile.server_address[1]}"
    (tmp_path / "urls.txt").write_text(
        "".join(f"http://{place}/{name}.mp4?{query}\n" for name in ("a", "gone"))
    )
    settings = {
        "clip": ClipConfig(1.6),
        "frame": FrameConfig(64),
        "network": FetchConfig(allow_private=[place], retries=1),
        "workers": 0,
    }
    output = tmp_path / "clips"
    with caplog.at_level(logging.DEBUG):
        summary = scrape(
            ScrapeConfig(str(output), SourceConfig(str(tmp_path / "urls.txt"), "urls", "own"), **settings),
            progress=False,
        )  # type: ignore[arg-type]
        write_report(ReportConfig(str(output), card=True))
    assert summary.counts["kept"] >= 1 and sum(summary.counts.values()) > summary.counts["kept"]
    written = [path for path in output.rglob("*") if path.is_file() and "worklist" not in path.parts]
    assert len(written) > 6 and not [path for path in written if SECRET.encode() in path.read_bytes()]
    rows = list(Dataset.open(str(output)).iter_rows())
    assert SECRET not in str(rows) and "X-Amz-Signature=***" in str(rows) and SECRET not in caplog.text


@pytest.mark.parametrize("uri", [f"s3://key:{SECRET}@bucket/x", f"s3://{SECRET}@bucket"])
def test_keys_in_a_uri_are_refused_without_being_quoted(uri: str) -> None:
    with pytest.raises(UserError, match="AWS_SECRET_ACCESS_KEY") as caught:
        open_store(uri)
    assert SECRET not in str(caught.value)


def test_a_job_is_not_submitted_with_a_password_in_its_words() -> None:
    words = ["python", "-m", "ingest", "scrape", f"network.proxy=http://me:{SECRET}@proxy:3128"]
    with pytest.raises(UserError, match="network.proxy") as caught:
        submission(words, "http://head:8265")
    assert SECRET not in str(caught.value)


HOSTILE_WORDS = "no [/tmp/x] here \x1b[2J\x9b31m\u202e[red]x[/red]\x07 end"


def test_words_of_the_web_are_shown_as_they_are_and_move_no_cursor(
    capsys: pytest.CaptureFixture[str],
) -> None:
    summary = {"units_done": 1, "units_before": 0, "counts": {}, "num_bytes": 0, "seconds": 0.0, "cpu_s": 0.0}
    show_units(
        {
            **summary,
            "deferred": ["u0"],
            "deferred_counts": {"refused:network": 1},
            "failed": {"u1": HOSTILE_WORDS},
        }
    )
    shown = capsys.readouterr().out
    assert "no [/tmp/x] here" in shown and "[red]x[/red]" in shown and printable(shown) == shown


def test_words_of_the_web_are_inert_in_the_log_and_in_a_refusal() -> None:
    record = logging.LogRecord("x", logging.WARNING, "", 0, "two\nlines of %s", (HOSTILE_WORDS,), None)
    told = Inert("%(message)s").format(record)
    assert told.startswith("two\nlines of no [/tmp/x] here") and "\x1b" not in told and "\u202e" not in told
    refusal = Refused(Reason.EXTRACTOR, HOSTILE_WORDS)
    assert printable(str(refusal)) == str(refusal) and printable(refusal.detail) == refusal.detail


@pytest.mark.parametrize("kind", [UserError, StoppedError])
def test_words_of_the_web_are_inert_in_the_last_line(
    kind: type[Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    app = typer.Typer()

    @app.command()
    def fail() -> None:
        raise kind(HOSTILE_WORDS)

    with patch("sys.argv", ["fail"]), pytest.raises(SystemExit):
        run_app(app)
    line = capsys.readouterr().err.removesuffix("\n")
    assert line.startswith("error: no [/tmp/x] here") and "\n" not in line and printable(line) == line
