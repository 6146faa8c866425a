"""A dataset of clips as a sequence of samples: a picture, a sound, and what is known of them.

    clips = Clips("out/clips", split="train")
    for sample in clips:
        sample.picture.size, sample.sound.shape, sample.metadata["license"]
    clips[0] == clips[clips.keys[0]]

For notebooks and scripts. A training reads by training.data.catalogue, in an order of its own. Keys and
places are held in memory, about a kilobyte a sample; bytes are read as they are asked for, in a request each.
"""

import io
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
import soundfile
from PIL import Image

from cluster.dataset import Commit, Dataset
from cluster.jsonl import JsonObject
from cluster.shards import DamagedMemberError, Member, Status, check_member, members_of
from configs.load import UserError
from ingest.pixels import open_picture

# an index is a request of a few kB: these wait for the network
INDEX_READERS = 8


@dataclass(frozen=True)
class Sample:
    """A clip. Its picture and sound are decoded when they are first asked for.

    `metadata`: its JSON member: source, media_id, url, title, channel, license, split, start_s and more.
    """

    key: str
    metadata: JsonObject
    jpeg: bytes
    flac: bytes

    @cached_property
    def picture(self) -> Image.Image:
        """Upright, sRGB."""
        return open_picture(self.jpeg)

    @cached_property
    def sound(self) -> np.ndarray:
        """float32 [num_samples], mono, in -1..1."""
        wav, _ = soundfile.read(io.BytesIO(self.flac), dtype="float32")
        sound: np.ndarray = wav
        return sound

    @property
    def sample_rate_hz(self) -> int:
        return int(soundfile.info(io.BytesIO(self.flac)).samplerate)

    def save_wav(self, path: str | Path) -> None:
        """Writes the sound as 16 bit."""
        soundfile.write(path, self.sound, self.sample_rate_hz, subtype="PCM_16")


class Place(NamedTuple):
    """Where the members of a sample are."""

    tar: str
    members: list[Member]


class Clips(Sequence[Sample]):
    """The samples that are committed and not removed, in the order of units and keys.

    `UserError` where there is no dataset of clips, or it has none of `split`. What is removed while this is
    open is left out by the next loop.
    """

    def __init__(self, place: str, split: str = ""):
        self.dataset = Dataset.open(place, "clips")
        self._places = self._listed(split)
        self.keys = list(self._places)

    def _listed(self, split: str) -> dict[str, Place]:
        places: dict[str, Place] = {}
        splits: set[str] = set()
        buried = self.dataset.tombstones()
        for commit, rows in self._indexes():
            for row in sorted(rows, key=lambda row: str(row["key"])):
                if row["status"] == Status.KEPT and row["key"] not in buried:
                    splits.add(row["split"])
                    if split in ("", row["split"]):
                        assert commit.tar is not None, "a kept row has bytes"
                        places[row["key"]] = Place(commit.tar.name, members_of(row))
        if split and not places:
            there = ", ".join(sorted(splits)) or "none at all"
            raise UserError(f"{self.dataset.uri}: no sample of split={split}; splits: {there}")
        return places

    def _indexes(self) -> Iterator[tuple[Commit, list[JsonObject]]]:
        """The rows of each unit, several read at once."""

        def rows_of(commit: Commit) -> tuple[Commit, list[JsonObject]]:
            table = self.dataset.read_index(commit)
            return commit, table.select(["key", "status", "split", "members"]).to_pylist()

        with ThreadPoolExecutor(INDEX_READERS) as readers:
            yield from readers.map(rows_of, self.dataset.commits().values())

    def __len__(self) -> int:
        return len(self.keys)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[Sample]:
        buried = self.dataset.tombstones()
        return (self._read(key) for key in self.keys if key not in buried)

    @overload
    def __getitem__(self, index: int | str) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...

    def __getitem__(self, index: int | str | slice) -> Sample | list[Sample]:
        """By number or key. `IndexError`, `KeyError` where there is none."""
        if isinstance(index, slice):
            return [self._read(key) for key in self.keys[index]]
        return self._read(index if isinstance(index, str) else self.keys[index])

    def _read(self, key: str) -> Sample:
        """`DamagedMemberError` where its bytes are not the committed ones, or not there any more."""
        tar, members = self._places[key]
        start = min(member.offset for member in members)
        end = max(member.end for member in members)
        try:
            data = self.dataset.store.read_range(tar, start, end)
        except FileNotFoundError:
            problem = f"{self.dataset.uri}/{tar} is gone: it was rewritten since"
            raise DamagedMemberError(f"{problem}; open the dataset again") from None
        parts = {
            member.ext: check_member(data[member.offset - start : member.end - start], member, tar)
            for member in members
        }
        return Sample(key, json.loads(parts.get("json", b"{}")), parts["jpg"], parts["flac"])
