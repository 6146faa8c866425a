"""The layout for av-benchmark, read as its code reads it."""

import csv
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from training.judging.av_benchmark import DESYNC_S, layout_names, write_layout
from training.judging.figures import Pair

# 20, 21 and 30 characters, as VGGSound's with a number: av-benchmark takes 18 of them for the name
VGGSOUND = ("zxpo56cpUBU_000007-0", "Y---g-f_I2yQ_000001_0", "000000014_zxpo56cpUBU_000007-0")
RATE_HZ = 16000
LENGTH = 8 * RATE_HZ


def cleaned(name: str) -> str:
    """What its pairing makes of the name of a generated sound (av_bench/utils.py, of 2025)."""
    return name[{20: slice(0, 18), 21: slice(1, 19), 30: slice(10, 28)}.get(len(name), slice(None))]


def read_as_theirs(folder: Path) -> dict[str, tuple[Any, int]]:
    """Flat .wav and .flac files by their stem, as its datasets list them."""
    files = sorted([*folder.glob("*.wav"), *folder.glob("*.flac")], key=lambda path: path.stem)
    return {path.stem: soundfile.read(path, dtype="int16", always_2d=True) for path in files}


@pytest.fixture
def pairs(tmp_path: Path) -> list[Pair]:
    """Of all names that are awkward, most 8 s long; one is stereo flac, one shorter, one longer."""
    made = []
    for number, name in enumerate(("a", "sub/b.take2", "c d", *VGGSOUND)):
        rng = np.random.default_rng(number)
        lengths = {"made": LENGTH + (number == 1) * 500 - (number == 2) * 4000, "real": LENGTH}
        paths = {}
        for kind, length in lengths.items():
            samples = rng.integers(-20000, 20000, (length, 2 if number == 1 else 1), np.int16)
            paths[kind] = tmp_path / kind / f"{name}.{'flac' if number == 1 else 'wav'}"
            paths[kind].parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(paths[kind], samples, RATE_HZ, subtype="PCM_16")
        picture = tmp_path / f"{number}.png"
        Image.new("RGB", (8, 8)).save(picture)
        made.append(Pair(name, paths["made"], paths["real"], picture=picture, caption="rain" * (number > 2)))
    return made


def test_its_code_finds_every_pair_at_one_length(pairs: list[Pair], tmp_path: Path) -> None:
    video = tmp_path / "real.mp4"
    video.write_bytes(b"mp4")
    layout = write_layout(tmp_path / "out", pairs, {"a": video, "zxpo56cpUBU_000007-0": video})
    made, real = (read_as_theirs(tmp_path / "out" / name) for name in ("generated", "reference"))
    assert len(made) == len(pairs) and made.keys() == real.keys()
    assert {cleaned(name) for name in made} == made.keys()  # no name is cut
    assert layout["audio_length_s"] == 8 and layout["fitted"] == 2 and layout["videos"] == 2
    for samples, rate_hz in (*made.values(), *real.values()):
        assert samples.shape == (LENGTH, 1) and rate_hz == RATE_HZ
        # its DeSync drops, without a word, what is a sample shorter than it was told
        assert len(samples) >= int(RATE_HZ * layout["audio_length_s"]) >= RATE_HZ * DESYNC_S
    # the samples are those of the file
    original = soundfile.read(pairs[0].generated, dtype="int16", always_2d=True)[0]
    assert (made["a"][0] == original).all()
    padded = next(name for name in made if name.startswith("c-d-"))
    assert not made[padded][0][-4000:].any() and made[padded][0][:-4000].any()
    with (tmp_path / "out/captions.csv").open(newline="") as file:
        captions = list(csv.DictReader(file))
    assert {row["name"] for row in captions} <= made.keys() and len(captions) == 3
    for folder, count in (("videos", 2), ("pictures", len(pairs))):
        files = list((tmp_path / "out" / folder).iterdir())
        assert len(files) == count and {path.stem for path in files} <= made.keys()
        assert all(path.exists() for path in files)


def test_the_command_names_what_was_written(pairs: list[Pair], tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "out", pairs, {})
    words = shlex.split(layout["command"])
    for setting, folder in (("--pred_audio", "generated"), ("--gt_audio", "reference")):
        assert Path(words[words.index(setting) + 1]) == tmp_path / "out" / folder
    assert "--audio_length=8.0" in words and "--skip_video_related" in words
    # of older sounds, features are not taken again
    assert {"--recompute_pred_cache", "--recompute_gt_cache"} <= set(words)
    with_video = write_layout(tmp_path / "out", pairs, {"a": pairs[0].generated})["command"]
    assert "extract_video.py --video_path" in with_video and "--skip_video_related" not in with_video


def test_the_length_is_never_longer_than_the_sounds(tmp_path: Path) -> None:
    """22,050 Hz and an odd number of samples: a length that is rounded up would leave all of them out."""
    for name in ("made", "real"):
        soundfile.write(tmp_path / f"{name}.wav", np.full(2722221, 0.1), 22050)
    pair = Pair("a", tmp_path / "made.wav", tmp_path / "real.wav")
    layout = write_layout(tmp_path / "out", [pair], {})
    short = Pair("b", tmp_path / "short.wav", tmp_path / "short.wav")
    soundfile.write(short.generated, np.full(4 * RATE_HZ, 0.1), RATE_HZ)
    # its scores with videos need 4.8 s, and its script stops without them
    video = {"b": tmp_path / "video.mp4"}
    assert "--skip_video_related" in write_layout(tmp_path / "short", [short], video)["command"]
    asked = shlex.split(layout["command"])[2].removeprefix("--audio_length=")
    written = soundfile.info(tmp_path / "out/generated/a.wav")
    assert float(asked) <= written.frames / 22050 < float(asked) + 2e-4 and layout["fitted"] == 0


def test_of_an_older_layout_nothing_is_left_and_nothing_else_goes(pairs: list[Pair], tmp_path: Path) -> None:
    write_layout(tmp_path / "out", pairs, {})
    (tmp_path / "out/cache/generated").mkdir(parents=True)
    (tmp_path / "out/generated/mine.txt").write_text("mine")
    write_layout(tmp_path / "out", pairs[:2], {})
    left = {path.name for path in (tmp_path / "out/generated").iterdir()}
    assert len(left) == 3 and {"a.wav", "mine.txt"} < left
    assert not (tmp_path / "out/cache").exists()
    assert all(pair.generated.exists() for pair in pairs)


def test_names_stay_apart() -> None:
    names = layout_names(["x" * 20, "x" * 20 + "_", "x" * 20 + "__", "ok"])
    assert len(names) == 4 and names["ok"] == "ok"
    assert not {len(name) for name in names} & {20, 21, 30}
