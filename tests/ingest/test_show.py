"""`ingest show`: one command says where a sample comes from, and why one was refused."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from cluster.dataset import Dataset
from cluster.shards import Row, Status, read_member, write_shard
from configs.load import UserError
from ingest.remove import RemoveConfig, remove
from ingest.rows import CLIP_COLUMNS
from ingest.sample import MEANINGS, Item, Reason, Refused
from ingest.shard import refused_row
from ingest.show import LISTED, Entry, ShowConfig, holders_of, lines_of, meaning_of, show
from tests.fakes.servers import has_s3_server
from tests.ingest.dedup.test_fingerprint import noise
from tests.ingest.test_curate import clip, picture, row, write
from tests.ingest.test_seen import export

HOSTILE = "a\x1b[31m title\nstatus  kept\u202e\ud800"
LATENTS = pa.schema([("media_id", pa.string()), ("split", pa.string())])


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    cut = clip(picture(1, 96), noise(1, 0.5))
    item = Item("urls", "late", "http://x/late?token=SECRET", title="Late")
    return [
        row("first", cut, channel="Some Channel", title="First"),
        row("second", cut, title="Second"),
        refused_row(item, "urls:late", Refused(Reason.TIMEOUT, "no answer in 300 s")),
    ]


@pytest.fixture(scope="module")
def clips(rows: list[Row], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A kept sample a unit, a refused item with the second, and one that is not scraped yet."""
    dataset = write(tmp_path_factory.mktemp("show") / "clips", [rows[:1], rows[1:]])
    waiting = {"source": "urls", "id": "soon", "url": "http://x/soon?token=SECRET"}
    dataset.worklist.append([("urls:soon", waiting)], 1)
    return dataset


def only(dataset: Dataset | str, **selection: str) -> Entry:
    (entry,) = show(ShowConfig(dataset if isinstance(dataset, str) else dataset.uri, **selection))
    return entry


def test_every_reason_has_a_meaning() -> None:
    assert set(MEANINGS) == set(Reason)
    assert all("\n" not in meaning and len(meaning) <= 100 for meaning in MEANINGS.values())


def test_a_kept_sample_shows_its_origin(clips: Dataset) -> None:
    entry = only(clips, key="urls_first_0")
    assert (entry.status, entry.unit, entry.generation, entry.attempt) == ("kept", "u0000000", 0, 0)
    assert entry.provenance["title"] == "First"
    assert entry.provenance["channel"] == "Some Channel"
    assert entry.metadata is not None
    assert entry.metadata["license"] == "CC-BY-4.0"


def test_members_are_where_it_says(clips: Dataset) -> None:
    entry = only(clips, key="urls_first_0")
    assert entry.tar
    members = {member.ext: read_member(clips.store, entry.tar, member) for member in entry.members}
    assert set(members) == {"flac", "jpg", "json"}
    assert members["flac"].startswith(b"fLaC")


def test_a_refusal_shows_what_it_means(clips: Dataset) -> None:
    entry = only(clips, id="urls:late")
    assert (entry.status, entry.reason, entry.detail) == ("refused", "timeout", "no answer in 300 s")
    assert entry.meaning == f"{MEANINGS[Reason.TIMEOUT]} (retryable)"
    assert meaning_of("silent").endswith("(final)")
    assert "curate" in meaning_of("near_duplicate")


@pytest.mark.parametrize(
    "selection",
    [{"id": "late"}, {"item": "late"}, {"item": "urls:late"}, {"media": "late"}, {"media": "urls:late"}],
)
def test_an_id_may_have_its_source(clips: Dataset, selection: dict[str, str]) -> None:
    assert only(clips, **selection).item_id == "urls:late"


def test_a_unit_shows_all_its_rows(clips: Dataset) -> None:
    entries = list(show(ShowConfig(clips.uri, unit="u0000001")))
    assert [entry.ordinal for entry in entries] == [0, 1]


def test_an_item_without_a_row_is_listed(clips: Dataset) -> None:
    entry = only(clips, media="soon")
    assert (entry.status, entry.unit) == (LISTED, "u0000002")
    assert entry.provenance["url"] == "http://x/soon?token=***"


def test_a_later_attempt_is_counted(rows: list[Row], tmp_path: Path) -> None:
    dataset = write(tmp_path / "clips", [rows[2:]])
    dataset.worklist.append([("urls:late", {"source": "urls", "id": "late"})], 1, attempt=1)
    statuses = [(entry.status, entry.attempt) for entry in show(ShowConfig(dataset.uri, id="late"))]
    assert statuses == [("refused", 0), (LISTED, 1)]


def test_a_tombstone_has_its_reason_and_date(rows: list[Row], tmp_path: Path) -> None:
    dataset = write(tmp_path / "clips", [rows])
    remove(RemoveConfig(dataset.uri, channel="Some Channel", reason="asked by its author", rewrite=False))
    buried = only(dataset, key="urls_first_0")
    assert buried.status == "kept"
    assert {stone.selector for stone in buried.tombstones} == {"key", "channel"}
    assert {stone.reason for stone in buried.tombstones} == {"asked by its author"}
    assert all(len(stone.date) == len("2026-01-01") for stone in buried.tombstones)
    assert "no reader takes it" in "\n".join(lines_of(buried))


def test_a_hole_stays_found(rows: list[Row], tmp_path: Path) -> None:
    dataset = write(tmp_path / "clips", [rows])
    remove(RemoveConfig(dataset.uri, key="urls_first_0"))
    hole = only(dataset, key="urls_first_0")
    assert (hole.status, hole.reason, hole.generation) == ("removed", "take-down", 1)
    assert (hole.tar, hole.members, hole.provenance["title"]) == (None, [], None)


