"""`ingest refresh`: what a site has withdrawn is buried, down to latents; what it only fails to answer stays."""

import json
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

import ingest.refresh
from cluster.dataset import Dataset
from cluster.shards import Row, write_shard
from configs.load import UserError
from ingest.__main__ import app
from ingest.clip.clipper import ClipConfig, FrameConfig
from ingest.fetch.fetcher import Fetcher
from ingest.fetch.settings import FetchConfig
from ingest.refresh import RefreshConfig, ask_inaturalist, refresh
from ingest.rights.permission import PATHS
from ingest.rows import CLIP_COLUMNS
from ingest.sample import Item
from ingest.scrape import ScrapeConfig, scrape
from ingest.sources.settings import SourceConfig
from ingest.verify import verify
from tests.fakes.media import film
from tests.fakes.takedown import npy
from tests.ingest.fetch.test_fetcher import HostileSite, body
from training.data.catalogue import Catalogue

BY = "https://creativecommons.org/licenses/by/4.0/"
FILES = [*PATHS.values()]
PAGES, DIRECT = [f"p{number}" for number in range(6)], [f"d{number}" for number in range(4)]


class Site(HostileSite):
    """Pages p0, p1, … that state their license, each with a video of its own; and videos d0, d1, … whose
    license is in the list.
    """

    def __init__(self, media: bytes) -> None:
        super().__init__()
        self.media = media

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def reset(self) -> None:
        self.answers = {f"/{name}.mp4": body(self.media, "video/mp4") for name in (*PAGES, *DIRECT)}
        self.answers |= {f"/{name}": self.page(name, BY) for name in PAGES}
        self.asked.clear()
        self.asked_first.clear()

    def page(self, name: str, license: str, head: str = "") -> Callable:
        facts = {
            "@context": "https://schema.org",
            "@type": "VideoObject",
            "name": "a",
            "contentUrl": f"http://{self.host}/{name}.mp4",
        }
        stated = json.dumps({**facts, **({"license": license} if license else {})})
        return body(
            f'<html><head><title>a</title>{head}<script type="application/ld+json">{stated}</script></head></html>'.encode()
        )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    path = tmp_path_factory.mktemp("media") / "a.mp4"
    film(path, duration_s=2.0)
    with Site(path.read_bytes()) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def scraped(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of all items, five a unit, and latents of them."""
    root = tmp_path_factory.mktemp("root")
    site.reset()
    rows = [f"http://{site.host}/{name},{name}," for name in PAGES] + [
        f"http://{site.host}/{name}.mp4,{name},CC0-1.0" for name in DIRECT
    ]
    (root / "list.csv").write_text("\n".join(["url,id,license", *rows]) + "\n")
    small = {"clip": ClipConfig(1.6), "frame": FrameConfig(64), "workers": 0, "unit_size": 5}
    scrape(
        ScrapeConfig(
            str(root / "clips"), SourceConfig(str(root / "list.csv"), "urls"), network=network(site), **small
        ),
        progress=False,
    )
    clips = Dataset.open(str(root / "clips"))
    latents = Dataset.create_or_open(
        str(root / "latents"), "latents", {}, [{"uri": "clips", "snapshot": clips.snapshot().id}]
    )
    latents.worklist.append(((f"{commit.unit}.0", {}) for commit in clips.snapshot().commits), 1)
    for task, commit in zip(latents.worklist.units(), clips.snapshot().commits, strict=True):
        rows = [record for record in clips.read_index(commit).to_pylist() if record["status"] == "kept"]
        assert len(rows) >= 5
        made = [
            Row(
                one["item_id"],
                one["key"],
                "kept",
                None,
                None,
                {"split": "train"},
                {"latent.npy": npy(one["key"])},
            )
            for one in rows
        ]
        (root / task.unit).mkdir()
        latents.commit(
            task.unit, 0, write_shard(root / task.unit, made, pa.schema([("split", pa.string())])), {}
        )
    return root


def network(site: Site, **settings: Any) -> FetchConfig:
    return FetchConfig(allow_private=[site.host], retries=0, **settings)


@pytest.fixture
def root(site: Site, scraped: Path, tmp_path: Path) -> Path:
    """A copy of all that, and the site as it was."""
    shutil.copytree(scraped, tmp_path / "root")
    site.reset()
    return tmp_path / "root"


def config_of(root: Path, site: Site, **settings: Any) -> RefreshConfig:
    return RefreshConfig(
        str(root / "clips"), derived=[str(root / "latents")], network=network(site), **settings
    )


def keys_of(dataset: Dataset, item: str) -> set[str]:
    return {
        row["key"]
        for row in dataset.iter_rows(["key", "item_id", "status"])
        if row["item_id"] == f"urls:{item}" and row["key"]
    }


def files_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_evidence_of_permission_is_in_each_sample(root: Path, site: Site) -> None:
    for tar in (root / "clips/shards").glob("*.tar"):
        with tarfile.open(tar) as shard:
            samples = [
                json.load(shard.extractfile(name)) for name in shard.getnames() if name.endswith(".json")
            ]  # type: ignore[arg-type]
        assert samples
        for sample in samples:
            asked = {
                entry["url"].partition(site.host)[2]: entry for entry in sample["meta"]["permission"]["asked"]
            }
            assert set(FILES) <= set(asked) and all(asked[path]["says"] == "there is none" for path in FILES)


REASONS = {
    "p0": "opt_out",
    "p1": "opt_out",
    "p2": "license",
    "p3": "license",
    "p4": "removed",
    "d0": "opt_out",
    "d1": "removed",
}


def withdraw(site: Site) -> None:
    """Something of each kind; p5, d2 and d3 stand."""
    site.answers |= {
        "/robots.txt": body(b"User-agent: stillsound\nDisallow: /p0$", "text/plain"),
        "/p1": site.page("p1", BY, '<meta name="robots" content="noai">'),
        "/p2": site.page("p2", "https://creativecommons.org/licenses/by-nc-nd/4.0/"),
        "/p3": site.page("p3", ""),
        "/p4.mp4": body(b"", status=404),
        "/d0.mp4": body(b"", "video/mp4", tdm_reservation="1"),
        "/d1.mp4": body(b"", status=410),
    }


def test_what_is_withdrawn_is_buried_down_to_latents(root: Path, site: Site) -> None:
    withdraw(site)
    clips, latents = Dataset.open(str(root / "clips")), Dataset.open(str(root / "latents"))
    gone = {key: reason for item, reason in REASONS.items() for key in keys_of(clips, item)}
    pinned = latents.snapshot()
    summary = refresh(config_of(root, site, rewrite=False))
    assert summary["withdrawn"] == {"license": 2, "opt_out": 3, "removed": 2} and (
        summary["asked"],
        summary["stand"],
    ) == (10, 3)
    assert clips.buried() == latents.buried() == gone and summary["samples"] == len(gone)
    catalogue = Catalogue.of(latents, pinned, "train", ("latent.npy",))
    assert {key for key, hole in zip(catalogue.keys, catalogue.holes, strict=True) if hole} == set(gone)


def test_shards_of_what_is_withdrawn_are_written_again(root: Path, site: Site) -> None:
    withdraw(site)
    refresh(RefreshConfig(str(root / "clips"), network=network(site), rewrite=False))
    summary = refresh(
        config_of(root, site)
    )  # finds nothing new, completes what is buried, and the latents that were not named
    clips, latents = Dataset.open(str(root / "clips")), Dataset.open(str(root / "latents"))
    assert summary["units"] > 0 and clips.buried() == latents.buried() != {}
    for dataset in (clips, latents):
        assert {
            row["status"] for row in dataset.iter_rows(["key", "status"]) if row["key"] in dataset.buried()
        } == {"removed"}
        assert not list(verify(dataset.uri))
    assert refresh(config_of(root, site))["units"] == 0


def test_a_failure_in_passing_buries_nothing_and_is_asked_again(root: Path, site: Site) -> None:
    before = files_of(root)
    failures = [
        body(b"", status=503),
        body(b"", status=500),
        lambda handler: None,
        body(b"", Content_Length="99"),
    ]
    site.answers |= {
        f"/{name}": failures[number % 4]
        for number, name in enumerate([*PAGES, *(f"{name}.mp4" for name in DIRECT)])
    }
    site.answers["/d3.mp4"] = body(b"", status=429, Retry_After="3600")  # the last: it holds the others back
    summary = refresh(config_of(root, site))
    assert (summary["withdrawn"], summary["later"] + summary["stand"]) == ({}, 10) and summary["later"] >= 8
    assert Dataset.open(str(root / "clips")).buried() == {}
    assert {name for name in before if not name.startswith("clips/refresh")} == {
        name for name in files_of(root) if not name.startswith("clips/refresh")
    }
    site.reset()
    assert refresh(config_of(root, site))["asked"] == summary["later"]
    assert refresh(config_of(root, site))["asked"] == 10


def test_a_robots_txt_that_fails_withdraws_nothing(root: Path, site: Site) -> None:
    site.answers["/robots.txt"] = body(b"", status=503)
    summary = refresh(config_of(root, site))
    assert (summary["withdrawn"], summary["later"], site.asked) == ({}, 10, [])


def test_a_refusal_of_another_kind_buries_nothing(root: Path, site: Site) -> None:
    site.answers |= {"/p0": body(b"", status=403), "/d0.mp4": body(b"", status=401)}
    summary = refresh(config_of(root, site))
    assert (summary["withdrawn"], summary["unclear"]) == ({}, 2) and Dataset.open(
        str(root / "clips")
    ).buried() == {}


def test_no_body_is_read(root: Path, site: Site) -> None:
    sent: list[int] = []

    def large(handler: Any) -> None:
        body(b"", "video/mp4", Content_Length="100000000")(handler)
        for _ in range(100):
            handler.wfile.write(bytes(1_000_000))
            sent.append(1_000_000)

    site.answers |= {"/p0.mp4": large, "/d0.mp4": large}
    assert (
        refresh(config_of(root, site))["stand"] == 10 and sum(sent) < 90_000_000
    )  # the kernel takes some on its own


def test_a_run_that_was_cut_off_is_completed_and_the_next_asks_for_everything(
    root: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = ingest.refresh._note

    def cut(dataset: Dataset, work: Any, verdicts: dict[str, str]) -> None:
        note(dataset, work, verdicts)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("ingest.refresh._note", cut)
        refresh(config_of(root, site))
    site.reset()
    summary = refresh(config_of(root, site))
    assert (summary["asked"], summary["asked_before"]) == (5, 5) and site.asked_first == FILES
    assert {path.removesuffix(".mp4") for path in site.asked} == {"/p5", "/d0", "/d1", "/d2", "/d3"}
    for path in (root / "clips/refresh").iterdir():
        path.write_text("{")
    assert refresh(config_of(root, site))["asked"] == 10


def test_a_dry_run_tells_and_writes_nothing(root: Path, site: Site) -> None:
    withdraw(site)
    before = files_of(root)
    words = [
        "refresh",
        str(root / "clips"),
        f"network.allow_private=[{site.host}]",
        "network.retries=0",
        "--dry-run",
        "--json",
    ]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0 and files_of(root) == before
    assert json.loads(done.stdout.splitlines()[-1])["withdrawn"] == {"license": 2, "opt_out": 3, "removed": 2}


def test_local_files_are_not_covered_and_stay(site: Site, tmp_path: Path) -> None:
    clips = stored(tmp_path, Item("folder", "a", "/nowhere/a.mp4", "own"))
    summary = refresh(RefreshConfig(clips.uri, network=network(site)))
    assert (summary["not_covered"], summary["withdrawn"]) == (1, {})


def stored(root: Path, *items: Item) -> Dataset:
    """A dataset of clips with one kept sample of each item, in one unit."""
    clips = Dataset.create_or_open(
        str(root / "clips"), "clips", {"license": {"allow": ["CC0-1.0", "CC-BY-4.0"]}}, []
    )
    clips.worklist.append([(f"{item.source}:{item.id}", asdict(item)) for item in items], len(items))
    rows = [
        Row(
            f"{item.source}:{item.id}",
            f"key_{place}",
            "kept",
            None,
            None,
            {"source": item.source},
            {"json": b"{}"},
        )
        for place, item in enumerate(items)
    ]
    (root / "scratch").mkdir()
    clips.commit("u0000000", 0, write_shard(root / "scratch", rows, CLIP_COLUMNS), {})
    return clips


def test_a_pair_of_inaturalist_stands_while_both_are_licensed(site: Site, tmp_path: Path) -> None:
    free, other, none = {"license_code": "cc0"}, {"license_code": "cc-by-nc"}, {"license_code": None}
    now = {
        1: (free, {"license_code": "cc-by"}),
        2: (free, other),
        3: (none, free),
        4: (None, free),
        5: (None, None),
    }
    items = [
        Item(
            "inaturalist",
            f"1{n}_2{n}",
            "http://a.example/1.jpg",
            "CC0-1.0",
            "http://a.example/2.mp3",
            meta={"observation": n},
        )
        for n in now
    ]
    clips = stored(tmp_path, *items)
    results = [
        {
            "id": n,
            "photos": [{"id": int(f"1{n}"), **photo}] if photo else [],
            "sounds": [{"id": int(f"2{n}"), **sound}] if sound else [],
        }
        for n, (photo, sound) in now.items()
        if n != 5
    ]
    site.reset()
    answer = json.dumps({"total_results": 4, "results": results}).encode()
    site.answers["/observations?id=1%2C2%2C3%2C4%2C5&per_page=5"] = body(answer, "application/json")
    summary = refresh(
        RefreshConfig(clips.uri, network=network(site), inaturalist_api=f"http://{site.host}/observations")
    )
    assert summary["withdrawn"] == {"license": 2, "removed": 2} and site.asked_first == []
    assert clips.buried() == {"key_1": "license", "key_2": "license", "key_3": "removed", "key_4": "removed"}


def test_an_api_that_makes_no_sense_withdraws_nothing(site: Site, tmp_path: Path) -> None:
    item = Item(
        "inaturalist",
        "1_2",
        "http://a.example/1.jpg",
        "CC0-1.0",
        "http://a.example/2.mp3",
        meta={"observation": 7},
    )
    config = RefreshConfig("x", network=network(site), inaturalist_api=f"http://{site.host}/observations")
    with Fetcher(config.network, tmp_path, ("CC0-1.0",)) as fetcher:
        for answer in (
            body(b"", status=503),
            body(b'{"total_results": 1, "results": []}'),
            body(b"no json"),
            body(b"[]"),
        ):
            site.answers["/observations?id=7&per_page=1"] = answer
            assert ask_inaturalist(config, fetcher, {"i": item}) == {"i": "later"}


def test_latents_are_refused_with_the_fix(root: Path, site: Site) -> None:
    with pytest.raises(UserError, match="derived"):
        refresh(RefreshConfig(str(root / "latents"), network=network(site)))
    unknown = Dataset.create_or_open(str(root / "unknown"), "clips", {}, [])
    with pytest.raises(UserError, match="license.allow"):
        refresh(RefreshConfig(unknown.uri, network=network(site)))
    with pytest.raises(UserError, match="resume_days"):
        RefreshConfig("x", resume_days=-1)
