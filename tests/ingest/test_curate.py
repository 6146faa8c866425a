"""Curation over the whole dataset: what is found, what stays, and that the order of shards plays no part."""

import itertools
import json
import random
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from benchmarks.curate import RE_ENCODINGS, cut, make_films
from cluster.dataset import Dataset
from cluster.shards import Row, write_shard
from configs.load import UserError
from ingest.curate import CurateConfig, curate
from ingest.dedup.fingerprint import audio_distances, image_distances
from ingest.rows import CLIP_COLUMNS
from ingest.sample import Clip, Item, Media
from ingest.shard import clip_row
from ingest.verify import verify
from tests.ingest.dedup.test_fingerprint import (
    RATE,
    encoded,
    jpeg,
    noise,
    render_image,
    sample_scene,
    scene_sound,
)

SECONDS = 5.0


def clip(image: bytes, audio: np.ndarray) -> Clip:
    return Clip(0.0, SECONDS, RATE, audio, image, 128, 128, 2.5, 0.0)


def row(media_id: str, cut: Clip, channel: str = "", split: str = "train", title: str = "a title") -> Row:
    item = Item("urls", media_id, f"http://example.org/{media_id}", "CC-BY-4.0", channel=channel, title=title)
    media = Media(Path("x"), Path("x"), False, "CC-BY-4.0", channel=channel, title=title)
    return clip_row(item, f"urls:{media_id}", media, cut, split, None, {})


def write(root: Path, units: list[list[Row]], columns: pa.Schema = CLIP_COLUMNS) -> Dataset:
    """A dataset of clips with these rows in these units."""
    dataset = Dataset.create_or_open(str(root), "clips", {}, [])
    for rows in units:
        items = {row.item_id: {} for row in rows} or {f"nothing{dataset.worklist.count_units()}": {}}
        dataset.worklist.append(items.items(), len(items))
    for task, rows in zip(dataset.worklist.units(), units, strict=True):
        with tempfile.TemporaryDirectory() as folder:
            dataset.commit(task.unit, 0, write_shard(Path(folder), rows, columns), {})
    return dataset


def picture(seed: int, size_px: int = 256, quality: int = 90) -> bytes:
    return jpeg(render_image(sample_scene(np.random.default_rng(seed), 3), 512), size_px, quality)


@pytest.fixture(scope="module")
def corpus() -> list[Row]:
    """Two originals found again otherwise encoded, a copy, many sounds over one still, one sound over two
    pictures.
    """
    first, second = scene_sound(1, SECONDS), noise(2, SECONDS)
    again = encoded(first, "mp4", "-c:a", "aac", "-b:a", "48k", level=0.4)
    opus = encoded(second, "webm", "-c:a", "libopus", "-b:a", "64k")
    return [
        row("a-original", clip(picture(1), first)),
        row("b-reupload", clip(picture(1, 96, 50), again)),
        row("c-copy", clip(picture(1), first)),
        row("d-rain", clip(picture(2), second)),
        row("e-rain-again", clip(picture(2, 400, 60), opus)),
        *(row(f"f-still-{seed}", clip(picture(3), noise(seed, SECONDS))) for seed in range(20, 24)),
        *(
            row(f"f-still-scene-{seed}", clip(picture(3), scene_sound(seed, SECONDS)))
            for seed in range(30, 33)
        ),
        row("g-music", clip(picture(4), scene_sound(40, SECONDS))),
        row("h-same-music", clip(picture(5), scene_sound(40, SECONDS))),
    ]


EXPECTED = {
    "urls_b-reupload_0": "near_duplicate",
    "urls_c-copy_0": "duplicate",
    "urls_e-rain-again_0": "near_duplicate",
}


def test_reuploads_are_found_and_other_sounds_over_one_still_stay(tmp_path: Path, corpus: list[Row]) -> None:
    dataset = write(tmp_path, [corpus])
    summary = curate(CurateConfig(str(tmp_path)))
    assert dataset.buried() == EXPECTED
    assert (summary["samples"], summary["kept"]) == (len(corpus), len(corpus) - 3)
    assert {reason: count for reason, count in summary["buried"].items() if count} == {
        "duplicate": 1,
        "near_duplicate": 2,
    }
    assert list(verify(str(tmp_path))) == []


def test_a_second_time_nothing_new_is_buried_and_a_dry_run_buries_nothing(
    tmp_path: Path, corpus: list[Row]
) -> None:
    dataset = write(tmp_path, [corpus[:3], corpus[3:]])
    assert (
        sum(curate(CurateConfig(str(tmp_path)), dry_run=True)["buried"].values()) == 3
        and dataset.buried() == {}
    )
    curate(CurateConfig(str(tmp_path)))
    files = dataset.store.list("tombstones")
    assert sum(curate(CurateConfig(str(tmp_path)))["buried"].values()) == 0
    assert dataset.store.list("tombstones") == files


