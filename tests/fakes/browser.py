"""A page as a headless Chromium shows it, opened from its file as a user does.

    seen = look_at(folder / "index.html", width_px=390)
    seen["players"]                                        # seconds of each sound, None where none loaded

Skips the test where no Chromium is installed (apt-get install chromium).
"""

import asyncio
import tempfile
from pathlib import Path
from typing import Any, TypedDict

from tests.fakes.devtools import open_browser

# all of a page is in sight, so that what loads when it is seen is loaded
TALL_PX = 20_000
# the protocol's own: the page's rules let no script of the page run
SCRIPT = """(async () => {
  const settled = (element, event) => new Promise(done => {
    element.addEventListener(event, done);
    element.addEventListener("error", done);
  });
  const edge = window.innerWidth + 0.5;
  const players = [...document.querySelectorAll("audio")];
  await Promise.all(players.map(player => {
    const end = settled(player, "loadedmetadata");
    player.preload = "metadata";
    player.load();
    return end;
  }));
  const pictures = [...document.images];
  await Promise.all(pictures.map(picture => picture.complete || settled(picture, "load")));
  const box = element => element.getBoundingClientRect();
  const all = [...document.querySelectorAll("body, body *")];
  return {
    scripts: document.scripts.length,
    players: players.map(player => player.duration),
    pictures: pictures.map(picture => [picture.className, picture.naturalWidth, box(picture).height]),
    beyond: all.filter(one => box(one).right > edge).map(one => one.tagName),
    scroll_px: document.documentElement.scrollWidth,
  };
})()"""


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
    return asyncio.run(_look(page, width_px))


async def _look(file: Path, width_px: int) -> Seen:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        async with open_browser(Path(folder)) as page:
            await page.show(file.as_uri(), width_px, height_px=TALL_PX)
            seen: Any = await page.run(SCRIPT)
            seen["errors"] = [*page.errors, *page.failures]
    return seen  # type: ignore[no-any-return]