def test_a_damaged_member_does_not_stop_it(rows: list[Row], tmp_path: Path) -> None:
    dataset = write(tmp_path / "clips", [rows])
    before = only(dataset, key="urls_first_0")
    start = next(member.offset for member in before.members if member.ext == "json")
    tar = tmp_path / "clips" / str(before.tar)
    data = bytearray(tar.read_bytes())
    data[start] ^= 1
    tar.write_bytes(data)
    after = only(dataset, key="urls_first_0")
    assert after.metadata is None
    assert "json" in after.damage


def test_hostile_text_stays_on_its_line(tmp_path: Path) -> None:
    refused = Row("urls:x", None, Status.REFUSED, "corrupt", None, {"source": "urls", "media_id": "x"})
    entry = Entry("u0000000", 0, refused.item_id, "refused", reason="corrupt", provenance={"title": HOSTILE})
    title = next(line for line in lines_of(entry) if line.startswith("title"))
    assert title.split(maxsplit=1)[1] == "a [31m title status kept \\ud800"
    assert "\n" not in "".join(lines_of(entry))


@pytest.mark.parametrize(
    ("selection", "nearest"),
    [
        ({"key": "urls_frist_0"}, "urls_first_0"),
        ({"id": "urls:lat"}, "urls:late"),
        ({"unit": "u0000009"}, "u000000"),
    ],
)
def test_no_match_names_the_nearest(clips: Dataset, selection: dict[str, str], nearest: str) -> None:
    (value,) = selection.values()
    with pytest.raises(UserError, match=f"{value}.*nearest: .*{nearest}"):
        list(show(ShowConfig(clips.uri, **selection)))


def test_two_selectors_are_refused(clips: Dataset) -> None:
    with pytest.raises(UserError, match="one of key=…, item=…, id=…, media=…, unit=…"):
        ShowConfig(clips.uri, key="a", id="b")


def test_latents_are_shown_too(clips: Dataset, tmp_path: Path) -> None:
    parents = [{"uri": clips.uri, "snapshot": clips.snapshot().id}]
    latents = Dataset.create_or_open(str(tmp_path / "latents"), "latents", {}, parents)
    latents.worklist.append([("u0000000.0", {})], 1)
    columns = {"media_id": "first", "split": "train"}
    sample = Row("urls:first", "urls_first_0", columns=columns, members={"latent.npy": b"x"})
    latents.commit("u0000000", 0, write_shard(tmp_path, [sample], LATENTS), {})
    for selection in ({"key": "urls_first_0"}, {"id": "first"}, {"media": "urls:first"}):
        entry = only(latents, **selection)
        assert [member.ext for member in entry.members] == ["latent.npy"]
        assert entry.metadata is None


def test_the_license_has_its_text_and_the_words_of_its_source(clips: Dataset) -> None:
    entry = only(clips, key="urls_first_0")
    assert "license text       https://creativecommons.org/licenses/by/4.0" in "\n".join(lines_of(entry))
    stated = replace(entry, metadata={"meta": {"license_stated": "Attribution", "license_x": ""}})
    assert [line for line in lines_of(stated) if line.startswith("license stated")] == [
        'license stated     {"license_stated": "Attribution"}'
    ]


def test_what_holds_a_sample_is_named(rows: list[Row], tmp_path: Path) -> None:
    dataset = write(tmp_path / "clips", [rows])
    export(tmp_path / "export", dataset)
    (tmp_path / "previews").mkdir()
    (tmp_path / "previews/urls_first_0.png").write_bytes(b"")
    (tmp_path / "old.zip").write_bytes(b"")
    config = ShowConfig(dataset.uri, key="urls_first_0", places=[str(tmp_path)])
    holders = holders_of(config, {"urls_first_0"})
    named = {each["place"].removeprefix(f"{tmp_path}/").split("-")[0] for each in holders["held_by"]}
    assert named == {"clips/index/u0000000", "clips/shards/u0000000", "previews/urls_first_0.png", "export"}
    assert [each["place"] for each in holders["not_searched"]] == [f"{tmp_path}/old.zip"]
    assert holders_of(ShowConfig(dataset.uri, key="urls_first_0"), {"urls_first_0"})["held_by"] == []


def test_the_command_prints_lines_or_json(clips: Dataset) -> None:
    command = [sys.executable, "-m", "ingest", "show", clips.uri]
    lines = subprocess.run([*command, "id=late"], capture_output=True, text=True, check=True).stdout
    assert "refused: timeout" in lines
    done = subprocess.run(
        [*command, "key=urls_first_0", "--json"], capture_output=True, text=True, check=True
    )
    assert [entry["key"] for entry in json.loads(done.stdout)["rows"]] == ["urls_first_0"]
    wrong = subprocess.run([*command, "key=urls_frist_0"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert wrong.stderr.count("\n") == 1
    assert "nearest: urls_first_0" in wrong.stderr


@pytest.mark.s3
@pytest.mark.skipif(not has_s3_server(), reason="no .venv-moto here: make test builds it")
def test_show_on_s3(bucket: str, rows: list[Row], tmp_path: Path) -> None:
    dataset = Dataset.create_or_open(f"{bucket}/clips", "clips", {}, [])
    local = write(tmp_path / "clips", [rows])
    items = {row.item_id: {} for row in rows}
    dataset.worklist.append(items.items(), len(items))
    dataset.commit("u0000000", 0, write_shard(tmp_path, rows, CLIP_COLUMNS), {})
    assert only(dataset, key="urls_first_0").to_json() == only(local, key="urls_first_0").to_json()
