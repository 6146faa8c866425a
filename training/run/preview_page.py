"""What previews show, as a page of the run: `<run>/previews/index.html`, the newest step first, anywhere.

    page = PreviewPage(store)
    page.add(200, previews)              # by rank 0: the files of a step, then the page
    page.drop_after(150)                 # these steps will be made again

    previews/step-00000200/<key>.wav, .png      what the weights of that step make of each sample
    previews/truth/<key>.wav, .png              beside it, once
    previews/index.html                         links are relative: the folder can be copied or served

People watch this and nothing depends on it: what a store or a full disk refuses is missing, and logged. Of
samples that are shown no longer, because they were taken down, everything here is deleted.
"""

import io
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import quote

import jinja2
import soundfile

from cluster.storage import Store
from ingest.pages.spectrogram import spectrogram_png
from training.run.preview import Drawn

log = logging.getLogger(__name__)
FOLDER = "previews"
INDEX = f"{FOLDER}/index.html"
TRUTH = "truth"
TEMPLATE = Path(__file__).parent / "previews.html.j2"
# more steps make a page that no browser likes; their files stay
STEPS_SHOWN = 100
SOUND = re.compile(rf"{FOLDER}/(?P<place>{TRUTH}|step-(?P<step>\d+))/(?P<key>[^/]+)\.(?:wav|png)")


class PreviewPage:
    """The page of one run, with one writer."""

    def __init__(self, store: Store):
        self.store = store

    def add(self, step: int, previews: Iterable[Drawn]) -> None:
        """The files of a step, and the page with it."""
        try:
            self._add(step, list(previews))
        except OSError as error:
            log.warning("%s lacks step %d: %s", INDEX, step, error)

    def _add(self, step: int, previews: list[Drawn]) -> None:
        present = set(self.store.list(FOLDER))
        keys = {_key_and_kind(drawn)[0] for drawn in previews}
        gone = {name for name in present if (found := SOUND.fullmatch(name)) and found["key"] not in keys}
        for name in gone:
            self.store.delete(name)
        for drawn in previews:
            key, kind = _key_and_kind(drawn)
            base = f"{FOLDER}/{TRUTH if kind == TRUTH else _folder(step)}/{key}"
            # the truth of a sample is the same at every step
            if kind != TRUTH or f"{base}.wav" not in present:
                for suffix, data in _files_of(drawn).items():
                    self.store.replace(f"{base}{suffix}", data)
                    present.add(f"{base}{suffix}")
        self._write(present - gone)

    def drop_after(self, step: int) -> None:
        """Deletes what is of later steps."""
        try:
            names = set(self.store.list(FOLDER))
            later = {name for name in names if _step_of(name) > step}
            for name in later:
                self.store.delete(name)
            if later:
                self._write(names - later)
        except OSError as error:
            log.warning("%s still shows steps after %d: %s", INDEX, step, error)

    def _write(self, names: set[str]) -> None:
        """The page of these files, last: it never links to what is not there yet."""
        places: dict[str, list[str]] = {}
        for name in sorted(names):
            found = SOUND.fullmatch(name)
            if found and name.endswith(".wav"):
                places.setdefault(found["place"], []).append(found["key"])
        steps = sorted(places.keys() - {TRUTH}, key=_step_in, reverse=True)
        shown = [*([TRUTH] if TRUTH in places else []), *steps[:STEPS_SHOWN]]
        environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        html = environment.from_string(TEMPLATE.read_text()).render(
            run=self.store.uri.rstrip("/").rsplit("/", 1)[-1],
            newest=_step_in(steps[0]) if steps else 0,
            left_out=max(0, len(steps) - STEPS_SHOWN),
            sections=[_section(place, places[place]) for place in shown],
        )
        self.store.replace(INDEX, html.encode())


def _section(place: str, keys: Iterable[str]) -> Mapping[str, object]:
    title = TRUTH if place == TRUTH else f"step {_step_in(place):,}"
    return {"title": title, "sounds": [{"key": key, "url": f"./{place}/{quote(key)}"} for key in keys]}


def _key_and_kind(drawn: Drawn) -> tuple[str, str]:
    """Of its name, such as clip_3/drawn."""
    key, _, kind = drawn.name.rpartition("/")
    return key, kind


def _files_of(drawn: Drawn) -> dict[str, bytes]:
    """The sound, and its spectrogram, by suffix."""
    wav = io.BytesIO()
    soundfile.write(wav, drawn.wav, drawn.sample_rate_hz, subtype="PCM_16", format="WAV")
    return {".wav": wav.getvalue(), ".png": spectrogram_png(drawn.wav)}


def _folder(step: int) -> str:
    return f"step-{step:08d}"


def _step_in(folder: str) -> int:
    return int(folder.removeprefix("step-"))


def _step_of(name: str) -> int:
    """0 for what is of no step."""
    found = SOUND.fullmatch(name)
    return int(found["step"]) if found and found["step"] else 0
