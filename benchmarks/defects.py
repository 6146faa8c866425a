"""Whether the scores see what is wrong: the demo's diffusion trained with one injected defect after another.

    python -m benchmarks.defects demo=out/demo output=out/defects [steps=300] [clips=120] [only=coin,kl]

Each defect is a mistake that was made somewhere, and is made here from outside, by altered latents or
settings; the product has no switch for them. All trainings have the same seed, steps and order of samples.
All are scored on the same held-out clips with the same noise, by `evaluate` and known answers. A score's
change is the mean over clips of what it says of the defective model minus what it says of the sound one, with
a 95 % bootstrap over media of these differences: a defect is seen where one of them excludes 0. `seed` and
`seed2` are the controls: no defect, but other seeds. Run again: what is done is not done again.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.command_line import parse_options, run
from benchmarks.latents import SPLITS, Samples, read_split, row_of, write_latents
from benchmarks.machine import machine
from cluster.dataset import Dataset
from cluster.jsonl import JsonObject
from cluster.shards import Row, Status
from training.data.npy import read_npy, to_npy
from training.judging.intervals import draw_media, interval, means
from training.pipeline.codec import encode_wav
from training.pipeline.mel import MelConfig
from training.pretrained import folder_sha256, load_autoencoder
from training.score import ATTRIBUTES

SEED = 0
DROPOUT = 0.1
TWICE = 1 - (1 - DROPOUT) ** 2
# a normal variable is below .1 in 54 % of draws, a uniform one in 10 %
COIN = 0.5398
SHARE = 0.3  # of training samples that a defect of the data hits
BATCH = 16  # samples that a scale is taken of
KL_FACTOR = 100
Alter = Callable[[Path, Samples], tuple[Samples, Mapping[str, object] | None]]
"""Of a demo: its samples as a defect leaves them, and what their commit says of their moments; None: the
truth."""
Found = dict[str, dict[str, Any]]
"""A score -> its change, its interval and whether that excludes 0."""


def unaltered(demo: Path, samples: Samples) -> tuple[Samples, None]:
    """As they are."""
    return samples, None


@dataclass(frozen=True)
class Defect:
    """`settings` of its training, `alter` of its latents, or `other_codec` where the sound model has another.

    `dropped`: the share of clips that are generated without their picture.
    """

    what: str
    settings: tuple[str, ...] = ()
    alter: Alter = unaltered
    dropped: float = 0.0
    other_codec: bool = False


@dataclass(frozen=True)
class Bench:
    """A finished demo, the folder to work in, and the sizes. `codec_steps`: of the other autoencoder; the
    demo's has as many.
    """

    demo: Path
    output: Path
    steps: int = 300
    codec_steps: int = 240
    clips: int = 120

    @property
    def scored_on(self) -> tuple[str, ...]:
        """Settings of evaluate."""
        truth = f"truth={self.demo}/world/truth"
        return (f"data={self.demo}/clips", truth, f"num_clips={self.clips}", f"seed={SEED}")


def main(bench: Bench, only: list[str]) -> None:
    bench.output.mkdir(parents=True, exist_ok=True)
    sound = heard(bench, "none", Defect("no defect"))
    media = {row["key"]: row["media_id"] for row in Dataset.open(f"{bench.demo}/clips").iter_rows()}
    found: dict[str, JsonObject] = {}
    for name in only:
        if name == "kl":
            changes = codec_changes(bench)
            what = f"the autoencoder's KL weighs {KL_FACTOR} times as much"
        else:
            defect = DEFECTS[name]
            changes = changed(sound, heard(bench, name, defect), media)
            what = defect.what
        seen = [score for score, change in changes.items() if change["seen"]]
        found[name] = {"what": what, "seen_by": seen, "changes": changes}
        print(f"{name}: {what}: {', '.join(seen) or 'not seen'}", file=sys.stderr)
    record = {
        "what": "changes of scores by injected defects, paired by clip, with 95 % intervals over media",
        "command": f"python -m benchmarks.defects only={','.join(only)}",
        "sound": {name: round(float(np.mean(list(values.values()))), 4) for name, values in sound.items()},
        "defects": found,
        "clips": bench.clips,
        "steps": bench.steps,
        "codec_steps": bench.codec_steps,
        "machine": machine("torch", "deepspeed"),
        "date": time.strftime("%Y-%m-%d"),
    }
    print(json.dumps(record, indent=1))


# --- Scores -------------------------------------------------------------------------------------------------

Heard = dict[str, dict[str, float]]
"""A score -> what it says of each clip, by key."""


def heard(bench: Bench, name: str, defect: Defect) -> Heard:
    """Of the model with a defect: whether each attribute is right, and their mean."""
    model = trained(bench, name, defect)
    rows = evaluated(bench, model, f"{name}-scores")
    if defect.dropped:
        # without guidance and picture, for some of the clips
        free = evaluated(bench, model, f"{name}-free", "guidance=0")
        drop = np.random.default_rng(SEED).random(len(rows)) < defect.dropped
        rows = {key: (free if dropped else rows)[key] for key, dropped in zip(rows, drop, strict=True)}
    scores: Heard = {attribute: {} for attribute in (*ATTRIBUTES, "mean")}
    for key, right in rows.items():
        for attribute in ATTRIBUTES:
            scores[attribute][key] = float(right[attribute])
        scores["mean"][key] = sum(right.values()) / len(right)
    return scores


def changed(sound: Heard, defective: Heard, media: Mapping[str, str]) -> Found:
    """Of each score the mean difference over clips."""
    found: Found = {}
    for score, values in sound.items():
        keys = sorted(values.keys() & defective[score].keys())
        differences = np.array([defective[score][key] - values[key] for key in keys])
        bounds = interval(means(draw_media([media[key] for key in keys], SEED), differences))
        seen = bounds is not None and not bounds[0] <= 0 <= bounds[1]
        found[score] = {"change": round(float(differences.mean()), 4), "interval": bounds, "seen": seen}
    return found


def evaluated(bench: Bench, model: Path, name: str, *more: str) -> dict[str, dict[str, bool]]:
    """What is right in each clip, by key."""
    folder = bench.output / name
    if not (folder / "scores.json").exists():
        run("training", "evaluate", f"model={model}", f"output={folder}", *bench.scored_on, *more)
    rows = [json.loads(line) for line in (folder / "heard.jsonl").read_text().splitlines()]
    return {row["key"]: row["right"] for row in rows}


def codec_changes(bench: Bench) -> Found:
    """Of the autoencoder with the wrong weight: how far its mels are off, and what the judge still hears.

    Without intervals: `evaluate` states means of a codec. It is seen where an attribute's interval is left,
    or where the error of the mels changes by a tenth.
    """
    models = {"roundtrip-sound": bench.demo / "runs/autoencoder", "roundtrip-kl": other_codec(bench)}
    reports: list[JsonObject] = []
    for name, model in models.items():
        folder = bench.output / name
        if not (folder / "roundtrip.json").exists():
            run("training", "evaluate", f"model={model}", f"output={folder}", *bench.scored_on)
        reports.append(json.loads((folder / "roundtrip.json").read_text()))
    sound, defective = reports
    more = defective["mel_l1"] - sound["mel_l1"]
    seen = abs(more) > sound["mel_l1"] / 10
    found: Found = {"mel_l1": {"change": round(more, 4), "interval": None, "seen": seen}}
    for attribute in ATTRIBUTES:
        before = sound["scores"][attribute]["generated"]
        change = defective["scores"][attribute]["generated"] - before
        low, high = defective["intervals"][attribute]["generated"]
        found[attribute] = {"change": round(change, 4), "interval": None, "seen": not low <= before <= high}
    return found


# --- Models -------------------------------------------------------------------------------------------------


def trained(bench: Bench, name: str, defect: Defect) -> Path:
    """A run of the demo's diffusion with a defect, or an export of the sound one with another codec."""
    if defect.other_codec:
        return with_codec(bench.output, trained(bench, "none", Defect("")), other_codec(bench))
    model = bench.output / name
    if not (model / "FINISHED.json").exists():
        # those of the sound model, too, pass through here: the order of samples depends on their shards
        data = bench.output / f"latents-{defect.alter.__name__}"
        if not (data / "done").exists():
            altered(bench.demo, data, defect.alter)
        sizes = (f"steps={bench.steps}", f"seed={SEED}")
        places = (f"data={data}", f"output={model}")
        run("training", "train", "configs/training/demo.yaml", *places, *sizes, *defect.settings)
    return model


