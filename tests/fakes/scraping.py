"""A small scrape of a folder of scenes: its settings."""

from pathlib import Path
from typing import Any

from ingest.clip.clipper import ClipConfig, FrameConfig
from ingest.scrape import ScrapeConfig
from ingest.sources.settings import SourceConfig


def config(media: Path, output: Path, **changes: Any) -> ScrapeConfig:
    settings: dict[str, Any] = {
        "clip": ClipConfig(1.6),
        "frame": FrameConfig(64),
        "workers": 0,
        "unit_size": 3,
    }
    settings["source"] = SourceConfig(str(media), "folder", "own")
    return ScrapeConfig(output=str(output), **{**settings, **changes})
