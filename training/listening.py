"""The page to listen to what generate made: each picture with its takes, as players and spectrograms.

    page = write_pages(folder, units, made, {"model": "out/demo/export"})    # "index.html"

Split over files of `PICTURES_PER_PAGE` pictures. Sounds and spectrograms are linked by paths below the
folder, so that it can be moved or served as it is; small pictures are in the page. It needs no network. Names
come from whoever named the pictures: they are escaped, and never a link with a scheme of their own.
"""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict
from urllib.parse import quote

import jinja2
import soundfile

from cluster.dataset import Dataset
from cluster.files import replacing
from cluster.shards import DamagedMemberError, read_member
from configs.load import UserError
from configs.terminal import printable
from training.sounds import SPECTROGRAM, Made, Sound, data_uri, write_spectrogram

INDEX = "index.html"
PICTURES_PER_PAGE = 50
# by which a page of ours is told from somebody's own
MARK = '<meta name="generator" content="stillsound generate">'
TEMPLATE = Path(__file__).parent / "listening.html.j2"


class Take(TypedDict):
    """A player of the page. `sound`, `spectrogram`: relative URLs."""

    title: str
    sound: str
    spectrogram: str


class Shown(TypedDict):
    """A picture of the page. `image`: a data URI, or "" where it could not be read: `problems` say why."""

    name: str
    image: str
    takes: list[Take]
    problems: list[str]


def check_page(folder: Path, mark: str = MARK) -> None:
    """`UserError` where the folder has an index.html that is not ours, with the `mark` of its verb."""
    page = folder / INDEX
    if page.is_file() and mark not in page.read_text(errors="replace"):
        raise UserError(f"output={folder}: holds another {INDEX}; give page=false, or another folder")


def write_pages(
    folder: Path, units: Dataset, made: dict[tuple[str, int], Made], heading: dict[str, str]
) -> str:
    """Writes all pages of the folder; returns the name of the first."""
    names = sorted({name for name, _ in made})
    count = max(1, -(-len(names) // PICTURES_PER_PAGE))
    # autoescape: names come from the web
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text())
    shown = _shown(folder, units, made)
    for number in range(1, count + 1):
        page = template.render(
            mark=MARK,
            heading=heading,
            pictures=list(itertools.islice(shown, PICTURES_PER_PAGE)),
            num_pictures=len(names),
            num_sounds=sum(one.tar is not None and one.thumbnail is not None for one in made.values()),
            number=number,
            pages=[page_name(each) for each in range(1, count + 1)],
        )
        with replacing(folder / page_name(number)) as partial:
            partial.write_text(page, encoding="utf-8")
    return INDEX


def page_name(number: int) -> str:
    """index.html, page-2.html, …"""
    return INDEX if number == 1 else f"page-{number}.html"


def _shown(folder: Path, units: Dataset, made: dict[tuple[str, int], Made]) -> Iterator[Shown]:
    """The pictures by name, each with its takes."""
    for name, keys in itertools.groupby(sorted(made), key=lambda key: key[0]):
        shown: Shown = {"name": _plain(name), "image": "", "takes": [], "problems": []}
        for key in keys:
            sound = made[key].sound
            if sound["path"]:
                shown["takes"].append(_take(folder, sound["path"], sound))
                shown["image"] = shown["image"] or _image(units, made[key])
            else:
                shown["problems"].append(_plain(f"{sound['reason']}: {sound['detail']}"))
        # the takes of a picture that cannot be read fail alike
        shown["problems"] = list(dict.fromkeys(shown["problems"]))
        yield shown


def _take(folder: Path, path: str, sound: Sound) -> Take:
    """A player; its spectrogram is made where a run without a page left it out."""
    spectrogram = path.removesuffix(".wav") + SPECTROGRAM
    wav = folder / path
    if wav.is_file() and not (folder / spectrogram).is_file():
        audio, _ = soundfile.read(os.fsencode(wav), dtype="float32")
        write_spectrogram(wav, audio)
    title = f"take {sound['take']}, seed {sound['seed']}"
    return {"title": title, "sound": relative_url(path), "spectrogram": relative_url(spectrogram)}


def relative_url(path: str) -> str:
    """A path below the folder as a URL, whatever bytes it has.

    >>> relative_url("javascript:x/a b.wav")
    './javascript%3Ax/a%20b.wav'
    """
    return f"./{quote(os.fsencode(path))}"


def _image(units: Dataset, made: Made) -> str:
    """The small picture; "" where it is missing or damaged, which costs the sound nothing."""
    if made.tar is None or made.thumbnail is None:
        return ""
    try:
        return data_uri(read_member(units.store, made.tar, made.thumbnail))
    except DamagedMemberError:
        return ""


def _plain(text: str) -> str:
    return printable(text).replace("\n", " ")