@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_shards_plays_no_part(tmp_path: Path, corpus: list[Row], seed: int) -> None:
    rng = random.Random(seed)
    rows = rng.sample(corpus, len(corpus))
    cuts = sorted(rng.sample(range(1, len(rows)), 4))
    units = [rows[start:end] for start, end in zip([0, *cuts], [*cuts, len(rows)])]
    dataset = write(tmp_path, units)
    curate(CurateConfig(str(tmp_path)))
    assert dataset.buried() == EXPECTED


def forged(
    key: str, image: np.ndarray, sound: np.ndarray, channel: str = "", split: str = "train", media: str = ""
) -> Row:
    """A row with given bits: image bool [64], sound bool [256]."""
    prints = {
        "image_hash": np.packbits(image).tobytes().hex(),
        "audio_fingerprint": np.packbits(sound).tobytes().hex(),
    }
    return Row(
        key,
        key,
        columns={"source": "urls", "media_id": media or key, "channel": channel, "split": split, **prints},
        members={"t": b""},
    )


def brute_force(rows: list[Row], config: CurateConfig) -> set[str]:
    """What has to go, by comparing every sample with all that stay before it."""
    stay: list[tuple[np.ndarray, np.ndarray]] = []
    gone = set()
    for one in sorted(rows, key=lambda one: one.key or ""):
        image, sound = (
            np.frombuffer(bytes.fromhex(one.columns[name]), np.uint64)
            for name in ("image_hash", "audio_fingerprint")
        )
        close = (
            image_distances(image, i)[0] <= config.image_distance
            and audio_distances(sound, s) <= config.audio_distance
            for i, s in stay
        )
        if any(close):
            gone.add(one.key or "")
        else:
            stay.append((image, sound))
    return gone


