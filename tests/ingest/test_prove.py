"""After a take-down nothing is found; before it, and where one copy was left, its place is named."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from cluster.dataset import Dataset
from configs.load import UserError
from ingest.__main__ import app
from ingest.gc import GcConfig, gc
from ingest.proof import Proof
from ingest.prove import NOTHING, ProveConfig, prove
from ingest.remove import RemoveConfig, remove
from tests.fakes.takedown import config_of, make, nine_clips
from tests.ingest.test_curate import write
from tests.ingest.test_remove import make_run
from tests.ingest.test_seen import export


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The datasets of tests.fakes.takedown, made once."""
    root = tmp_path_factory.mktemp("made")
    make(root, nine_clips())
    for folder in root.glob("scratch-*"):
        shutil.rmtree(folder)
    return root


def proved(root: Path, **settings: object) -> Proof:
    selection: dict = {"channel": "bad", "places": [str(root)], **settings}
    return prove(ProveConfig(str(root / "clips"), **selection), dry_run=True)


def take_down(root: Path) -> None:
    remove(config_of(root))
    for name in ("clips", "latents"):
        gc(GcConfig(str(root / name), purge=True))


def places_of(proof: Proof, root: Path) -> set[str]:
    """Below `root`, without the hash in the names of objects."""
    found = [*proof["found"], *proof["models"]]
    return {each["place"].removeprefix(f"{root}/").rpartition("-")[0] or each["place"] for each in found}


def clean(root: Path, made: Path) -> tuple[Dataset, Dataset]:
    shutil.copytree(made, root, dirs_exist_ok=True)
    return Dataset.open(str(root / "clips")), Dataset.open(str(root / "latents"))


def test_before_a_take_down_every_place_is_named_and_after_it_none(tmp_path: Path, made: Path) -> None:
    clean(tmp_path, made)
    before = proved(tmp_path)
    assert before["verdict"] == "found" and before["samples"] == 2 and before["not_searched"] == []
    assert places_of(before, tmp_path) == {
        f"{dataset}/{folder}/u000000{unit}"
        for dataset in ("clips", "latents")
        for folder in ("shards", "index")
        for unit in (0, 1)
    }
    take_down(tmp_path)
    after = proved(tmp_path)
    assert (after["verdict"], after["found"], after["not_searched"]) == (NOTHING, [], [])
    assert after["keys_sha256"] == before["keys_sha256"]
    # without a selection: all that was ever taken down
    assert proved(tmp_path, channel="")["samples"] == 2


def test_an_old_generation_that_was_not_purged_is_named(tmp_path: Path, made: Path) -> None:
    clean(tmp_path, made)
    remove(config_of(tmp_path))
    gc(GcConfig(str(tmp_path / "latents"), purge=True))
    proof = proved(tmp_path)
    assert len(proof["found"]) == 4
    assert all("an old generation, not purged" in each["detail"] for each in proof["found"])
    assert {each["fix"] for each in proof["found"]} == {f"python -m ingest gc {tmp_path}/clips --purge"}


def test_an_object_that_no_commit_names_is_named(tmp_path: Path, made: Path) -> None:
    clips, _ = clean(tmp_path, made)
    tar = clips.snapshot().commits[0].tar
    assert tar
    shutil.copy(tmp_path / "clips" / tar.name, tmp_path / "kept.tar")
    take_down(tmp_path)
    shutil.move(tmp_path / "kept.tar", tmp_path / "clips" / tar.name)
    (found,) = proved(tmp_path)["found"]
    assert (found["kind"], found["detail"], found["keys"]) == (
        "shard",
        "clips, no commit names it",
        ["urls_m1_0"],
    )


def test_latents_that_were_not_rewritten_are_named(tmp_path: Path, made: Path) -> None:
    clean(tmp_path, made)
    remove(RemoveConfig(str(tmp_path / "clips"), channel="bad"))
    gc(GcConfig(str(tmp_path / "clips"), purge=True))
    proof = proved(tmp_path)
    assert {each["place"].removeprefix(f"{tmp_path}/").split("/")[0] for each in proof["found"]} == {
        "latents"
    }
    assert all(f"derived=[{tmp_path}/latents]" in each["fix"] for each in proof["found"])
    # a place that is not named is not searched
    assert proved(tmp_path, places=[])["verdict"] == NOTHING


def test_a_tombstone_alone_is_no_removal(tmp_path: Path, made: Path) -> None:
    clean(tmp_path, made)
    remove(RemoveConfig(str(tmp_path / "clips"), channel="bad", rewrite=False))
    assert {each["kind"] for each in proved(tmp_path, places=[])["found"]} == {"shard", "index"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("run/previews/index.html", "<img alt='urls_m1_0/drawn'>"),
        ("run/tensorboard/events.out.tfevents.1.vm", "\x00\x1apreview/urls_m1_0/drawn\x08"),
        ("evaluation/images/urls_m1_0.jpg", "no text"),
        ("evaluation/wavs/urls_m5_0.real.wav", "no text"),
        ("export/ATTRIBUTION.csv", "SECRET1,bad,http://example.org/m1,CC-BY-4.0"),
        ("clips/report.html", "<a href='http://example.org/m5'>"),
        (".hidden/notes.txt", "keep urls_m5_0"),
    ],
)
def test_a_copy_in_any_other_file_is_named(tmp_path: Path, made: Path, name: str, text: str) -> None:
    clean(tmp_path, made)
    # while the addresses are still known, and after
    take_down(tmp_path)
    worklist(tmp_path / "clips")
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    assert proved(tmp_path)["verdict"] == NOTHING
    file.write_bytes(text.encode())
    (found,) = proved(tmp_path)["found"]
    assert (found["place"], found["samples"]) == (str(file), 1)
    file.write_bytes(text.replace("m1", "m11").replace("m5", "m55").encode())
    if "." not in file.suffix or file.suffix in (".html", ".csv", ".txt"):
        assert proved(tmp_path)["verdict"] == NOTHING, "others are not meant"


