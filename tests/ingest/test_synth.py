"""Scenes and the media rendered from them: the picture determines the sound, the files are real, the truth is
apart.
"""

import json
from pathlib import Path

import av
import numpy as np
import pytest

from configs.load import UserError
from ingest.scenes import is_unseen, scene_from_dict
from ingest.synth import SynthConfig, synth


def test_synth_renders_real_media_with_keyframes_at_scene_middles(tmp_path: Path) -> None:
    synth(SynthConfig(str(tmp_path), videos=1, webm=1, hls=1, dash=1, stills=1, silent=1, scenes_per_video=3))
    entries = {entry["id"]: entry for entry in json.loads((tmp_path / "catalogue.json").read_text())}
    assert {entry["kind"] for entry in entries.values()} == {"mp4", "webm", "hls", "dash", "still", "silent"}
    for kind, codecs in {"mp4": ("h264", "aac"), "webm": ("vp9", "opus")}.items():
        with av.open(str(tmp_path / "media" / entries[f"{kind}0000"]["files"][0])) as media:
            assert (
                media.streams.video[0].codec_context.name,
                media.streams.audio[0].codec_context.name,
            ) == codecs
            keys = [
                float(packet.pts * packet.time_base)
                for packet in media.demux(media.streams.video[0])
                if packet.is_keyframe and packet.size
            ]
        assert np.allclose([key for key in keys if key > 0], [1, 3, 5], atol=0.051)
    assert list((tmp_path / "media/hls0000").glob("*.ts")) and list(
        (tmp_path / "media/dash0000").glob("*.m4s")
    )
    truth = json.loads((tmp_path / "truth/mp40000.json").read_text())
    assert [scene["start_s"] for scene in truth] == [0, 2, 4]


def test_impossible_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="scene_s"):
        synth(SynthConfig(str(tmp_path), fps=5, scene_s=1.0))
    with pytest.raises(UserError, match="combinations=none: give one of all, seen, unseen"):
        synth(SynthConfig(str(tmp_path), combinations="none"))


@pytest.mark.parametrize("combinations", ["seen", "unseen"])
def test_a_world_has_the_combinations_that_were_asked_for(combinations: str, tmp_path: Path) -> None:
    none = {kind: 0 for kind in ("videos", "webm", "hls", "dash", "silent")}
    synth(SynthConfig(str(tmp_path), **none, stills=12, size_px=32, combinations=combinations))
    scenes = [json.loads(path.read_text())[0]["scene"] for path in (tmp_path / "truth").glob("*.json")]
    assert len(scenes) == 12
    assert {is_unseen(scene_from_dict(scene)) for scene in scenes} == {combinations == "unseen"}
