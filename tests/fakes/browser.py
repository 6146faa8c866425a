"""A page as a headless Chromium shows it, opened from its file as a user does.

    seen = look_at(folder / "index.html", width_px=390)
    seen["players"]                                        # seconds of each sound, None where none loaded

Skips the test where no Chromium is installed (apt-get install chromium).
"""

import html
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, TypedDict

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE_MS = 20_000
# around the page, whose own rules let no script run in it
FRAME = """<!doctype html><meta charset="utf-8">
<iframe id="page" style="width:WIDTHpx; height:20000px; border:0" src="PAGE"></iframe><pre id="seen"></pre>
<script>
const frame = document.getElementById("page");
const errors = [];
const settled = (element, event) => new Promise(done => {
  element.addEventListener(event, done);
  element.addEventListener("error", done);
});
frame.onload = async () => {
  const page = frame.contentDocument, edge = frame.contentWindow.innerWidth + 0.5;
  page.addEventListener("securitypolicyviolation", event => errors.push(event.violatedDirective));
  const players = [...page.querySelectorAll("audio")];
  await Promise.all(players.map(player => {
    const end = settled(player, "loadedmetadata");
    player.preload = "metadata";
    player.load();
    return end;
  }));
  const pictures = [...page.images];
  await Promise.all(pictures.map(picture => picture.complete || settled(picture, "load")));
  const box = element => element.getBoundingClientRect();
  const all = [...page.querySelectorAll("body, body *")];
  document.getElementById("seen").textContent = JSON.stringify({
    errors,
    scripts: page.scripts.length,
    players: players.map(player => player.duration),
    pictures: pictures.map(picture => [picture.className, picture.naturalWidth, box(picture).height]),
    beyond: all.filter(one => box(one).right > edge).map(one => one.tagName),
    scroll_px: page.documentElement.scrollWidth,
  });
};
</script>
"""


class Seen(TypedDict):
    """`players`: seconds of each. `pictures`: class, pixels of the file's width, shown height in px. `beyond`:
    elements that reach over the right edge; `scroll_px`: how wide the page is. `errors`: what the browser
    refused to load, or complained of.
    """

    errors: list[str]
    scripts: int
    players: list[float | None]
    pictures: list[tuple[str, int, float]]
    beyond: list[str]
    scroll_px: int


def look_at(page: Path, width_px: int) -> Seen:
    """The page at that width of its window, all sounds and pictures asked for."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("needs a Chromium")
    frame = page.parent / f"{page.stem}-in-frame.html"
    frame.write_text(FRAME.replace("WIDTH", str(width_px)).replace("PAGE", page.name))
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, "--headless", "--disable-gpu", f"--user-data-dir={profile}"]
        command += ["--allow-file-access-from-files", "--enable-logging=stderr"]
        # Chromium refuses its sandbox to root
        command += ["--no-sandbox"] if os.geteuid() == 0 else []
        command += [f"--virtual-time-budget={PATIENCE_MS}", "--dump-dom", frame.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    frame.unlink()
    found = re.search(r'<pre id="seen">(.+?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr
    seen: Any = json.loads(html.unescape(found[1]))
    complaints = [line for line in done.stderr.splitlines() if ":CONSOLE:" in line or "CONSOLE(" in line]
    seen["errors"] += complaints
    return seen  # type: ignore[no-any-return]