def worklist(clips: Path) -> None:
    """The work list of a scrape, which keeps the address of an item."""
    dataset = Dataset.open(str(clips))
    listed = [
        (
            f"again:m{n}",
            {"source": "urls", "id": f"m{n}", "url": f"http://example.org/m{n}", "channel": "bad"},
        )
        for n in (1, 5)
    ]
    dataset.worklist.append(listed, 2)


def test_an_address_that_a_kept_sample_shares_is_no_trace(tmp_path: Path) -> None:
    one, other = nine_clips()[2:4]
    dataset = write(tmp_path / "clips", [[one, other]])
    (tmp_path / "list.csv").write_text(f"{one.columns['url']}\n")

    def named() -> set[str]:
        proof = prove(ProveConfig(dataset.uri, key="urls_m2_0", places=[str(tmp_path)]), dry_run=True)
        return {Path(each["place"]).name for each in proof["found"]} & {"list.csv"}

    assert named() == {"list.csv"}
    # a second clip of the same medium, which stays
    other.columns["url"] = one.columns["url"]
    dataset = write(tmp_path / "two", [[one, other]])
    assert named() == set()


def test_runs_and_exports_that_may_have_learnt_are_named(tmp_path: Path, made: Path) -> None:
    clips, latents = clean(tmp_path, made)
    export(tmp_path / "export", latents)
    make_run(tmp_path / "run", clips)
    take_down(tmp_path)
    make_run(tmp_path / "later", clips)
    proof = proved(tmp_path)
    assert (proof["verdict"], proof["found"]) == ("found", [])
    named = {each["place"].removeprefix(f"{tmp_path}/") for each in proof["models"]}
    steps = [f"run/checkpoints/step-000000{step}" for step in (10, 20)]
    assert named == {"export", *steps, "run/model"}
    kept = proved(tmp_path, models=False)
    assert (kept["verdict"], kept["models"]) == (NOTHING, proof["models"]), "named, and no reason to fail"


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_what_cannot_be_searched_is_named(tmp_path: Path, made: Path) -> None:
    clips, latents = clean(tmp_path, made)
    export(tmp_path / "export", clips)
    make_run(tmp_path / "run", clips)
    take_down(tmp_path)
    index = clips.snapshot().commits[2].index.name
    tar = latents.snapshot().commits[2].tar
    assert tar
    spoil(tmp_path / "clips" / index)
    spoil(tmp_path / "latents" / tar.name)
    (tmp_path / "export/provenance.json").unlink()
    (tmp_path / "run/run.json").write_text("{")
    (tmp_path / "old.zip").write_bytes(b"PK")
    (tmp_path / "loose.safetensors").write_bytes(b"x")
    (tmp_path / "latents/shards" / f".{'a' * 32}.partial").write_bytes(b"half")
    (tmp_path / "link").symlink_to(tmp_path / "clips")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/dataset.json").write_text("{}")
    proof = proved(tmp_path)
    assert proof["verdict"] == "not everything could be searched" and proof["found"] == []
    named = {each["place"].removeprefix(f"{tmp_path}/") for each in proof["not_searched"]}
    assert named == {
        f"clips/{index}",
        f"latents/{tar.name}",
        "export",
        "run",
        "old.zip",
        "loose.safetensors",
        f"latents/shards/.{'a' * 32}.partial",
        "link",
        "other/dataset.json",
    }


def test_mistakes_are_refused(tmp_path: Path, made: Path) -> None:
    clips, _ = clean(tmp_path, made)
    for settings, said in [
        ({"channel": ""}, "nothing was taken down yet"),
        ({"key": "urls_m1_0"}, "by one of"),
        ({"channel": "nobody"}, "nothing there has channel=nobody"),
        ({"places": [str(tmp_path / "none")]}, "none: nothing is there"),
        ({"key_file": str(tmp_path / "none")}, "cannot be read"),
    ]:
        with pytest.raises(UserError, match=said):
            proved(tmp_path, **settings)
    clips.bury({"urls_m3_0": "near_duplicate"})
    with pytest.raises(UserError, match="nothing was taken down yet"):
        proved(tmp_path, channel="")


def test_the_command_writes_a_report_and_a_search_again_does_not_find_it(tmp_path: Path, made: Path) -> None:
    clean(tmp_path, made)
    place = str(tmp_path / "clips")

    def run(*words: str) -> Result:
        return CliRunner().invoke(app, words)

    # dry runs leave no report, and no record that a second one within this second would meet
    before = run("prove-removed", place, "channel=bad", f"places=[{tmp_path}]", "--dry-run")
    assert not (tmp_path / "clips/removals").exists()
    assert before.exit_code == 1 and "gc" not in before.stdout and "ingest remove" in before.stdout
    assert run("remove", place, "channel=bad", f"derived=[{tmp_path}/latents]").exit_code == 0
    for name in ("clips", "latents"):
        assert run("gc", str(tmp_path / name), "--purge").exit_code == 0
    words = ("prove-removed", place, "channel=bad", f"places=[{tmp_path}]", "--json")
    done = run(*words)
    assert (done.exit_code, json.loads(done.stdout)["verdict"]) == (0, NOTHING), done.output
    report = json.loads(done.stdout)["report"]
    again = run("prove-removed", place, f"check={report}")
    assert again.exit_code == 0 and "as it was written" in again.stdout
