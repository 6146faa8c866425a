"""Secrets are never written, to an index, a member, a report, a card, a log or Ray's metadata; and untrusted
text cannot control a terminal.

Addresses, redirects, bodies, media, archives and pages have tests of their own in tests/ingest/fetch,
tests/ingest/clip and tests/ingest/sources.
"""

import logging
from pathlib import Path
from typing import Any
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
BEFORE = ("?", "?v=1&", "#", "?a;")
AFTER = ("", "&t=3", "#x", " and more")


# --- Secrets ------------------------------------------------------------------------------------------------


@given(name=st.sampled_from(NAMES), before=st.sampled_from(BEFORE), after=st.sampled_from(AFTER))
def test_a_secret_parameter_is_masked_and_nothing_else(name: str, before: str, after: str) -> None:
    masked = f"https://example.org/watch{before}{name}=***{after}"
    assert without_tokens(masked.replace("***", SECRET)) == masked == without_tokens(masked)


@given(name=st.sampled_from(NAMES), before=st.sampled_from(BEFORE), after=st.sampled_from(AFTER))
def test_urls_of_different_secrets_can_be_masked_apart(name: str, before: str, after: str) -> None:
    url = f"https://example.org/watch{before}{name}={SECRET}{after}"
    masked = without_tokens(url, apart=True)
    assert SECRET not in masked
    assert masked != without_tokens(url.replace(SECRET, "other"), apart=True)


@pytest.mark.parametrize(
    "url",
    [
        "https://www.youtube.com/watch?v=abc&list=x",
        "https://a.org/?keyword=rain&tokens=3",
        "https://a.org/token/3",
    ],
)
def test_a_parameter_without_a_secret_stays(url: str) -> None:
    assert without_tokens(url) == url


def test_the_secret_of_a_fetched_url_is_only_in_the_work_list(
    hostile: HostileSite, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """There it has to be: a resumed scrape fetches by it."""
    synth(SynthConfig(str(tmp_path / "world"), videos=1, webm=0, hls=0, dash=0, stills=0, scenes_per_video=2))
    video = next((tmp_path / "world/media").glob("*.mp4"))
    query = f"X-Amz-Signature={SECRET}&access_token={SECRET}"
    hostile.answers[f"/a.mp4?{query}"] = body(video.read_bytes(), "video/mp4")
    hostile.answers[f"/missing.mp4?{query}"] = body(b"", status=404)
    address = f"127.0.0.1:{hostile.server_address[1]}"
    urls = [f"http://{address}/{name}.mp4?{query}\n" for name in ("a", "missing")]
    (tmp_path / "urls.txt").write_text("".join(urls))
    output = tmp_path / "clips"
    config = ScrapeConfig(
        str(output),
        SourceConfig(str(tmp_path / "urls.txt"), "urls", "own"),
        clip=ClipConfig(1.6),
        frame=FrameConfig(64),
        network=FetchConfig(allow_private=[address], retries=1),
        workers=0,
    )
    with caplog.at_level(logging.DEBUG):
        summary = scrape(config, progress=False)
        write_report(ReportConfig(str(output), card=True))
    # one URL gave clips, the other a refusal: both kinds of row were written
    assert summary.counts["kept"] >= 1
    assert sum(summary.counts.values()) > summary.counts["kept"]
    written = [path for path in output.rglob("*") if path.is_file() and "worklist" not in path.parts]
    assert len(written) > 6
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]
    # an index is compressed: its text is not in its bytes
    rows = str(list(Dataset.open(str(output)).iter_rows()))
    assert SECRET not in rows and "X-Amz-Signature=***" in rows
    assert SECRET not in caplog.text


@pytest.mark.parametrize("uri", [f"s3://key:{SECRET}@bucket/x", f"s3://{SECRET}@bucket"])
def test_keys_in_a_uri_are_refused_without_being_quoted(uri: str) -> None:
    with pytest.raises(UserError, match="AWS_SECRET_ACCESS_KEY") as caught:
        open_store(uri)
    assert SECRET not in str(caught.value)


def test_a_job_with_a_password_in_its_command_is_not_submitted() -> None:
    command = ["python", "-m", "ingest", "scrape", f"network.proxy=http://me:{SECRET}@proxy:3128"]
    with pytest.raises(UserError, match="network.proxy") as caught:
        submission(command, "http://head:8265")
    assert SECRET not in str(caught.value)


# --- Untrusted text on a terminal ---------------------------------------------------------------------------

# rich's markup, ESC and CSI sequences, a right-to-left override, a bell
UNTRUSTED = "no [/tmp/x] here \x1b[2J\x9b31m\u202e[red]x[/red]\x07 end"


def test_markup_in_a_summary_is_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    show_units(summary_of(UNTRUSTED))
    output = capsys.readouterr().out
    assert "no [/tmp/x] here" in output and "[red]x[/red]" in output


def test_control_characters_in_a_summary_are_removed(capsys: pytest.CaptureFixture[str]) -> None:
    show_units(summary_of(UNTRUSTED))
    output = capsys.readouterr().out
    assert printable(output) == output


def summary_of(error: str) -> dict[str, Any]:
    """Of units one of which failed."""
    return {
        "units_done": 1,
        "units_before": 0,
        "counts": {},
        "num_bytes": 0,
        "seconds": 0.0,
        "cpu_s": 0.0,
        "deferred": ["u0"],
        "deferred_counts": {"refused:network": 1},
        "failed": {"u1": error},
    }


def test_control_characters_in_the_log_are_removed() -> None:
    record = logging.LogRecord("x", logging.WARNING, "", 0, "two\nlines of %s", (UNTRUSTED,), None)
    line = Inert("%(message)s").format(record)
    assert line.startswith("two\nlines of no [/tmp/x] here")
    assert "\x1b" not in line and "\u202e" not in line


def test_control_characters_in_a_refusal_are_removed() -> None:
    refusal = Refused(Reason.EXTRACTOR, UNTRUSTED)
    assert printable(str(refusal)) == str(refusal)
    assert printable(refusal.detail) == refusal.detail


@pytest.mark.parametrize("kind", [UserError, StoppedError])
def test_control_characters_in_the_last_line_are_removed(
    kind: type[Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    app = typer.Typer()

    @app.command()
    def fail() -> None:
        raise kind(UNTRUSTED)

    with patch("sys.argv", ["fail"]), pytest.raises(SystemExit):
        run_app(app)
    line = capsys.readouterr().err.removesuffix("\n")
    assert line.startswith("error: no [/tmp/x] here") and "\n" not in line
    assert printable(line) == line
