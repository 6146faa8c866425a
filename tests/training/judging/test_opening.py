"""Judges are found by what a user types; what knows no pairs is found, too, but is none."""

from pathlib import Path

import pytest

from configs.load import UserError
from tests.fakes.chain import Chain
from tests.fakes.judges import save_classifier
from tests.fakes.pe_av import save_pe_audio
from tests.fakes.published_clap import save_published
from training.judging.opening import find_judge, open_pair_judge


def test_each_kind_is_told_by_its_files(chain: Chain, tmp_path: Path) -> None:
    save_published(tmp_path / "clap")
    save_pe_audio(tmp_path / "pe")
    save_classifier(tmp_path / "ast")
    own = find_judge(chain.contrastive, "judge")
    assert own.knows_pairs and own.settings and own.home == Path(chain.contrastive, "model")
    for name, kind, knows in (("clap", "clap", True), ("pe", "pe_audio", True)):
        found = find_judge(str(tmp_path / name), "judge")
        assert (found.kind, found.knows_pairs, found.folder) == (kind, knows, tmp_path / name)
    other = find_judge(str(tmp_path / "ast"), "judge")
    assert not other.knows_pairs
    with pytest.raises(UserError, match="holds a audio-spectrogram-transformer, which knows no pairs"):
        open_pair_judge(str(tmp_path / "ast"))


def test_the_setting_that_names_nothing_is_named() -> None:
    with pytest.raises(UserError, match="embedder=/nowhere: does not exist"):
        find_judge("/nowhere", "embedder")
