"""The documentation is a site: it builds offline without a warning, every link leads somewhere, nothing is fetched."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.conftest import ROOT
from tests.fakes.browser import look_at
from tests.test_architecture import house


class Page(HTMLParser):
    """`ids` of a page, what it `names` by href or src, and what a browser `loads` to show it."""

    def __init__(self, path: Path):
        super().__init__()
        self.ids: set[str] = set()
        self.names: set[str] = set()
        self.loads: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids.add(given.get("id", ""))
        named = {given[name] for name in ("href", "src") if name in given}
        self.names |= named
        self.loads |= named if tag != "a" else set()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "site"
    done = build(ROOT / "mkdocs.yml", folder)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    return folder


def build(config: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(config)]
    # no way out: a proxy that is not there
    offline = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    environment = {"PATH": "/usr/bin:/bin", "NO_MKDOCS_2_WARNING": "1", **offline}
    return subprocess.run(
        [*command, "--site-dir", str(folder)], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def test_every_link_leads_somewhere(site: Path) -> None:
    pages = {path: Page(path) for path in site.glob("*.html") if path.name != "404.html"}
    assert len(pages) == len(list((ROOT / "docs").glob("*.md")))
    lost = []
    for path, page in pages.items():
        for name in page.names:
            url = urlsplit(name)
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            known = pages[target].ids if target in pages else {url.fragment}
            if not url.scheme and (not target.is_file() or (url.fragment and url.fragment not in known)):
                lost.append(f"{path.name}: {name}")
    assert lost == []


def test_nothing_comes_from_the_web(site: Path) -> None:
    for path in site.glob("*.html"):
        assert [name for name in Page(path).loads if urlsplit(name).netloc] == [], path.name
    for sheet in site.glob("assets/**/*.css"):
        assert not re.search(r"(url\(|@import )[\"']?(https?:)?//", sheet.read_text()), sheet.name


def test_a_page_that_is_named_in_prose_is_a_link(site: Path) -> None:
    assert "recipes.html" in Page(site / "generate.html").names


def test_a_broken_link_or_a_page_outside_the_menu_fails_the_build(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    config = (ROOT / "mkdocs.yml").read_text().partition("nav:\n  - Stillsound")[0]
    (tmp_path / "mkdocs.yml").write_text(f"{config}nav: [index.md]\n")
    page = tmp_path / "docs/index.md"
    page.write_text("# A\n\n[a](b.md) [a](#b)\n")
    (tmp_path / "docs/lost.md").write_text("# Lost\n")
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode == 1 and done.stderr.count("WARNING") == 3, done.stderr
    page.write_text("# A\n\n[a](#a) [a](lost.md)\n")
    (tmp_path / "mkdocs.yml").write_text(f"{config}nav: [index.md, lost.md]\n")
    assert build(tmp_path / "mkdocs.yml", tmp_path / "site").returncode == 0


def test_troubleshooting_quotes_what_is_really_said() -> None:
    page = (ROOT / "docs/troubleshooting.md").read_text()
    quoted = re.findall(r"^\| `(.+?)`.* \| .* \|$", page, re.MULTILINE)
    assert len(quoted) > 10
    said = "\n".join(text for path, text in house().items() if not path.startswith("tests/"))
    # "…" stands for what differs; one is Ray's
    parts = [part.strip() for words in quoted for part in words.split("…") if "Authentication" not in words]
    assert [part for part in parts if part.strip(" :") not in said] == []


@pytest.mark.parametrize("name", ["index", "settings"])
def test_a_page_is_whole_on_a_phone(site: Path, name: str) -> None:
    seen = look_at(site / f"{name}.html", 390)
    assert seen["scroll_px"] <= 390 and all(width for _, width, _ in seen["pictures"])
