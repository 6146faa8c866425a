"""What is read of YouTube in a process that only scrapes."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from configs.load import UserError, load_config
from ingest.fetch.access import YoutubeConfig, parse_extractor_args, redacted, secrets_of, youtube_egress
from ingest.fetch.web import Web
from ingest.fetch.youtube import VIDEO_EXTRACTORS
from ingest.scrape import ScrapeConfig
from tests.conftest import ROOT
from tests.fakes.tube import CHANNEL, Tube
from tests.ingest.sources.test_youtube import COOKIE, PASSWORD, TOKEN, network
from tests.ingest.sources.test_youtube import streams as streams
from tests.ingest.sources.test_youtube import tube as tube
from tests.ingest.sources.test_youtube import youtube as youtube


def test_a_scrape_actor_imports_no_yt_dlp() -> None:
    program = "import sys, ingest.scrape, ingest.sources.youtube; print('yt_dlp' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("cookies_file", f'[{{"name": "SID", "value": "{COOKIE}"}}]', "entry 1 is not in Netscape"),
        ("cookies_file", f".youtube.com TRUE / TRUE 0 SID {COOKIE}", "entry 1 is not in Netscape"),
        (
            "proxies_file",
            f"http://proxy.example:8080\nsocks4://me:{PASSWORD}@proxy.example:1080\n",
            "line 2 is not http://",
        ),
        ("proxies_file", f"me:{PASSWORD}@proxy.example:80\n", "line 1 is not http://"),
        ("po_tokens_file", None, "cannot be read"),
        ("po_tokens_file", f"{TOKEN}\n", "line 1 is not CLIENT.CONTEXT"),
    ],
)
def test_an_unusable_file_of_secrets_is_never_quoted(
    tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / "secrets").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        secrets_of(YoutubeConfig(**{name: str(tmp_path / "secrets")}))  # type: ignore[arg-type]
    assert PASSWORD not in str(caught.value) and COOKIE not in str(caught.value)


def test_secrets_are_redacted(tube: Tube, youtube: YoutubeConfig) -> None:
    web = Web(network(tube), VIDEO_EXTRACTORS, youtube_egress(youtube, listing=False))
    text = redacted(
        f"at http://someone:{PASSWORD}@{tube.address} with {COOKIE} and visionos.gvs+{TOKEN}", web.secrets()
    )
    assert not any(secret in text for secret in (PASSWORD, COOKIE, TOKEN)) and text.startswith("at ***")


def test_settings_reach_yt_dlp(youtube: YoutubeConfig) -> None:
    ours = dataclasses.replace(
        youtube, extractor_args=["youtube:player-client=visionos,web;lang=en"], sleep_s=3, max_sleep_s=4
    )
    options = youtube_egress(ours, listing=False).options
    assert options["extractor_args"]["youtube"] == {
        "player_client": ["visionos", "web"],
        "lang": ["en"],
        "po_token": [f"visionos.gvs+{TOKEN}"],
    }
    assert (options["sleep_interval"], options["max_sleep_interval"]) == (3, 4)
    assert youtube_egress(ours, listing=True).options["playlist_items"] == "1:200", (
        "a long channel is not paged to its end"
    )
    assert parse_extractor_args(["youtubetab:skip=a\\,b,c"]) == {"youtubetab": {"skip": ["a,b", "c"]}}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("source.youtube.vouched_channels={'@someone': own}", "no channel id"),
        (f"source.youtube.vouched_channels={{{CHANNEL}: mine}}", "no license code; .*CC-BY-4.0"),
        ("source.youtube.extractor_args=['youtube:po_token=web.gvs+x']", "po_tokens_file"),
        ("source.youtube.extractor_args=[nonsense]", "youtube:name=value"),
        ("source.youtube.max_sleep_s=1", "max_sleep_s=1"),
        ("source.youtube.rest_s=-1", "rest_s=-1"),
    ],
)
def test_settings_that_cannot_work_are_refused(setting: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(ScrapeConfig, ["configs/ingest/youtube.yaml", setting])
