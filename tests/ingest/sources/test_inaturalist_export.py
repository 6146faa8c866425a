"""iNaturalist's observations in files: every shape gives what the API gives, and states no more."""

import csv
import json
from pathlib import Path

import pytest

from tests.ingest.sources.test_inaturalist import listed, observation


@pytest.mark.parametrize("name", ["answer.json", "list.json", "lines.jsonl", "site.json"])
def test_exports_of_every_shape_give_the_same_pairs(tmp_path: Path, name: str) -> None:
    ours = [observation(1), observation(2, None)]
    site = [{**one, "photos": None, "sounds": None} for one in ours]
    for one, plain in zip(site, ours, strict=True):
        one["observation_photos"], one["observation_sounds"] = (
            [{"photo": plain["photos"][0]}],
            [{"sound": plain["sounds"][0]}],
        )
    texts = {
        "answer.json": json.dumps({"results": ours}),
        "list.json": json.dumps(ours),
        "site.json": json.dumps(site),
    }
    (tmp_path / name).write_text(texts.get(name) or "\n".join(map(json.dumps, ours)))
    items = listed(tmp_path / name)
    assert [(item.id, item.license) for item in items] == [
        ("10_100", "CC-BY-4.0"),
        ("20_200", "all-rights-reserved"),
    ]


def test_the_sites_csv_states_no_licenses_of_media(tmp_path: Path) -> None:
    columns = ["id", "license", "image_url", "sound_url", "user_login", "common_name", "scientific_name"]
    row = [
        "5",
        "CC-BY",
        "https://a/photos/50/medium.jpeg",
        "https://a/sounds/500.m4a?1",
        "ann",
        "Blackbird",
        "Turdus merula",
    ]
    for more, license in (([], "unknown"), (["photo_license", "sound_license"], "CC-BY-SA-4.0")):
        with (tmp_path / "export.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*columns, *more])
            writer.writerow([*row, *(["CC-BY", "CC-BY-SA"] if more else [])])
            writer.writerow(
                [
                    "6",
                    "CC0",
                    "https://a/photos/60/medium.jpeg",
                    "",
                    "bob",
                    "",
                    "",
                    *(["", ""] if more else []),
                ]
            )
        (item,) = listed(tmp_path / "export.csv")
        assert (item.id, item.license, item.title, item.url) == (
            "50_500",
            license,
            "Blackbird",
            "https://a/photos/50/large.jpeg",
        )
        assert item.meta["photo_license"] == ("CC-BY-4.0" if more else "unknown"), (
            "the observation's license is not the photo's"
        )


def test_lines_of_an_export_end_at_line_feeds_only(tmp_path: Path) -> None:
    lines = [{**observation(id), "description": "a\u2028b\x85c\x0bd"} for id in (1, 2)]
    (tmp_path / "o.jsonl").write_text(
        "".join(json.dumps(line, ensure_ascii=False) + "\r\n" for line in lines), encoding="utf-8"
    )
    assert [item.id for item in listed(tmp_path / "o.jsonl")] == ["10_100", "20_200"]
