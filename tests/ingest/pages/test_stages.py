"""Stages: what the records of a chain tell, in the order in which it was begun."""

import json
from pathlib import Path
from typing import Any

import yaml

from cluster.dataset import Dataset
from ingest.pages.stages import stages_of


def record(folder: Path, when: str, verb: str, summary: dict[str, Any], **settings: Any) -> None:
    run = folder / "runs" / f"20260101T{when}00-{verb}-77"
    run.mkdir(parents=True)
    (run / "summary.json").write_text(json.dumps(summary))
    (run / "config.yaml").write_text(yaml.safe_dump(settings))


def test_a_chain_is_told_in_its_order_with_counts_and_seconds(tmp_path: Path) -> None:
    dataset = Dataset.create_or_open(str(tmp_path / "clips"), "clips", {}, [])
    world = tmp_path / "world"
    record(world, "0100", "synth", {"media": 233, "seconds": 80})
    source = {"path": f"{world}/urls.csv"}
    counts = {"kept": 4000, "refused:silent": 20, "refused:license": 5}
    record(tmp_path / "clips", "0200", "scrape", {"counts": counts, "seconds": 39.5}, source=source)
    record(tmp_path / "clips", "0300", "scrape", {"counts": {}, "seconds": 0.5}, source=source)
    record(tmp_path / "latents", "0500", "precompute", {"counts": {"kept": 4000}, "seconds": 30})
    record(tmp_path / "codec", "0400", "train", {"steps": 240, "seconds": 10})
    record(tmp_path / "model", "0600", "train", {"steps": 600, "seconds": 30})
    for run, data in (("codec", "clips"), ("model", "latents")):
        snapshots = {"snapshots": [{"uri": str(tmp_path / data)}]}
        (tmp_path / run / "run.json").write_text(json.dumps(snapshots))
    record(tmp_path / "scores", "0700", "evaluate", {"num_clips": 9, "seconds": 99})
    record(tmp_path / "scores", "0800", "evaluate", {"num_clips": 240, "seconds": 10})
    stages = stages_of(dataset, [tmp_path / "model", tmp_path / "codec"], tmp_path / "scores")
    assert [(stage.name, stage.count, stage.seconds) for stage in stages] == [
        ("render scenes", "233 videos and pictures", 80),
        ("scrape", "4,000 clips kept, 25 refused", 40),
        ("train codec", "240 steps", 10),
        ("precompute", "4,000 latents and embeddings", 30),
        ("train model", "600 steps", 30),
        ("evaluate", "240 held-out clips judged", 10),
    ]
    assert [stage.share for stage in stages] == [40, 20, 5, 15, 15, 5]


def test_what_left_no_record_or_a_damaged_one_is_left_out(tmp_path: Path) -> None:
    dataset = Dataset.create_or_open(str(tmp_path / "clips"), "clips", {}, [])
    record(tmp_path / "clips", "0200", "scrape", {"counts": {"kept": 1}, "seconds": 1})
    record(tmp_path / "clips", "0300", "curate", {"kept": 1, "seconds": 1})
    (tmp_path / "clips/runs/20260101T030000-curate-77/summary.json").write_text("{")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text(json.dumps({"snapshots": [{"uri": "/nowhere/latents"}]}))
    assert [stage.name for stage in stages_of(dataset, [tmp_path / "run"], tmp_path / "none")] == ["scrape"]
