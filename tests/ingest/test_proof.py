"""A report is dated, and sealed: a byte that was changed is noticed, and so is another key."""

from pathlib import Path

import pytest

from cluster.dataset import Dataset
from configs.load import UserError
from ingest.proof import check_proof, read_key
from ingest.prove import ProveConfig, prove
from tests.ingest.test_curate import write


@pytest.fixture
def clips(tmp_path: Path) -> Dataset:
    """A dataset from which something was taken down."""
    dataset = write(tmp_path / "clips", [])
    dataset.bury({"urls_m1_0": "take-down"})
    return dataset


def test_a_changed_report_is_refused(clips: Dataset, tmp_path: Path) -> None:
    report = tmp_path / "proof.json"
    proof = prove(ProveConfig(clips.uri, output=str(report)))
    assert proof["verdict"] == "nothing found" and proof["date"].endswith("Z")
    assert check_proof(str(report))["keys_sha256"] == proof["keys_sha256"]
    text = report.read_text()
    for old, new in (("nothing found", "nothing founD"), (proof["date"][:10], "2020-01-01"), ("\n", "\n\n")):
        report.write_text(text.replace(old, new, 1))
        with pytest.raises(UserError, match="no report as it was written"):
            check_proof(str(report))
    with pytest.raises(UserError, match="No such file"):
        check_proof(str(tmp_path / "none.json"))


def test_a_signed_report_needs_its_key(clips: Dataset, tmp_path: Path) -> None:
    key, other, plain = tmp_path / "key", tmp_path / "other", tmp_path / "plain.json"
    key.write_bytes(b"k" * 32)
    other.write_bytes(b"o" * 32)
    signed = prove(ProveConfig(clips.uri, key_file=str(key)))["report"]
    assert signed.startswith(f"{clips.uri}/removals/")
    assert "hmac_sha256" in check_proof(signed, str(key))
    with pytest.raises(UserError, match=f"not signed with key_file={other}"):
        check_proof(signed, str(other))
    prove(ProveConfig(clips.uri, output=str(plain)))
    with pytest.raises(UserError, match="not signed"):
        check_proof(str(plain), str(key))


def test_a_short_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"secret")
    with pytest.raises(UserError, match="has 6 bytes, need 16"):
        read_key(str(tmp_path / "key"))
    with pytest.raises(UserError, match="cannot be read"):
        read_key(str(tmp_path / "none"))
