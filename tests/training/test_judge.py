"""The judge hears what a scene is made of, and does not hear it where it is not."""

import numpy as np
import pytest
import torch

from ingest.scenes import SHAPES, TILT_RANGE_DB, attributes, harmonics, render_audio, sample_scene
from training.judge import NUM_TILTS, TONE_S, Attributes, _tones, correct, judge
from training.pipeline.mel import MelConfig, log_mel_to_wav, wav_to_log_mel


def test_real_scenes_are_heard_right_through_griffin_lim() -> None:
    rng = np.random.default_rng(5)
    mel = MelConfig(duration_s=1.6)
    right = []
    for _ in range(24):
        scene = sample_scene(rng)
        wav = torch.from_numpy(render_audio(scene, 1.6, 16000, rng))[None]
        heard = judge(log_mel_to_wav(wav_to_log_mel(wav, mel), mel)[0].numpy(), 16000)
        right.append(list(correct(heard, attributes(scene)).values()))
    assert (np.mean(right, axis=0) >= [0.95, 0.9, 0.95]).all()


def test_other_scenes_are_heard_wrong() -> None:
    rng = np.random.default_rng(6)
    scenes = [sample_scene(rng) for _ in range(40)]
    heard = [judge(render_audio(scene, 1.6, 16000, rng), 16000) for scene in scenes]
    wrong = [
        list(correct(sound, attributes(scene)).values())
        for sound, scene in zip(heard, scenes[1:] + scenes[:1], strict=True)
    ]
    assert (np.mean(wrong, axis=0) <= [0.45, 0.2, 0.4]).all()


@pytest.mark.parametrize(("cents", "is_right"), [(49, True), (51, False), (-49, True), (-51, False)])
def test_a_fundamental_may_be_half_a_semitone_off(cents: int, is_right: bool) -> None:
    truth = Attributes(timbre=0, f0_hz=440.0, rate_hz=4.0)
    heard = Attributes(timbre=0, f0_hz=440.0 * 2 ** (cents / 1200), rate_hz=4.0)
    assert correct(heard, truth) == {"timbre": True, "f0": is_right, "rate": True}


def test_the_bank_is_of_the_scenes_own_tones() -> None:
    templates, shapes, f0s_hz = _tones(16000)
    time_s = np.arange(round(TONE_S * 16000)) / 16000
    phases = np.random.default_rng(0).uniform(0, 2 * np.pi, 32)
    num_f0s = len(templates) // (len(SHAPES) * NUM_TILTS)
    for shape, tilt, note in ((0, 0, 0), (3, 1, 17), (4, 4, num_f0s - 1)):
        place = (shape * NUM_TILTS + tilt) * num_f0s + note
        tilt_db = np.linspace(*TILT_RANGE_DB, NUM_TILTS)[tilt]
        wave = harmonics(SHAPES[shape], f0s_hz[place], tilt_db, time_s, 16000, phases)
        mel = wav_to_log_mel(torch.tensor(wave, dtype=torch.float32)[None], MelConfig(duration_s=TONE_S))
        expected = np.cbrt(mel[0].exp().mean(0).numpy())
        assert shapes[place] == shape
        assert np.allclose(templates[place], expected / np.linalg.norm(expected), atol=1e-6)
