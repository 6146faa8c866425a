"""What crosses the pipe to the fetch child: the parent and the child agree, and the parent needs no yt-dlp."""

import json
import subprocess
import sys
from pathlib import Path

from ingest.fetch.access import YoutubeConfig
from ingest.fetch.fetcher import Fetcher
from ingest.fetch.messages import ChildSettings
from ingest.fetch.process import FetchState, _state
from ingest.fetch.settings import FetchConfig
from tests.conftest import ROOT


def test_the_types_load_no_yt_dlp() -> None:
    code = "import sys, ingest.fetch.fetcher, ingest.fetch.messages; sys.exit('yt_dlp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def state_of(fetcher: Fetcher) -> FetchState:
    """What a child makes of the line that its parent sends first."""
    return _state(json.loads(json.dumps(fetcher._settings())))


def test_the_first_line_has_every_field_of_its_type(tmp_path: Path) -> None:
    line = Fetcher(FetchConfig(), tmp_path)._settings()
    assert line.keys() == ChildSettings.__annotations__.keys()


def test_a_child_starts_from_what_the_one_before_learnt(tmp_path: Path) -> None:
    youtube = YoutubeConfig(max_results=7)
    fetcher = Fetcher(FetchConfig(retries=1), tmp_path, allow=("own",), sites={"youtube": youtube})
    fetcher.cooldowns.add("a host", 60.0)
    state = state_of(fetcher)
    assert (state.config, state.allow, state.site_configs["youtube"]) == (fetcher.config, ("own",), youtube)
    assert state.cooldowns.remaining_s("a host") > 59.0
