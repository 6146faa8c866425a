"""The whole verb on a small folder: rows for everything, resume, the same bytes twice, damage that is found,
a page to look at.
"""

import csv
import io
import json
import shutil
import tarfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import webdataset
import yaml

from cluster.dataset import Dataset
from cluster.progress import RunSummary
from cluster.worklist import UnitTask, WorkItem
from configs.load import UserError
from ingest.clip.clipper import ClipConfig
from ingest.fetch.settings import FetchConfig
from ingest.pages.card import plain
from ingest.report import ReportConfig, write_report
from ingest.sample import safe_id
from ingest.scrape import LicenseConfig, ScrapeStage, SplitConfig, scrape, split_of
from ingest.serve import running_site
from ingest.sources.registry import enumerate_items
from ingest.sources.settings import SourceConfig
from ingest.verify import verify
from tests.fakes.scraping import config
from tests.ingest.conftest import SCENES

MP4S = ("mp40000", "mp40001")


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


def test_a_scrape_that_kept_nothing_binds_nothing_and_decides_all_again(world: Path, tmp_path: Path) -> None:
    """And gives the bytes of an output that never saw the other settings."""
    output = tmp_path / "clips"
    too_long = scrape(config(world, output, clip=ClipConfig(600.0)), progress=False)
    assert "kept" not in too_long.counts and too_long.units_done
    again = scrape(config(world, output), progress=False)
    fresh = scrape(config(world, tmp_path / "fresh"), progress=False)
    assert again.counts == fresh.counts and again.counts["kept"]
    assert tars(output) == tars(tmp_path / "fresh") and not list(verify(str(output)))
    # now there are samples
    with pytest.raises(UserError, match="made with other settings: config.clip.duration_s: 1.6"):
        scrape(config(world, output, clip=ClipConfig(600.0)), progress=False)


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


def test_the_split_keeps_its_shares() -> None:
    splits = Counter(
        split_of(f"folder:{number}", SplitConfig(validation=0.2, test=0.1)) for number in range(4000)
    )
    assert splits["validation"] / 4000 == pytest.approx(0.2, abs=0.03) and splits[
        "test"
    ] / 4000 == pytest.approx(0.1, abs=0.03)


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
