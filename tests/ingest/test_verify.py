"""Verify: every damage of a dataset is found, wherever it is, and named."""

import random
import shutil
from pathlib import Path

from cluster.dataset import Dataset
from cluster.progress import RunSummary
from cluster.seals import open_json, seal_json
from ingest.verify import verify


def test_verify_finds_a_flipped_byte_and_names_the_member(
    done: tuple[Path, RunSummary], tmp_path: Path
) -> None:
    assert list(verify(str(done[0]))) == []
    output = tmp_path / "clips"
    shutil.copytree(done[0], output)
    tar = sorted((output / "shards").glob("*.tar"))[0]
    row = next(
        row
        for row in Dataset.open(str(output)).iter_rows()
        if row["members"] and tar.name.startswith(row["unit"])
    )
    member = next(member for member in row["members"] if member["ext"] == "flac")
    data = bytearray(tar.read_bytes())
    data[member["offset"] + 100] ^= 1
    tar.write_bytes(data)
    whole, exact = verify(str(output))
    assert "sha256" in whole and f"{row['key']}.flac" in exact


def test_verify_finds_a_cut_tar_a_missing_one_and_a_damaged_index(
    done: tuple[Path, RunSummary], tmp_path: Path
) -> None:
    output = tmp_path / "clips"
    shutil.copytree(done[0], output)
    first, second = sorted((output / "shards").glob("*.tar"))[:2]
    first.write_bytes(
        first.read_bytes()[: first.stat().st_size // 1024 * 512]
    )  # reads as a valid, shorter tar
    second.unlink()
    index = sorted((output / "index").glob("*.parquet"))[2]
    index.write_bytes(index.read_bytes()[:-1] + b"X")
    problems = list(verify(str(output)))
    assert any(first.name in problem and "committed were" in problem for problem in problems)
    assert any(f"{second.name}: missing" in problem for problem in problems)
    assert any(f"{index.name}: other bytes" in problem for problem in problems)


def test_verify_finds_wrong_counts_and_a_key_kept_twice(
    done: tuple[Path, RunSummary], tmp_path: Path
) -> None:
    output = tmp_path / "clips"
    shutil.copytree(done[0], output)
    first, second, *_ = (open_json(path.read_bytes()) for path in sorted((output / "commits").glob("*.json")))
    first["counts"]["kept"] += 1
    (output / f"commits/{first['unit']}.0.json").write_bytes(seal_json(first))
    again = {**second, "unit": "u0000099"}
    (output / "commits/u0000099.0.json").write_bytes(seal_json(again))
    problems = list(verify(str(output)))
    assert any(first["index"]["name"] in problem and "the commit says" in problem for problem in problems)
    assert sum("kept twice" in problem for problem in problems) == second["counts"]["kept"]
    assert any("u0000099" in problem and "work list does not have" in problem for problem in problems)


def test_verify_names_a_commit_that_cannot_be_read(done: tuple[Path, RunSummary], tmp_path: Path) -> None:
    output = tmp_path / "clips"
    shutil.copytree(done[0], output)
    first, second, *_ = sorted((output / "commits").glob("*.json"))
    first.write_bytes(first.read_bytes()[:-1])
    second.write_text(second.read_text().replace('"unit": "u', '"unit": "v'))
    problems = list(verify(str(output)))
    assert len(problems) == 2 and first.name in problems[0] and second.name in problems[1]


def test_verify_finds_every_flipped_byte_wherever_it_is(
    done: tuple[Path, RunSummary], tmp_path: Path
) -> None:
    output = tmp_path / "clips"
    shutil.copytree(done[0], output)
    Dataset.open(str(output)).bury({"some-key": "take-down"})
    assert list(verify(str(output))) == []
    kinds = ("dataset.json", "worklist/*", "shards/*", "index/*", "commits/*", "tombstones/*")
    rng = random.Random(0)
    for path in [next(iter(sorted(output.glob(kind)))) for kind in kinds]:
        whole = path.read_bytes()
        for place in {0, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(12))}:
            path.write_bytes(
                whole[:place] + bytes([whole[place] ^ (1 << rng.randrange(8))]) + whole[place + 1 :]
            )
            problems = list(verify(str(output)))
            assert any(path.name in problem for problem in problems), (path.name, place)
        path.write_bytes(whole[: len(whole) // 2])
        assert any(path.name in problem for problem in verify(str(output))), path.name
        path.write_bytes(whole)
    assert list(verify(str(output))) == []
