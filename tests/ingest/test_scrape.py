"""The whole verb on a small folder: rows for everything, resume, the same bytes twice, damage that is found,
a page to look at.
"""

import csv
import io
import json
import random
import shutil
import tarfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import webdataset
import yaml
from PIL import Image

from cluster.dataset import Dataset
from cluster.progress import RunSummary
from cluster.seals import open_json, seal_json
from cluster.worklist import UnitTask, WorkItem
from configs.load import UserError
from ingest.clip.clipper import ClipConfig, FrameConfig
from ingest.fetch.settings import FetchConfig
from ingest.pages.card import plain
from ingest.report import ReportConfig, write_report
from ingest.sample import Clip, Item, Media, safe_id, split_group
from ingest.scrape import LicenseConfig, ScrapeConfig, ScrapeStage, SplitConfig, scrape, split_of
from ingest.serve import running_site
from ingest.shard import clip_row
from ingest.sources.registry import enumerate_items
from ingest.sources.settings import SourceConfig
from ingest.synth import SynthConfig, synth
from ingest.verify import verify

SCENES = 3
MP4S = ("mp40000", "mp40001")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two mp4, one webm, two stills, a silent video, and three files that cannot give a clip."""
    root = tmp_path_factory.mktemp("world")
    synth(
        SynthConfig(str(root), videos=2, webm=1, hls=0, dash=0, stills=2, silent=1, scenes_per_video=SCENES)
    )
    (root / "media/broken.mp4").write_bytes(b"no video")
    shutil.copy(root / "media/still0000.jpg", root / "media/mute.jpg")
    (root / "media/mute.wav").write_bytes(b"no sound")
    return root / "media"


@pytest.fixture(scope="module")
def done(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunSummary]:
    """A finished scrape, and its summary. Tests that damage it work on a copy."""
    output = tmp_path_factory.mktemp("out") / "clips"
    return output, scrape(config(world, output), progress=False)


def config(media: Path, output: Path, **changes: Any) -> ScrapeConfig:
    settings: dict[str, Any] = {
        "clip": ClipConfig(1.6),
        "frame": FrameConfig(64),
        "workers": 0,
        "unit_size": 3,
    }
    settings["source"] = SourceConfig(str(media), "folder", "own")
    return ScrapeConfig(output=str(output), **{**settings, **changes})


def tars(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((output / "shards").glob("*.tar"))}


def test_every_item_is_a_clip_or_a_reason(done: tuple[Path, RunSummary]) -> None:
    output, summary = done
    kept = 3 * SCENES + 2
    assert (
        summary.counts == {"kept": kept, "refused:corrupt": 2, "refused:silent": SCENES}
        and not summary.failed
    )
    rows = list(Dataset.open(str(output), "clips").iter_rows())
    assert (
        len({row["item_id"] for row in rows}) == 8
        and len({row["key"] for row in rows if row["key"]}) == kept + SCENES
    )
    silent = [row for row in rows if row["reason"] == "silent"]
    assert all(json.loads(row["scores"])["rms_dbfs"] < -60 and not row["members"] for row in silent)
    assert {row["license"] for row in rows} == {"own"}


def test_running_again_does_nothing_and_new_files_only_append(
    world: Path, done: tuple[Path, RunSummary], tmp_path: Path
) -> None:
    media, output = tmp_path / "media", tmp_path / "clips"
    shutil.copytree(world, media)
    before = scrape(config(media, output), progress=False)
    again = scrape(config(media, output), progress=False)
    assert (again.units_done, again.units_before, again.counts) == (0, before.units_done, {})
    shutil.copy(media / "mp40000.mp4", media / "zzz.mp4")
    more = scrape(config(media, output, workers=0, unit_size=7), progress=False)
    assert (more.units_done, more.counts) == (1, {"kept": SCENES})


def test_another_folder_with_the_same_names_is_told_in_one_line(
    world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        shutil.copy(world / "mp40000.mp4", tmp_path / name / "a.mp4")
    for folder, lines in (("one", 0), ("one", 0), ("two", 1)):
        caplog.clear()
        scrape(config(tmp_path / folder, tmp_path / "clips"), progress=False)
        assert (
            sum("already exist for another place (folder:a.mp4 was" in line for line in caplog.messages)
            == lines
        )


def test_two_runs_give_the_same_bytes(world: Path, done: tuple[Path, RunSummary], tmp_path: Path) -> None:
    scrape(config(world, tmp_path / "clips"), progress=False)
    assert tars(tmp_path / "clips") == tars(done[0])


def test_stock_webdataset_reads_the_shards(done: tuple[Path, RunSummary]) -> None:
    paths = [str(path) for path in sorted((done[0] / "shards").glob("*.tar"))]
    samples = list(webdataset.WebDataset(paths, shardshuffle=False))
    assert len(samples) == 3 * SCENES + 2
    for sample in samples:
        facts = json.loads(sample["json"])
        assert sample["flac"].startswith(b"fLaC") and sample["jpg"].startswith(b"\xff\xd8")
        assert sample["__key__"] == f"folder_{safe_id(facts['media_id'])}_{round(facts['start_s'] * 1000)}"
        sound = soundfile.info(io.BytesIO(sample["flac"]))
        assert (sound.format, sound.subtype, sound.samplerate, sound.channels, sound.frames) == (
            "FLAC",
            "PCM_16",
            16000,
            1,
            25600,
        )
        assert (
            facts["duration_s"] == 1.6
            and facts["sample_rate_hz"] == 16000
            and min(facts["width_px"], facts["height_px"]) == 64
        )


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_columns_of_a_url_list_are_stored_with_every_sample(world: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"urls.{suffix}"
    with running_site(world.parent) as site:
        rows = [
            {"url": f"{site.url}/media/{name}.mp4", "id": name, "camera": f"kite of {name}", "n": n}
            for n, name in enumerate(MP4S)
        ]
        if suffix == "csv":
            path.write_text(
                "\n".join(
                    ",".join(str(value) for value in line)
                    for line in (rows[0], *(row.values() for row in rows))
                )
            )
        else:
            pq.write_table(pa.Table.from_pylist(rows), path)
        network = FetchConfig(allow_private=[f"127.0.0.1:{site.port}"])
        source = SourceConfig(str(path), "urls", "own")
        summary = scrape(config(world, tmp_path / "clips", source=source, network=network), progress=False)
    assert summary.counts == {"kept": 2 * SCENES}
    stored = webdataset.WebDataset(
        [str(one) for one in sorted((tmp_path / "clips/shards").glob("*.tar"))], shardshuffle=False
    )
    metas = [
        (facts["media_id"], facts["meta"]) for facts in (json.loads(sample["json"]) for sample in stored)
    ]
    for n, name in enumerate(MP4S):
        told = {"camera": f"kite of {name}", "n": str(n) if suffix == "csv" else n}
        assert [told.items() <= meta.items() for id, meta in metas if id == name] == [True] * SCENES


def test_other_settings_on_the_same_output_are_refused_with_both_values(
    world: Path, done: tuple[Path, RunSummary]
) -> None:
    with pytest.raises(UserError, match=r"clip\.duration_s: 1\.6 \(existing\) -> 2\.0 \(yours\)"):
        scrape(config(world, done[0], clip=ClipConfig(2.0)), progress=False)
    linked = done[0].parent / "other-name"
    linked.symlink_to(done[0])
    assert (
        scrape(config(world, linked), progress=False).units_done == 0
    )  # the name of the output is no setting of its bytes


def test_a_license_that_is_not_allowed_is_a_row(world: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for path in sorted(world.iterdir()):
            tar.add(path, path.name)
    source = SourceConfig(str(tmp_path), "webdataset", "CC-BY-NC-4.0")
    summary = scrape(config(world, tmp_path / "clips", source=source), progress=False)
    assert set(summary.counts) == {"refused:license"} and not tars(tmp_path / "clips")
    assert list(verify(str(tmp_path / "clips"))) == []


def test_what_could_never_be_allowed_is_refused_before_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(
        "url,license\nhttp://127.0.0.1:9/a.mp4,CC BY-NC 4.0\nhttp://127.0.0.1:9/b.mp4,mine\n"
    )
    network = FetchConfig(allow_private=["127.0.0.1:9"], retries=0)
    changes = {"source": SourceConfig(str(tmp_path / "list.csv"), "urls"), "network": network}
    assert scrape(config(tmp_path, tmp_path / "clips", **changes), progress=False).counts == {
        "refused:license": 2
    }
    details = {row["detail"] for row in Dataset.open(str(tmp_path / "clips")).iter_rows()}
    assert details == {"license CC-BY-NC-4.0 is not allowed", "license unknown is not allowed"}


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


def test_the_page_has_players_and_reasons(done: tuple[Path, RunSummary], tmp_path: Path) -> None:
    path = write_report(ReportConfig(str(done[0]), output=str(tmp_path / "page.html"), title="<Brook>"))
    page = Path(path).read_text()
    assert page.count("<audio controls") >= 5 and page.count("data:audio/flac;base64,") == page.count(
        "<audio controls"
    )
    assert "silent" in page and "broken" in page and "&lt;Brook&gt;" in page
    assert {entry.name for entry in tmp_path.iterdir()} == {
        f"page.{end}" for end in ("html", "card.md", "attribution.csv", "croissant.json")
    }  # no README.md
    assert "default-src 'none'" in page and not any(
        f"{scheme}://" in page.split("<body>")[0] for scheme in ("http", "https")
    )


def test_the_dataset_card_names_licenses_and_sources_and_nothing_that_was_removed(
    done: tuple[Path, RunSummary], tmp_path: Path
) -> None:
    output = tmp_path / "clips"
    shutil.copytree(done[0], output)
    dataset = Dataset.open(str(output))
    kept = [row for row in dataset.iter_rows() if row["status"] == "kept"]
    gone = {row["key"]: "take-down" for row in kept if row["media_id"] == kept[0]["media_id"]}
    dataset.bury(gone)
    write_report(ReportConfig(str(output)))
    front, text = (output / "README.md").read_text().removeprefix("---").split("---", 1)
    assert yaml.safe_load(front)["dataset_info"]["splits"] and f"{len(kept) - len(gone):,} pairs" in text
    lines = list(csv.DictReader((output / "ATTRIBUTION.csv").open()))
    assert len(lines) == len({row["media_id"] for row in kept}) - 1
    assert all(line["license"] == "own" and line["changes"] for line in lines)


@pytest.mark.parametrize(
    "hostile", ["=cmd()", "+1", "-1", "@x", "\x1b[31mred\x1b[0m", "a\u202eb", "two\nlines", "x\ud800", "  =1"]
)
def test_texts_of_the_web_are_inert_in_card_and_page(hostile: str) -> None:
    shown = plain(hostile)
    assert shown.isprintable() and shown.encode() and shown[:1] not in ("=", "+", "-", "@")


def test_the_page_draws_a_run_and_refuses_what_is_none(done: tuple[Path, RunSummary], tmp_path: Path) -> None:
    lines = [json.dumps({"step": step, "loss": 1 / step}) for step in range(1, 60)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    (tmp_path / "events.jsonl").write_text(json.dumps({"event": "killed", "step": 30}))
    page = Path(
        write_report(ReportConfig(str(done[0]), output=str(tmp_path / "page.html"), run=str(tmp_path)))
    ).read_text()
    assert "polyline" in page and "killed at step 30" in page
    with pytest.raises(UserError, match="metrics.jsonl"):
        write_report(
            ReportConfig(str(done[0]), output=str(tmp_path / "page.html"), run=str(tmp_path / "none"))
        )
    with pytest.raises(UserError, match="scores.json"):
        write_report(
            ReportConfig(str(done[0]), output=str(tmp_path / "page.html"), scores=str(tmp_path / "none"))
        )


def test_nothing_that_was_fetched_stays_in_the_spool(world: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for path in (world / "mp40000.mp4", world / "broken.mp4"):
            tar.add(path, path.name)
    source = SourceConfig(str(tmp_path / "a.tar"), "webdataset", "own")
    work = [WorkItem(item.id, 0, asdict(item)) for item in enumerate_items(source)]
    stage = ScrapeStage(config(world, tmp_path / "clips", source=source))
    (tmp_path / "scratch").mkdir()
    output = stage(UnitTask("u0", work), tmp_path / "scratch")
    assert output.shard.counts == {"kept": SCENES, "refused:corrupt": 1} and not any(stage.spool.iterdir())
    stage.close()
    assert not stage.spool.exists()


def test_the_split_goes_by_media_observer_or_channel() -> None:
    assert split_group("urls", "1", "ann", "media") != split_group("urls", "2", "ann", "media")
    assert split_group("inaturalist", "1_2", "ann", "media") == split_group(
        "inaturalist", "3_4", "ann", "media"
    )
    assert split_group("youtube", "1", "UCa", "channel") == split_group("youtube", "2", "UCa", "channel")
    assert split_group("urls", "1", "", "channel") != split_group("urls", "2", "", "channel")


def test_the_split_keeps_its_shares() -> None:
    splits = Counter(
        split_of(f"folder:{number}", SplitConfig(validation=0.2, test=0.1)) for number in range(4000)
    )
    assert splits["validation"] / 4000 == pytest.approx(0.2, abs=0.03) and splits[
        "test"
    ] / 4000 == pytest.approx(0.1, abs=0.03)


def test_long_ids_fit_a_tar_and_stay_apart(tmp_path: Path) -> None:
    jpeg = io.BytesIO()
    Image.new("RGB", (64, 64)).save(jpeg, "JPEG")
    clip = Clip(3599.9, 1.6, 16000, np.zeros(25600, np.int16), jpeg.getvalue(), 64, 64, 3600.0, 0.0)
    media = Media(tmp_path, tmp_path, False, "own")
    keys = set()
    for media_id in ("a" * 80, "a" * 79 + "b", "x/" * 40, "https://example.org/" + "y" * 200, "é" * 60):
        row = clip_row(Item("inaturalist", media_id, ""), "", media, clip, "train", None, {})
        keys.add(row.key)
        assert row.key and len(f"{row.key}.flac") <= 99
    assert len(keys) == 5


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"license": LicenseConfig(["GPL"])}, "license.allow: 'GPL'"),
        (
            {"license": LicenseConfig(["CC-BY-4.0"])},
            "source.license=own: license.allow=CC-BY-4.0 lets nothing of it in",
        ),
        ({"license": LicenseConfig(["unknown"])}, "license.allow"),
        ({"clip": ClipConfig(0)}, "clip.duration_s=0"),
        ({"unit_size": 0}, "unit_size=0"),
        ({"split": SplitConfig(0.9, 0.2)}, "split"),
        ({"split": SplitConfig(by="clip")}, "split.by=clip"),
        ({"network": FetchConfig(bytes_per_s=1e6)}, "a worker's share brings 300 MB"),
        ({"workers": -1}, "workers=-1"),
    ],
)
def test_settings_that_cannot_work_make_nothing(
    world: Path, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        scrape(config(world, tmp_path / "clips", **changes), progress=False)
    assert not (tmp_path / "clips" / "commits").exists()


def test_an_empty_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing found"):
        scrape(config(tmp_path, tmp_path / "clips"), progress=False)
