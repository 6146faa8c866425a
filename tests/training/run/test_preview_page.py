"""The page of previews: by step, of what is still shown, harmless to the run."""

import re
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from cluster.storage import open_store
from tests.fakes.browser import look_at
from training.run.preview import Drawn
from training.run.preview_page import PreviewPage

LINK = re.compile(r'src="([^"]*)"')


def drawn(key: str, kind: str, pitch_hz: float = 440.0) -> Drawn:
    wav = 0.5 * np.sin(2 * np.pi * pitch_hz * np.arange(3200) / 16000)
    return Drawn(f"{key}/{kind}", np.zeros((20, 64)), wav.astype(np.float32), 16000)


def previews(*keys: str) -> list[Drawn]:
    return [drawn(key, kind) for key in keys for kind in ("drawn", "truth")]


def names(uri: str) -> set[str]:
    return set(open_store(uri).list("previews"))


def test_a_browser_plays_each_step_and_the_truth_on_a_telephone(tmp_path: Path) -> None:
    long = "urls_" + "a_key_that_no_line_of_a_telephone_holds" * 3
    page = PreviewPage(open_store(str(tmp_path), writable=True))
    for step in (2, 10):
        page.add(step, previews(long, "b%20c#d"))
    html = (tmp_path / "previews/index.html").read_text()
    assert re.findall("<h2>(.*)</h2>", html) == ["truth", "step 10", "step 2"]
    seen = look_at(tmp_path / "previews/index.html", width_px=390)
    assert seen["players"] == [pytest.approx(0.2, abs=0.001)] * 6
    assert [kind for kind, width, height in seen["pictures"] if width and height > 80] == ["spectrogram"] * 6
    assert not seen["errors"] and not seen["scripts"] and seen["scroll_px"] == 390 and not seen["beyond"]


def test_steps_that_will_be_made_again_are_dropped(tmp_path: Path) -> None:
    store = open_store(str(tmp_path), writable=True)
    page = PreviewPage(store)
    for step in (2, 4):
        page.add(step, previews("a"))
    PreviewPage(store).drop_after(3)
    assert "step-00000004" not in str(names(store.uri)) and "step-00000002" in str(names(store.uri))
    assert "step 4" not in store.read("previews/index.html").decode()


def test_of_a_sample_that_was_taken_down_nothing_is_left(bucket: str) -> None:
    store = open_store(f"{bucket}/run", writable=True)
    page = PreviewPage(store)
    page.add(2, previews("a", "gone"))
    # the truth is written once
    with mock.patch.object(store, "replace", wraps=store.replace) as replace:
        page.add(4, previews("a"))
    assert [call.args[0].rpartition("/")[2] for call in replace.call_args_list] == [
        "a.wav",
        "a.png",
        "index.html",
    ]
    assert names(store.uri) == {
        f"previews/{name}"
        for place in ("truth", "step-00000002", "step-00000004")
        for name in (f"{place}/a.wav", f"{place}/a.png", "index.html")
    }
    html = store.read("previews/index.html").decode()
    assert "gone" not in html and len(LINK.findall(html)) == 6


def test_a_full_disk_costs_a_preview_and_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(str(tmp_path), writable=True)
    page = PreviewPage(store)
    page.add(2, previews("a"))
    with mock.patch.object(store, "replace", side_effect=OSError("No space left on device")):
        page.add(4, previews("a"))
    assert "previews/index.html lacks step 4: No space left on device" in caplog.text
    page.drop_after(0)
    assert "step 2" not in (tmp_path / "previews/index.html").read_text()


def test_a_page_of_very_many_steps_shows_the_newest(tmp_path: Path) -> None:
    page = PreviewPage(open_store(str(tmp_path), writable=True))
    with mock.patch("training.run.preview_page.STEPS_SHOWN", 2):
        for step in (1, 2, 10):
            page.add(step, [drawn("a", "drawn")])
    html = (tmp_path / "previews/index.html").read_text()
    assert "step 10" in html and "step 2" in html and "step 1<" not in html
    assert (
        "1 earlier steps are in this folder" in html and (tmp_path / "previews/step-00000001/a.wav").exists()
    )
