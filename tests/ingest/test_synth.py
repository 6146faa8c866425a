"""Scenes and the media rendered from them: the picture determines the sound, the files are real, the truth is
apart.
"""

import json
from pathlib import Path

import av
import numpy as np
import pytest

from configs.load import UserError
from ingest.scenes import (
    SHAPES,
    attributes,
    render_audio,
    render_image,
    sample_scene,
    scene_from_dict,
    scene_to_dict,
)
from ingest.synth import SynthConfig, synth


def test_same_seed_same_scene_and_truth_survives_json() -> None:
    scene = sample_scene(np.random.default_rng(3), 3)
    assert scene == sample_scene(np.random.default_rng(3), 3)
    assert scene_from_dict(json.loads(json.dumps(scene_to_dict(scene)))) == scene


def test_fundamental_is_where_the_size_says() -> None:
    for seed in range(12):
        rng = np.random.default_rng(seed)
        scene = sample_scene(rng)
        if scene.objects[0].shape == "star":  # its strongest harmonics are high by design
            continue
        audio = render_audio(scene, 2.0, 16000, rng)
        spectrum = np.abs(np.fft.rfft(audio * np.hanning(len(audio)), 1 << 17))
        f0_bin = attributes(scene)["f0_hz"] * (1 << 17) / 16000
        near = spectrum[int(f0_bin * 0.985) : int(f0_bin * 1.015)].max()
        assert near > 0.3 * spectrum[: int(1.5 * f0_bin)].max()


def test_every_shape_looks_different() -> None:
    base = sample_scene(np.random.default_rng(0)).objects[0]
    pictures = []
    for shape in SHAPES:
        scene = scene_from_dict(
            {"objects": [{**base.__dict__, "shape": shape}], "background": 0.1, "gradient": 0.0}
        )
        pictures.append(render_image(scene, 64).astype(float))
    gaps = [np.abs(a - b).mean() for i, a in enumerate(pictures) for b in pictures[:i]]
    assert min(gaps) > 2


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
