"""The report: its numbers are those of the index, counted here in another way; texts of the web stay text;
commands make it again.
"""

import csv
import io
import itertools
import json
import math
import re
import shlex
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from cluster.dataset import Dataset
from cluster.record import run_verb
from cluster.shards import Row, write_shard
from configs.load import load_config
from ingest.curate import CurateConfig
from ingest.gc import GcConfig, gc
from ingest.licenses import url_of
from ingest.pages.survey import survey
from ingest.remove import RemoveConfig, remove
from ingest.report import ReportConfig, commands_of, write_report
from ingest.rows import CLIP_COLUMNS
from ingest.sample import Clip, Item, Media, Reason, Refused
from ingest.scrape import ScrapeConfig
from ingest.shard import clip_row, refused_row
from tests.fakes.browser import look_at
from tests.fakes.evaluated import make_evaluation, make_run

SECONDS, RATE_HZ = 0.5, 16000
EVIL = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>{{7*7}}[a](javascript:alert(3))|`<!--"
REFUSED = [
    (Reason.REMOVED, "HTTP 404"),
    (Reason.REMOVED, ""),
    (Reason.LICENSE, EVIL),
    (Reason.TIMEOUT, "slow"),
    (Reason.RATE_LIMITED, "429"),
]


def clips_of(name: str, count: int, channel: str, license: str, silent: int = 0, url: str = "") -> list[Row]:
    """`count` clips of a medium, ten seconds apart, of which the last `silent` ones are refused."""
    picture, seed = io.BytesIO(), sum(map(ord, name))
    Image.fromarray(np.full((32, 32, 3), seed % 200, np.uint8)).save(picture, "JPEG")
    url, title = url or f"https://example.org/{name}", EVIL if channel == EVIL else f"title of {name}"
    item, media = (
        Item("urls", name, url, title=title),
        Media(Path("x"), Path("x"), False, license, channel=channel),
    )
    rows = []
    for n in range(count):
        noise = (np.random.default_rng(seed + n).standard_normal(round(SECONDS * RATE_HZ)) * 1000).astype(
            np.int16
        )
        clip = Clip(10.0 * n, SECONDS, RATE_HZ, noise, picture.getvalue(), 32, 32, 0.0, 0.0)
        scores = {
            "rms_dbfs": -70.0 if n >= count - silent else -5.0 - (seed + 7 * n) % 50,
            "brightness": float(seed % 200),
        }
        split = "validation" if seed % 3 == 0 else "train"
        rows.append(
            clip_row(
                item,
                f"urls:{name}",
                media,
                clip,
                split,
                Reason.SILENT if n >= count - silent else None,
                scores,
            )
        )
    return rows


def refused(name: str, reason: Reason, detail: str) -> Row:
    return refused_row(
        Item("urls", name, f"https://example.org/{name}", title="t"), f"urls:{name}", Refused(reason, detail)
    )


def commit(dataset: Dataset, rows: list[Row], folder: Path, attempt: int = 0) -> None:
    """Lists the items of `rows` as one unit, and commits it."""
    first = dataset.worklist.count_units()
    dataset.worklist.append({row.item_id: {} for row in rows}.items(), 99, attempt)
    (folder / f"scratch{first}").mkdir()
    dataset.commit(f"u{first:07d}", 0, write_shard(folder / f"scratch{first}", rows, CLIP_COLUMNS), {})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Media of 13 channels and three licenses, everything refused that can be, a second attempt, tombstones,
    a unit not done yet.
    """
    folder = tmp_path_factory.mktemp("data")
    dataset = Dataset.create_or_open(str(folder / "clips"), "clips", {"clip": {"duration_s": SECONDS}}, [])
    licenses = ["CC-BY-4.0", "CC0-1.0", "CC-BY-SA-3.0"]
    many = [clips_of(f"m{n}", n % 5 + 1, f"channel {n}", licenses[n % 3], silent=n % 2) for n in range(12)]
    commit(
        dataset,
        [*itertools.chain(*many[:6]), *(refused(f"r{n}", *why) for n, why in enumerate(REFUSED))],
        folder,
    )
    commit(
        dataset, [*itertools.chain(*many[6:]), *clips_of("mute", 2, "channel 1", "CC0-1.0", silent=2)], folder
    )
    commit(
        dataset,
        [
            *clips_of("evil", 3, EVIL, "CC-BY-4.0", url="javascript:alert(4)"),
            *clips_of("gone", 2, "SECRET", "own"),
        ],
        folder,
    )
    commit(dataset, clips_of("r3", 4, "", "CC0-1.0"), folder, attempt=1)
    commit(dataset, clips_of("erased", 2, "SECRET", "own", silent=1), folder)
    dataset.worklist.append(((f"urls:later{n}", {}) for n in range(7)), 4)
    gone = {row["key"]: "take-down" for row in dataset.iter_rows() if row["media_id"] == "gone"}
    remove(RemoveConfig(dataset.uri, media="erased", reason="erased"))
    gc(GcConfig(dataset.uri, purge=True))
    dataset.bury({**gone, "urls_m2_0": "near_duplicate", "urls_m3_0": "channel_cap"})
    return dataset


@pytest.fixture(scope="module")
def page(dataset: Dataset) -> str:
    return Path(write_report(ReportConfig(dataset.uri))).read_text()


class Reader(HTMLParser):
    """The tables of a page as lists of rows of texts, every element with its attributes, and all text that is
    shown.
    """

    def __init__(self, html: str):
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = self.within = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        self.within = tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.within in ("td", "th"):
            self.tables[-1][-1][-1] += data.strip()

    def table(self, title: str) -> dict[str, int]:
        """Name -> number of the table that begins with this word."""
        rows = next(table for table in self.tables if table[0][0] == title)
        return {row[0]: int(row[1].replace(",", "")) for row in rows[1:] if len(row) > 1 and row[1]}


def parquet_rows(dataset: Dataset) -> list[dict[str, Any]]:
    """Every row of the index, read without our code; `buried`: the reason of its tombstone."""
    root = Path(dataset.uri)
    tombs = [
        row
        for path in sorted(root.glob("tombstones/*.parquet"))
        for row in pq.ParquetFile(path).read().to_pylist()
    ]
    buried = {row["key"]: row["reason"] for row in tombs}
    rows = [
        row
        for path in sorted(root.glob("index/*.parquet"))
        for row in pq.ParquetFile(path).read().to_pylist()
    ]
    return [{**row, "buried": buried.get(row["key"]) if row["status"] == "kept" else None} for row in rows]


def kept_rows(dataset: Dataset) -> list[dict[str, Any]]:
    return [row for row in parquet_rows(dataset) if row["status"] == "kept" and not row["buried"]]


def test_the_funnel_is_that_of_the_index(dataset: Dataset, page: str) -> None:
    rows, kept = parquet_rows(dataset), kept_rows(dataset)
    funnel = Reader(page).table("items")
    assert funnel == {
        "listed in the work list": 28,
        "answered so far": 21,
        "gave at least one clip": 17,
        "gave one that was kept": len({row["item_id"] for row in kept}),
        "cut": sum(row["key"] is not None for row in rows),
        "kept": len(kept),
    }
    assert (funnel["answered so far"], funnel["gave at least one clip"]) == (
        len({row["item_id"] for row in rows}),
        len({row["item_id"] for row in rows if row["key"]}),
    )
    hours = sum(row["duration_s"] for row in kept) / 60
    num_bytes = sum(path.stat().st_size for path in Path(dataset.uri).glob("shards/*.tar"))
    tiles = re.findall(r'class="tile"><b>(.*?)</b>', page)
    assert tiles == [
        str(len(kept)),
        f"{hours:.1f} min",
        str(len(rows) - len(kept)),
        f"{num_bytes / 1e3:.1f} kB",
    ]


def test_reasons_are_those_of_the_index_with_what_may_pass_apart(dataset: Dataset, page: str) -> None:
    reader = Reader(page)
    expected = Counter(
        row["buried"] or row["reason"] for row in parquet_rows(dataset) if row["buried"] or row["reason"]
    )
    passing = {name: expected.pop(name) for name in ("timeout", "rate_limited")}
    assert reader.table("For good") == expected and reader.table("For now: retried") == passing
    assert (
        expected["take-down"] == expected["erased"] == 2
        and expected["removed"] == 2
        and passing["timeout"] == 1
    )
    assert (
        "https://example.org/r0: HTTP 404" in reader.text
        and "https://example.org/m1 at 10.0 s" in reader.text
    )


@pytest.mark.parametrize("what", ["license", "split", "source", "channel"])
def test_what_it_is_made_of_is_counted_over_the_kept(dataset: Dataset, page: str, what: str) -> None:
    expected = Counter(row[what] or "not stated" for row in kept_rows(dataset))
    shown = Reader(page).table(what)
    assert len(shown) == min(10, len(expected)) and sorted(shown.values()) == sorted(expected.values())[-10:]
    assert all(expected[name] == count for name, count in shown.items() if name in expected) and set(
        shown
    ) - {EVIL[:80]} <= set(expected)
    assert (f"and {len(expected) - 10} more" in page) == (what == "channel")


def bars(page: str, label: str) -> dict[str, int]:
    """Name -> number of each bar of a chart, as pointing at it tells."""
    drawing = next(part for part in page.split("<figure>")[1:] if label in part.split("</figure>")[0])
    told = re.findall(r"<title>(.*?): ([\d,]+) (?:items|clips)</title>", drawing.split("</figure>")[0])
    return {name: int(count.replace(",", "")) for name, count in told}


def test_charts_tell_lengths_clips_per_item_and_loudness(dataset: Dataset, page: str) -> None:
    rows, kept = parquet_rows(dataset), kept_rows(dataset)
    per_item = Counter(Counter(row["item_id"] for row in kept).values())
    assert bars(page, "clips kept of an item") == {
        f"{number} clips": count for number, count in sorted(per_item.items())
    }
    loud, edges = np.histogram([json.loads(row["scores"])["rms_dbfs"] for row in kept], 32, (-80, 0))
    assert bars(page, "loudness") == {
        f"{low:.3g} to {high:.3g}": n for low, high, n in zip(edges, edges[1:], loud) if n
    }
    ends: dict[str, float] = {}
    for row in rows:
        if row["key"] and row["start_s"] is not None:
            ends[row["item_id"]] = max(ends.get(row["item_id"], 0), row["start_s"] + SECONDS)
    lengths = bars(page, "length of media")
    assert sum(lengths.values()) == len(ends) and next(iter(lengths.values())) == sum(
        end == SECONDS for end in ends.values()
    )
    place = math.floor(32 * math.log(10.5) / math.log(36000))  # two clips, the second from 10 s on
    low, high = (36000 ** (edge / 32) for edge in (place, place + 1))
    assert lengths[f"{low:.2g} s to {high:.2g} s"] == sum(end == 10.5 for end in ends.values()) > 0


def test_hostile_texts_are_shown_and_never_markup(dataset: Dataset, page: str) -> None:
    reader = Reader(page)
    assert "<script>alert(1)</script>" in reader.text and "{{7*7}}" in reader.text
    assert not {tag for tag, _ in reader.elements} & {"script", "iframe", "object", "embed", "form", "base"}
    for tag, attributes in reader.elements:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in ("src", "href"):
            address = attributes.get(name) or "https:"
            assert address.startswith("data:" if name == "src" and name in attributes else "https:"), address
    card = (Path(dataset.uri) / "README.md").read_text()
    assert "<script>" not in card and "SECRET" not in card


def test_nothing_of_what_was_taken_down_is_shown(dataset: Dataset, page: str) -> None:
    told = (
        page
        + (Path(dataset.uri) / "README.md").read_text()
        + (Path(dataset.uri) / "ATTRIBUTION.csv").read_text()
    )
    assert (
        "take-down" in page
        and "erased" in page
        and not any(word in told for word in ("/gone", "of gone", "/erased", "of erased", "SECRET", "None"))
    )


def test_what_is_taken_down_without_a_rewrite_is_not_shown_either(tmp_path: Path) -> None:
    dataset = Dataset.create_or_open(str(tmp_path / "clips"), "clips", {}, [])
    commit(dataset, [refused(name, Reason.REMOVED, "HTTP 404") for name in ("hidden", "other")], tmp_path)
    assert "of hidden" in (told := repr(survey(dataset).examples)) or "/hidden" in told
    remove(RemoveConfig(dataset.uri, media="hidden", rewrite=False))
    assert "hidden" not in repr(survey(dataset).examples) and "/other" in repr(survey(dataset).examples)


def test_the_attribution_list_has_a_line_for_each_kept_medium(dataset: Dataset, page: str) -> None:
    lines = list(csv.DictReader((Path(dataset.uri) / "ATTRIBUTION.csv").open(encoding="utf-8")))
    media = {row["media_id"]: row for row in kept_rows(dataset)}
    told = {(line["link"], line["license"], line["license_link"]) for line in lines}
    assert len(lines) == len(media) and told == {
        (row["url"], row["license"], url_of(row["license"])) for row in media.values()
    }
    by = {line["link"]: (line["title"], line["author"]) for line in lines}
    assert by["https://example.org/m4"] == ("title of m4", "channel 4")


def quiet(dataset: Dataset) -> dict[str, Any]:
    return {"output": dataset.uri, "show": lambda summary: None, "as_json": False, "dry_run": False}


def test_the_commands_make_the_same_settings_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = Dataset.create_or_open(str(tmp_path / "my data's"), "clips", {}, [])
    (tmp_path / "mine.yaml").write_text(
        "unit_size: 3\nclip: {duration_s: 2.5, mode: grid}\nsplit: {validation: 0.1}\n"
    )
    typed = [
        (
            "scrape",
            [
                f"{tmp_path}/mine.yaml",
                f"output={copy.uri}",
                "source.path=a \"b\" 'c' 😀.csv",
                "source.kind=urls",
                "source.license=",
            ],
        ),
        (
            "scrape",
            [
                f"{tmp_path}/mine.yaml",
                f"output={copy.uri}",
                "source.path=x; rm -rf $HOME",
                "license.allow=[own,CC0-1.0]",
                "workers=0",
            ],
        ),
        ("curate", [f"dataset={copy.uri}", "max_per_channel=200"]),
        (
            "scrape",
            [
                f"output={copy.uri}",
                'license.allow=["é😀"]',
                "source.path=007",
                "clip.duration_s=2.5",
                "frame.quality=80",
            ],
        ),
    ]
    schemas: dict[str, type] = {"scrape": ScrapeConfig, "curate": CurateConfig}
    for hour, (verb, words) in enumerate([*typed, typed[2]]):
        with monkeypatch.context() as patch:
            patch.setattr("cluster.record.time.strftime", lambda _, hour=hour: f"20260101T{hour:02d}0000")
            run_verb(verb, words, load_config(schemas[verb], words), dict, **quiet(copy))
    commands = [shlex.split(command) for command in commands_of(copy)]
    assert [command[:4] for command in commands] == [["python", "-m", "ingest", verb] for verb, _ in typed], (
        "what was typed twice stands once"
    )
    for (verb, words), command in zip(typed, commands, strict=True):
        again = command[4:] if verb == "scrape" else [f"dataset={command[4]}", *command[5:]]
        assert load_config(schemas[verb], again) == load_config(schemas[verb], words)
    shown = Path(write_report(ReportConfig(copy.uri, output=str(tmp_path / "page.html")))).read_text()
    assert all(shlex.join(command) in Reader(shown).text for command in commands)


def test_a_dataset_without_records_says_so(page: str) -> None:
    assert "No run left a record here." in page


def test_whom_a_removal_names_is_not_shown(tmp_path: Path) -> None:
    dataset = Dataset.create_or_open(str(tmp_path / "clips"), "clips", {}, [])
    args = [f"dataset={dataset.uri}", "channel=Ann", "reason=gone"]
    run_verb("remove", args, load_config(RemoveConfig, args), dict, **quiet(dataset))
    assert any("'channel=…' reason=gone" in command for command in commands_of(dataset))
    assert "Ann" not in str(commands_of(dataset))


def test_the_gallery_has_as_many_as_asked_all_kept_and_their_own_sound(
    dataset: Dataset, tmp_path: Path
) -> None:
    kept = {row["key"] for row in kept_rows(dataset)}
    for most in (5, 24, 999):
        shown = Path(write_report(ReportConfig(dataset.uri, str(tmp_path / "page.html"), most))).read_text()
        keys = re.findall(r'alt="frame of (.*?)"', shown)
        assert len(set(keys)) == len(keys) == min(most, len(kept)) and set(keys) <= kept
        assert shown.count("<audio controls") == shown.count('alt="spectrogram of ') == len(keys)


def test_an_empty_dataset_has_a_page(tmp_path: Path) -> None:
    dataset = Dataset.create_or_open(str(tmp_path / "clips"), "clips", {}, [])
    page = Path(write_report(ReportConfig(dataset.uri))).read_text()
    assert "Nothing was refused." in page and "<figure>" not in page and survey(dataset).listed == 0


def test_the_card_tells_the_same_numbers(dataset: Dataset, page: str) -> None:
    front, text = (Path(dataset.uri) / "README.md").read_text().removeprefix("---").split("---", 1)
    rows, kept = parquet_rows(dataset), kept_rows(dataset)
    table = {name: int(count) for name, count in re.findall(r"^\| (\S+) \| (\d+) \|", text, re.MULTILINE)}
    reasons = Counter(row["buried"] or row["reason"] for row in rows if row["buried"] or row["reason"])
    licenses = Counter(row["license"] for row in kept)
    assert table == {name.replace("_", r"\_"): count for name, count in (reasons + licenses).items()}
    assert all(f"<{url_of(name)}>" in text for name in licenses)
    assert f"{len(kept)} pairs of a picture and the sound of its place, 0.5 s each:" in text
    assert (
        "Of 28 items that were listed, 21 were tried and 17 gave 46 clips;\n32 clips of 13 items were kept."
        in text
    )
    splits = {
        split["name"]: split["num_examples"] for split in yaml.safe_load(front)["dataset_info"]["splits"]
    }
    assert splits == Counter(row["split"] for row in kept)
    assert f"ATTRIBUTION.csv names the {len({row['media_id'] for row in kept})} sources" in text


@pytest.fixture(scope="module")
def story(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a dataset with an evaluation and two runs, of which one was killed."""
    folder = tmp_path_factory.mktemp("story")
    scores = make_evaluation(folder / "evaluation")
    runs = f"{make_run(folder / 'contrastive')}, {make_run(folder / 'diffusion', kill=52)}"
    output = str(folder / "page.html")
    write_report(ReportConfig(dataset.uri, output, gallery=4, run=runs, scores=str(scores), card=False))
    return folder / "page.html"


def test_the_story_tells_what_is_right_and_what_was_killed(story: Path) -> None:
    text = " ".join(Reader(story.read_text()).text.split())
    for words in (
        "Shape is timbre",
        "Counts as right: within 50 cents",
        "chance 20 %",
        "ceiling 100 %",
        "94 % of the gap closed (88 to 100)",
        "+200 cents ✗ wrong",
        "Step 52: killed",
        "Step 50: resumed, 13 s later",
        "The repeated steps gave the same losses, to the bit.",
        "held-out clips: 0.012 at last",
    ):
        assert words in text, words
    assert text.count("✗ wrong") == 1 and text.count("✓ right") == 5


def test_everything_that_is_seen_or_heard_has_a_name_of_its_own(story: Path) -> None:
    elements = Reader(story.read_text()).elements
    names = [attributes.get("aria-label") for tag, attributes in elements if tag == "audio"]
    # six of the guide, two pairs of two, four of the gallery
    assert len(set(names)) == len(names) == 6 + 4 + 4 and all(names)
    assert all(attributes.get("alt") for tag, attributes in elements if tag == "img")
    assert all(
        attributes.get("aria-label") or attributes.get("aria-hidden")
        for tag, attributes in elements
        if tag == "svg"
    )
    links = [attributes["href"] for tag, attributes in elements if tag == "a"]
    ids = {f"#{attributes['id']}" for _, attributes in elements if "id" in attributes}
    inside = {link for link in links if link and link.startswith("#")}
    assert inside <= ids and len(inside) == 7


@pytest.mark.parametrize("width_px", [390, 1280])
def test_a_browser_shows_and_plays_the_whole_story(story: Path, width_px: int) -> None:
    seen = look_at(story, width_px)
    assert seen["errors"] == [] and seen["scripts"] == 0
    assert seen["scroll_px"] <= width_px, seen["beyond"]
    assert len(seen["players"]) == 14 and all(seen["players"])
    assert all(width > 0 for _, width, _ in seen["pictures"])
    assert story.stat().st_size < 2_000_000


def test_a_dataset_alone_has_no_story(page: str) -> None:
    assert "What a picture says" not in page and "Killed" not in page and "<nav" not in page
