"""Judged sounds in the layout that av-benchmark reads (github.com/hkchengrex/av-benchmark, as of 2026).

    layout = write_layout(Path("out/judged/av-benchmark"), pairs, videos)
    layout["command"]                          # to copy: FD_PaSST, IB and DeSync (docs/scores.md)

    generated/<name>.wav, reference/<name>.wav    mono, 16-bit, all of one length
    videos/<name>.mp4, pictures/<name>.jpg        links to what is there; pictures for `ingest stills`
    captions.csv, names.csv                       name, caption of its text scores; name, pair

Its scripts stop nowhere where a file does not fit: a sound that is too short gets the features of another,
names as long as those of VGGSound are cut and lose their partner, features of older sounds are taken again.
So all sounds have the length that most have, and names keep clear of those lengths. It computes nothing.
"""

import csv
import math
import os
import shlex
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import soundfile

from cluster.files import replacing
from ingest.sample import safe_id
from training.judging.figures import Pair
from training.judging.sound import read_sound

FOLDER = "av-benchmark"
NAMES = "names.csv"
CAPTIONS = "captions.csv"
SOUNDS = ("generated", "reference")
LINKED = ("videos", "pictures")
CUT_LENGTHS = (20, 21, 30)  # of names of which it takes the middle 18 characters for the name
DESYNC_S = 4.8  # the shortest sounds that its scores with videos can be had of


class Layout(TypedDict):
    """What was written. `fitted`: sounds that were cut or padded to `audio_length_s`."""

    folder: str
    audio_length_s: float
    sounds: int
    fitted: int
    videos: int
    command: str


def write_layout(folder: Path, pairs: Sequence[Pair], videos: Mapping[str, Path]) -> Layout:
    """Writes all of it, in place of an older one. `videos`: by the names of pairs, of those that have one."""
    forget_layout(folder)
    for name in (*SOUNDS, *LINKED):
        (folder / name).mkdir(parents=True, exist_ok=True)
    names = layout_names([pair.name for pair in pairs])
    length_s = _common_length_s(pairs)
    # by what names it: the older one can be removed even if this one is not finished
    _write_table(folder / NAMES, ("name", "pair"), names.items())
    fitted = 0
    for name, pair in zip(names, pairs, strict=True):
        for place, source in zip(SOUNDS, (pair.generated, pair.reference), strict=True):
            fitted += _write_sound(source, folder / place / f"{name}.wav", length_s)
        if pair.picture:
            _link(pair.picture, folder / "pictures" / f"{name}{pair.picture.suffix}")
        if pair.name in videos:
            _link(videos[pair.name], folder / "videos" / f"{name}.mp4")
    is_seen = length_s >= DESYNC_S and any(pair.name in videos for pair in pairs)
    captions = [(name, pair.caption) for name, pair in zip(names, pairs, strict=True) if pair.caption]
    _write_table(folder / CAPTIONS, ("name", "caption"), captions)
    return {
        "folder": str(folder),
        "audio_length_s": length_s,
        "sounds": len(SOUNDS) * len(pairs),
        "fitted": fitted,
        "videos": sum(pair.name in videos for pair in pairs),
        "command": _command(folder.absolute(), length_s, is_seen),
    }


def layout_names(names: Iterable[str]) -> dict[str, str]:
    """The name in the layout of each pair -> the pair's name: safe characters, and no length that is cut."""
    taken: dict[str, str] = {}
    for name in names:
        safe = safe_id(name)
        while len(safe) in CUT_LENGTHS or safe in taken:
            safe += "_"
        taken[safe] = name
    return taken


def _common_length_s(pairs: Sequence[Pair]) -> float:
    """The length that most sounds have, of equally many the shortest; down to 0.1 ms, so that no sound is a
    sample shorter than it says.
    """
    lengths: Counter[float] = Counter()
    for pair in pairs:
        for path in (pair.generated, pair.reference):
            info = soundfile.info(path)
            lengths[int(info.frames / info.samplerate * 1e4) / 1e4] += 1
    most = max(lengths.values())
    return min(length for length, count in lengths.items() if count == most)


def _write_sound(source: Path, target: Path, length_s: float) -> bool:
    """Whether it had to be cut or padded."""
    sound = read_sound(source)
    num_samples = math.ceil(length_s * sound.rate_hz)
    wav = np.pad(sound.wav[:num_samples], (0, max(0, num_samples - len(sound.wav))))
    # 16-bit samples come back as they were; soundfile itself would scale them by 32767
    samples = np.clip(np.round(wav.astype(np.float64) * 32768), -32768, 32767).astype(np.int16)
    soundfile.write(target, samples, sound.rate_hz, subtype="PCM_16")
    return int(len(sound.wav) / sound.rate_hz * 1e4) / 1e4 != length_s


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    target.symlink_to(source.absolute())


def _write_table(path: Path, header: tuple[str, str], rows: Iterable[tuple[str, str]]) -> None:
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def _command(folder: Path, length_s: float, with_videos: bool) -> str:
    """What is typed in a checkout of av-benchmark; features of older sounds are not taken again."""
    # in full: rounded up, every sound would be too short
    length = f"--audio_length={length_s}"
    # beside the sounds: its default is a folder among them
    cache = folder / "cache"
    extract = ["python", "extract_video.py", "--video_path", str(folder / "videos")]
    extract += ["--gt_cache", f"{cache}/reference", length]
    evaluate = ["python", "evaluate.py", length, "--recompute_gt_cache", "--recompute_pred_cache"]
    for setting, name in (("pred", "generated"), ("gt", "reference")):
        evaluate += [f"--{setting}_audio", str(folder / name), f"--{setting}_cache", f"{cache}/{name}"]
    commands = [extract, evaluate] if with_videos else [[*evaluate, "--skip_video_related"]]
    return " && ".join(shlex.join(command) for command in commands)


def forget_layout(folder: Path) -> None:
    """Removes what an older layout wrote, and its features, and nothing else."""
    try:
        with (folder / NAMES).open(newline="", encoding="utf-8") as file:
            names = [row["name"] for row in csv.DictReader(file)]
    except (OSError, ValueError, KeyError, csv.Error):
        return
    shutil.rmtree(folder / "cache", ignore_errors=True)
    for name in names:
        if os.sep in name:  # a file that anybody may have changed: delete nothing elsewhere
            continue
        for place in (*SOUNDS, *LINKED):
            for path in (folder / place).glob(f"{name}.*"):
                path.unlink()
    (folder / NAMES).unlink()