def other_codec(bench: Bench) -> Path:
    """An autoencoder of the demo's shape whose KL weighs too much."""
    model = bench.output / "autoencoder"
    if not (model / "FINISHED.json").exists():
        record = json.loads((bench.demo / "runs/autoencoder/run.json").read_text())
        weight = KL_FACTOR * record["config"]["autoencoder"]["kl_weight"]
        places = (f"data={bench.demo}/clips", f"output={model}", f"steps={bench.codec_steps}")
        settings = ("configs/training/demo_autoencoder.yaml", f"autoencoder.kl_weight={weight:g}")
        run("training", "train", *settings, *places)
    return model


def with_codec(output: Path, model: Path, codec: Path) -> Path:
    """An export of a model whose codec is another one, with the hash of that one: as if it belonged there."""
    folder = output / "codec-export"
    shutil.rmtree(folder, ignore_errors=True)
    run("training", "export", f"model={model}", f"output={folder}")
    inside = folder / "autoencoder"
    weights = next(iter(inside.glob("*.safetensors")))
    shutil.copy(next(iter((codec / "model").glob("*.safetensors"))), weights)
    index = json.loads((folder / "model_index.json").read_text())
    index["conditioning"]["exported_sha256"]["autoencoder"] = folder_sha256(inside)
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