@given(
    seed=st.integers(0, 10_000),
    image_flips=st.integers(0, 9),
    shape_flips=st.integers(0, 3),
    change_flips=st.integers(0, 50),
)
@effort(deadline=None, max_examples=40)
def test_the_buckets_find_what_comparing_all_with_all_finds(
    seed: int, image_flips: int, shape_flips: int, change_flips: int
) -> None:
    """Copies of an original are at most 6 shape bits apart, within what the buckets promise."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(6):
        image, sound = rng.random(64) < 0.5, rng.random(256) < 0.5
        for copy in range(4):
            image2, sound2 = image.copy(), sound.copy()
            image2[rng.choice(64, image_flips if copy else 0, replace=False)] ^= True
            sound2[rng.choice(128, shape_flips if copy else 0, replace=False)] ^= True
            sound2[128 + rng.choice(128, change_flips if copy else 0, replace=False)] ^= True
            rows.append(forged(f"k{rng.integers(10**6):07d}-{number}-{copy}", image2, sound2))
    with tempfile.TemporaryDirectory() as folder:
        dataset, config = write(Path(folder), [rows]), CurateConfig(folder)
        curate(config)
        assert set(dataset.buried()) == brute_force(rows, config)


def test_a_camera_that_never_moves_costs_no_square_and_its_copies_are_found(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("ingest.dedup.neighbours.CROWD", 16)
    compared = []
    monkeypatch.setattr(
        "ingest.curate.image_distances",
        lambda one, other: compared.append(len(one)) or image_distances(one, other),
    )
    rng = np.random.default_rng(0)
    image, shape = rng.random(64) < 0.5, rng.random(128) < 0.5
    rows = [forged(f"k{n:04d}", image, np.concatenate([shape, rng.random(128) < 0.4])) for n in range(400)]
    copies = []
    for original in rows[:20]:
        sound = np.unpackbits(
            np.frombuffer(bytes.fromhex(original.columns["audio_fingerprint"]), np.uint8)
        ).astype(bool)
        sound[128 + rng.choice(128, 6, replace=False)] ^= True
        copies.append(forged(f"r-{original.key}", image, sound))
    dataset = write(tmp_path, [rows + copies])
    curate(CurateConfig(str(tmp_path)))
    assert dataset.buried() == {copy.key: "near_duplicate" for copy in copies}
    assert sum(compared) < 224 * 420 * 16


def test_whatever_is_buried_as_near_has_a_near_one_that_stays(tmp_path: Path) -> None:
    """A chain a - b - c, its ends far apart: b goes, c stays."""
    image, sound = np.zeros(64, bool), np.random.default_rng(0).random(256) < 0.5
    chain = [
        forged(f"k{place}", np.where(np.arange(64) < 5 * place, True, image), sound) for place in range(3)
    ]
    dataset = write(tmp_path, [chain])
    curate(CurateConfig(str(tmp_path)))
    assert dataset.buried() == {"k1": "near_duplicate"}


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """Clips of two videos, each encoded again in three ways, one's sound under other pictures, and other
    sounds over a still.
    """
    return cut(make_films(tmp_path_factory.mktemp("films"), 2, 34.0), "grid", 8.0)


@pytest.mark.parametrize("seed", range(2))
def test_videos_cut_elsewhere_are_found_and_one_sound_with_other_pictures_stays(
    tmp_path: Path, films: list[Row], seed: int
) -> None:
    """Cut off at 1.37 s, so that no clip lies where one of the original does."""
    rows = [replace(row, item_id=row.key) for row in random.Random(seed).sample(films, len(films))]
    dataset = write(tmp_path, [rows[:9], rows[9:30], rows[30:]])
    curate(CurateConfig(str(tmp_path)))
    again = {row.key for row in films if row.item_id.rpartition("-")[2] in RE_ENCODINGS}
    assert dataset.tombstones() == again


def test_without_sequences_what_was_cut_elsewhere_is_not_found(
    tmp_path: Path, films: list[Row], monkeypatch
) -> None:
    """So that the test above is one of ingest.dedup.reuploads."""
    monkeypatch.setattr("ingest.curate.find_reuploads", lambda *_: None)
    dataset = write(tmp_path, [films])
    curate(CurateConfig(str(tmp_path)))
    assert not any("trimmed" in key for key in dataset.buried())


def test_memory_grows_by_less_than_a_kilobyte_per_sample() -> None:
    """Most of that are pages of mapped files, which the machine takes back where it needs them."""
    found = [
        json.loads(
            subprocess.run(
                [sys.executable, "-m", "tests.fakes.curate_memory", units], capture_output=True, check=True
            ).stdout
        )
        for units in ("5", "25")
    ]
    assert [one["buried"]["near_duplicate"] for one in found] == [40, 240]
    assert (found[1]["peak_mb"] - found[0]["peak_mb"]) * 1e6 / 20_000 < 1000


def test_a_channel_keeps_so_many_hours(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [forged(f"k{n}", rng.random(64) < 0.5, rng.random(256) < 0.5, channel="a") for n in range(6)]
    for row in rows:
        row.columns["duration_s"] = 10.0
    dataset = write(tmp_path, [rows])
    curate(CurateConfig(str(tmp_path), max_hours_per_channel=40 / 3600))
    assert dataset.buried() == {"k4": "channel_cap", "k5": "channel_cap"}


def test_a_channel_keeps_its_lowest_keys_and_none_means_no_cap(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        forged(
            f"k{n:02d}", rng.random(64) < 0.5, rng.random(256) < 0.5, channel="abc"[n % 3] if n < 9 else ""
        )
        for n in range(14)
    ]
    dataset = write(tmp_path, [rows[7:], rows[:7]])
    curate(CurateConfig(str(tmp_path), max_per_channel=2))
    assert dataset.buried() == {f"k{n:02d}": "channel_cap" for n in (6, 7, 8)}


def test_a_medium_is_in_one_split(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    splits = [("m1", "train"), ("m1", "test"), ("m1", "train"), ("m2", "test"), ("m2", "test")]
    rows = [
        forged(f"k{n}", rng.random(64) < 0.5, rng.random(256) < 0.5, split=s, media=m)
        for n, (m, s) in enumerate(splits)
    ]
    dataset = write(tmp_path, [rows])
    curate(CurateConfig(str(tmp_path)))
    assert dataset.buried() == {"k1": "split_conflict"}


def test_an_observer_is_in_one_split(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        forged(f"k{n}", rng.random(64) < 0.5, rng.random(256) < 0.5, channel="ann", split=s)
        for n, s in enumerate(("test", "train"))
    ]
    for source, buried in (("urls", {}), ("inaturalist", {"k1": "split_conflict"})):
        for row in rows:
            row.columns["source"] = source
        dataset = write(tmp_path / source, [rows])
        curate(CurateConfig(dataset.uri))
        assert dataset.buried() == buried


def test_a_dataset_without_fingerprints_is_refused_in_one_line(tmp_path: Path, corpus: list[Row]) -> None:
    old = pa.schema(
        [column for column in CLIP_COLUMNS if column.name not in ("image_hash", "audio_fingerprint")]
    )
    write(tmp_path / "old", [corpus[:2]], old)
    with pytest.raises(UserError, match="before fingerprints were recorded; scrape again"):
        curate(CurateConfig(str(tmp_path / "old")))
    for wrong in (
        {"max_per_channel": -1},
        {"max_hours_per_channel": -1},
        {"image_distance": 7},
        {"audio_distance": 0.5},
    ):
        with pytest.raises(UserError, match=next(iter(wrong))):
            CurateConfig("x", **wrong)


def test_dying_while_burying_leaves_what_a_second_run_completes(
    tmp_path: Path, corpus: list[Row], monkeypatch
) -> None:
    monkeypatch.setattr("ingest.curate.CHUNK", 1)
    original = Dataset.bury
    for left in itertools.count():
        root, count = tmp_path / str(left), itertools.count()

        def dying(self: Dataset, keys: dict[str, str], count=count, left=left) -> None:
            if next(count) >= left:
                raise KeyboardInterrupt
            original(self, keys)

        dataset = write(root, [corpus])
        with monkeypatch.context() as patch:
            patch.setattr(Dataset, "bury", dying)
            try:
                curate(CurateConfig(str(root)))
                died = False
            except KeyboardInterrupt:
                died = True
        curate(CurateConfig(str(root)))
        assert dataset.buried() == EXPECTED
        shutil.rmtree(root)
        if not died:
            assert left == 3
            break
