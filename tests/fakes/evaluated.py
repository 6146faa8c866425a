"""What evaluate, and runs that were killed or not, leave behind: as files of their documented form.

make_evaluation(tmp_path / "evaluation")         # two pairs, one heard wrong in pitch
make_run(tmp_path / "diffusion", kill=52)        # 100 steps with validation, killed and resumed
"""

import json
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from ingest.scenes import attributes, render_audio, render_image, sample_scene

RATE_HZ = 16000
INTERVALS = {"generated": [0.9, 1.0], "closed": [0.88, 1.0]}
SHARES = {
    "generated": 0.95,
    "real": 1.0,
    "chance": 0.2,
    "shuffled": 0.21,
    "closed": 0.94,
    "shuffled_closed": 0.0,
}


def make_evaluation(folder: Path, heard: bool = True) -> Path:
    """Of two clips, "a" and "b"; of "b" the pitch is a whole tone too high. `heard`: with heard.jsonl."""
    rng = np.random.default_rng(0)
    rows = []
    for name in ("images", "wavs"):
        (folder / name).mkdir(parents=True)
    for key, factor in (("a", 1.0), ("b", 2 ** (200 / 1200))):
        scene = sample_scene(rng)
        truth = {name: attributes(scene)[name] for name in ("timbre", "f0_hz", "rate_hz")}  # type: ignore[literal-required]
        made = {**truth, "f0_hz": truth["f0_hz"] * factor}
        right = {"timbre": True, "f0": factor == 1, "rate": True}
        rows.append({"key": key, "truth": truth, "generated": made, "real": truth, "right": right})
        Image.fromarray(render_image(scene, 64)).save(folder / "images" / f"{key}.jpg")
        for kind in ("generated", "real"):
            wave = render_audio(scene, 0.8, RATE_HZ, rng)
            soundfile.write(folder / "wavs" / f"{key}.{kind}.wav", wave, RATE_HZ, subtype="PCM_16")
    if heard:
        (folder / "heard.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    names = ("timbre", "f0", "rate")
    scores = {"scores": dict.fromkeys(names, SHARES), "intervals": dict.fromkeys(names, INTERVALS)}
    (folder / "scores.json").write_text(json.dumps({**scores, "num_clips": 240, "examples": ["a", "b"]}))
    return folder


def make_run(folder: Path, kill: int = 0) -> Path:
    """Of 100 steps; with `kill`, killed there and resumed from the last tenth step."""
    folder.mkdir(parents=True)
    losses = {step: 1 / step for step in range(1, 101)}
    _write(folder / "metrics.jsonl", [{"step": step, "loss": loss} for step, loss in losses.items()])
    _write(folder / "validation.jsonl", [{"step": step, "loss": 1.2 / step} for step in (50, 100)])
    (folder / "run.json").write_text(json.dumps({"config": {"recipe": folder.name}, "snapshots": []}))
    if kill:
        kept = kill // 10 * 10
        lost = {step: loss for step, loss in losses.items() if kept < step <= kill}
        killed = {"event": "killed", "step": kill, "pid": 7, "time": 100.0, "lost": lost}
        _write(
            folder / "events.jsonl",
            [killed, {"event": "resumed", "step": kept, "pids": [8, 9], "time": 113.0}],
        )
    return folder


def _write(path: Path, lines: list[dict[str, object]]) -> None:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
