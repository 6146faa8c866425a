"""What is read of YouTube in a process that only scrapes."""

import subprocess
import sys

from tests.conftest import ROOT


def test_a_scrape_actor_imports_no_yt_dlp() -> None:
    program = "import sys, ingest.scrape, ingest.sources.youtube; print('yt_dlp' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