# --- Defects of the data ------------------------------------------------------------------------------------


def altered(demo: Path, target: Path, alter: Alter) -> None:
    """The demo's latents as one shard, with its training samples as a defect leaves them."""
    source = Dataset.open(f"{demo}/latents")
    rows = {row["key"]: row for row in source.iter_rows() if row["status"] == Status.KEPT}
    samples = {split: read_split(source, split) for split in SPLITS}
    learnt, statistics = alter(demo, samples["train"])
    made: list[Row] = []
    for split, members in (("train", learnt), ("validation", samples["validation"])):
        made += [row_of(rows[key], split, values) for key, values in members.items()]
    write_latents(source, target, made, statistics)
    (target / "done").touch()


def hit(samples: Samples) -> list[str]:
    """SHARE of the keys, seeded."""
    keys = list(samples)
    return [
        keys[index] for index in np.random.default_rng(SEED).permutation(len(keys))[: int(SHARE * len(keys))]
    ]


def swapped(demo: Path, samples: Samples) -> tuple[Samples, None]:
    """Some have the picture of another of them."""
    keys = hit(samples)
    others = dict(zip(keys, keys[1:] + keys[:1], strict=True))
    wrong = {key: {**samples[key], "image.npy": samples[other]["image.npy"]} for key, other in others.items()}
    return {**samples, **wrong}, None


def silent(demo: Path, samples: Samples) -> tuple[Samples, None]:
    """Some have the latent of zeros, as if their sound could not be read."""
    meta = Dataset.open(f"{demo}/latents").meta["config"]
    mel = MelConfig(**meta["mel"])
    autoencoder = load_autoencoder(demo / "latents/models/autoencoder")
    with torch.no_grad():
        moments = encode_wav(autoencoder, torch.zeros(1, mel.num_samples), mel)
    latent = to_npy(torch.cat(moments).numpy().astype(np.float16))
    wrong = {key: {**samples[key], "latent.npy": latent} for key in hit(samples)}
    return {**samples, **wrong}, None


def scaled_by_a_batch(demo: Path, samples: Samples) -> tuple[Samples, Mapping[str, object]]:
    """The latents' mean and spread are those of one batch, an unlucky one: of the clips that vary least."""
    spread = {
        key: float(read_npy(members["latent.npy"])[0].astype(np.float64).std())
        for key, members in samples.items()
    }
    batch = sorted(samples, key=lambda key: spread[key])[:BATCH]
    means_of = np.stack([read_npy(samples[key]["latent.npy"])[0].astype(np.float64) for key in batch])
    sums = {
        "latent_count": means_of[:, 0].size,
        "latent_sum": means_of.sum((0, 2, 3)).tolist(),
        "latent_sumsq": np.square(means_of).sum((0, 2, 3)).tolist(),
    }
    return samples, sums


DEFECTS = {
    "seed": Defect("the control: no defect, another seed", (f"seed={SEED + 1}",)),
    "seed2": Defect("the control again: no defect, a third seed", (f"seed={SEED + 2}",)),
    "dropout": Defect(
        "the condition is dropped twice while it learns",
        (f"diffusion.condition_dropout={TWICE:.4f}",),
    ),
    "dropout_always": Defect(
        "the same, and as often when it is scored",
        (f"diffusion.condition_dropout={TWICE:.4f}",),
        dropped=TWICE,
    ),
    "coin": Defect(
        "the coin of the dropout is a normal variable, where a uniform one was meant",
        (f"diffusion.condition_dropout={COIN}",),
    ),
    "scale": Defect(f"the latents' scale is that of one batch of {BATCH}", alter=scaled_by_a_batch),
    "silence": Defect(f"{SHARE:.0%} of sounds are missing, and learnt as silence", alter=silent),
    "swapped": Defect(f"{SHARE:.0%} of pictures are those of other clips", alter=swapped),
    "codec": Defect("generated through another codec than learnt with", other_codec=True),
}
ALL = (*DEFECTS, "kl")


if __name__ == "__main__":
    options = parse_options()
    places = (Path(options["demo"]), Path(options["output"]))
    sizes = {name: int(options[name]) for name in ("steps", "codec_steps", "clips") if name in options}
    main(Bench(*places, **sizes), options.get("only", ",".join(ALL)).split(","))
