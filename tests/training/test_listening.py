"""The page to listen to: complete, split, and harmless whatever pictures are called."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from unittest import mock
from urllib.parse import unquote

import pytest

from configs.load import UserError
from tests.fakes.browser import look_at
from tests.fakes.chain import Chain, frames_of
from training.generate import GenerateConfig, generate

LINK = re.compile(r'(?:src|href)="([^"]*)"')


def settings_of(chain: Chain, folder: Path, count: int) -> GenerateConfig:
    frames_of(chain, folder / "frames", count)
    return GenerateConfig(
        model=chain.diffusion,
        images=f"{folder}/frames",
        output=f"{folder}/out",
        vocoder=chain.vocoder,
        steps=1,
        takes=2,
        threads=1,
    )


def test_every_picture_has_its_takes_and_every_link_leads_to_a_file(chain: Chain, tmp_path: Path) -> None:
    settings = settings_of(chain, tmp_path, 3)
    (tmp_path / "frames/bad.jpg").write_bytes(b"no picture")
    with mock.patch("training.listening.PICTURES_PER_PAGE", 2):
        found = generate(settings, progress=False)
    assert found["page"] == f"{tmp_path}/out/index.html"
    # moved: links are relative
    moved = shutil.move(tmp_path / "out", tmp_path / "moved")
    pages = [(moved / name).read_text() for name in ("index.html", "page-2.html")]
    assert not (moved / "page-3.html").exists()
    assert [page.count('class="card"') for page in pages] == [2, 2]
    assert "6 sounds of 4 pictures" in pages[0] and "no sound: unsupported: not a picture" in pages[0]
    links = [link for page in pages for link in LINK.findall(page)]
    embedded = [link for link in links if link.startswith("data:image/jpeg;base64,")]
    assert len(embedded) == 3
    files = [link for link in links if link not in embedded]
    assert len(files) == 2 * 6 + 2  # of each sound the wav and the spectrogram, and a link to the other page
    assert all((moved / unquote(link)).is_file() for link in files)


def test_no_name_is_markup_or_a_link_of_its_own(chain: Chain, tmp_path: Path) -> None:
    settings = settings_of(chain, tmp_path, 1)
    (frame,) = (tmp_path / "frames").iterdir()
    folder = tmp_path / "frames/javascript:alert(1)"
    folder.mkdir()
    frame.rename(folder / '"><script>alert(1)<|script>.jpg')
    page = Path(generate(settings, progress=False)["page"]).read_text()
    assert "<script" not in page
    assert all(link.startswith(("./", "data:image/jpeg;base64,")) for link in LINK.findall(page))
    assert "default-src 'none'" in page


def test_a_browser_plays_and_shows_all_of_it_on_a_telephone(chain: Chain, tmp_path: Path) -> None:
    settings = settings_of(chain, tmp_path, 2)
    first, _ = sorted((tmp_path / "frames").iterdir())
    # a name that no line holds
    first.rename(tmp_path / "frames" / ("rain_on_a_roof_" * 12 + "#1 100%.jpg"))
    (tmp_path / "frames/bad.jpg").write_bytes(b"no picture")
    page = Path(generate(settings, progress=False)["page"])
    seen = look_at(page, width_px=390)
    assert not seen["errors"] and not seen["scripts"]
    assert seen["players"] == [pytest.approx(1.6, abs=0.01)] * 4
    kinds = [kind for kind, *_ in seen["pictures"]]
    assert sorted(kinds) == ["picture"] * 2 + ["spectrogram"] * 4
    assert all(width_px > 0 and height_px >= 80 for _, width_px, height_px in seen["pictures"])
    assert seen["scroll_px"] == 390 and not seen["beyond"]


def test_a_page_of_somebody_else_is_not_overwritten(chain: Chain, tmp_path: Path) -> None:
    settings = settings_of(chain, tmp_path, 1)
    page = tmp_path / "out/index.html"
    page.parent.mkdir()
    page.write_text("mine")
    with pytest.raises(UserError, match=r"out: holds another index.html; give page=false"):
        generate(settings, progress=False)
    assert generate(replace(settings, page=False), progress=False)["page"] == ""
    assert page.read_text() == "mine" and not list(page.parent.glob("*.png"))
    page.unlink()
    # what a run without a page left out is made when there is one
    assert generate(settings, progress=False)["made"] == 0
    assert len(list(page.parent.glob("*.spectrogram.png"))) == 2
