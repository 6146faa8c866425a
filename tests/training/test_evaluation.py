"""The clips of an evaluation: which are chosen, what a hole changes, and what does not fit the model."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from cluster.dataset import Dataset
from configs.load import UserError
from tests.fakes.chain import Chain
from training.evaluation import EvaluateConfig, check_comparable, find_clips
from training.pipeline.mel import MelConfig


def asked(chain: Chain, output: Path, **other: Any) -> EvaluateConfig:
    basic = {"truth": f"{chain.world}/truth", "split": "train", "num_clips": 5}
    return EvaluateConfig(model=chain.diffusion, data=chain.clips, output=str(output), **{**basic, **other})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"sample_rate_hz": 32000},
            "has audio.sample_rate_hz=16000, the model makes 32000; scrape clips with",
        ),
        (
            {"duration_s": 3.2},
            "has clip.duration_s=1.6, the model makes 3.2 s; scrape clips with clip.duration_s=3.2",
        ),
    ],
)
def test_clips_of_another_rate_or_length_are_refused(chain: Chain, change: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        check_comparable(Dataset.open(chain.clips), MelConfig(**{"duration_s": 1.6, **change}))
    check_comparable(Dataset.open(chain.clips), MelConfig(duration_s=1.601))  # the same number of frames


def keys_of(clips: Dataset, config: EvaluateConfig) -> list[str]:
    return [clip.key for clip in find_clips(clips, config, 25600)]


@pytest.mark.parametrize("how", ["buried", "damaged"])
def test_a_hole_changes_nothing_about_which_other_clips_are_scored(
    how: str,
    chain: Chain,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    clips = Dataset.open(shutil.copytree(chain.clips, tmp_path / "clips").as_posix())
    config = asked(chain, tmp_path)
    before = keys_of(clips, config)
    assert len(before) == 5 and before == sorted(before)
    if how == "buried":
        clips.bury({before[2]: "asked"})
    else:
        row = next(row for row in clips.iter_rows() if row["key"] == before[2])
        tar, member = clips.commits()[row["unit"]].tar, row["members"][0]
        assert tar
        content = bytearray((tmp_path / "clips" / tar.name).read_bytes())
        content[member["offset"] + member["size"] // 2] ^= 1
        (tmp_path / "clips" / tar.name).write_bytes(content)
    assert keys_of(clips, config) == before[:2] + before[3:]
    assert (before[2] in caplog.text) == (how == "damaged")


def test_two_clips_are_scored_even_where_all_that_were_chosen_are_gone(chain: Chain, tmp_path: Path) -> None:
    clips = Dataset.open(shutil.copytree(chain.clips, tmp_path / "clips").as_posix())
    config = asked(chain, tmp_path, num_clips=2)
    clips.bury(dict.fromkeys(keys_of(clips, config), "asked"))
    assert len(keys_of(clips, config)) == 2


@pytest.mark.parametrize(
    "text", ['{"not": "scenes"}', "[", '[{"start_s": 0, "duration_s": 99, "attributes": {"timbre": 1}}]']
)
def test_a_truth_of_another_form_is_one_line(text: str, chain: Chain, tmp_path: Path) -> None:
    shutil.copytree(f"{chain.world}/truth", tmp_path / "truth")
    for path in (tmp_path / "truth").iterdir():
        path.write_text(text)
    with pytest.raises(UserError, match="is no truth file"):
        find_clips(Dataset.open(chain.clips), asked(chain, tmp_path, truth=f"{tmp_path}/truth"), 25600)
