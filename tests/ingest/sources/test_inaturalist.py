"""iNaturalist: pairs of a photo and a sound from exports and from a loopback API, licensed by both, asked
within limits.
"""

import contextlib
import io
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
import soundfile
from PIL import Image

from cluster.dataset import Dataset
from configs.load import UserError
from ingest.clip.clipper import ClipConfig, FrameConfig
from ingest.fetch.settings import FetchConfig
from ingest.license_table import SITE_CODES
from ingest.licenses import combined, is_code, license_code, properties, strictness
from ingest.sample import Item
from ingest.scrape import LicenseConfig, ScrapeConfig, SplitConfig, scrape
from ingest.sources.inaturalist import pairs_of
from ingest.sources.registry import enumerate_items
from ingest.sources.settings import InaturalistConfig, SourceConfig

RATE_HZ = 16000


def observation(
    id: int, photo_license: str | None = "cc-by", sound_license: str | None = "cc-by", base: str = ""
) -> dict[str, Any]:
    """As the API gives it: photo 10 x id, sound 100 x id, addresses below `base`."""
    base = base or "https://static.example"
    photo = {
        "id": 10 * id,
        "license_code": photo_license,
        "url": f"{base}/photos/{10 * id}/square.jpg",
        "attribution": "(c) Ann",
    }
    sound = {
        "id": 100 * id,
        "license_code": sound_license,
        "file_url": f"{base}/sounds/{100 * id}.wav?1",
        "attribution": "(c) Ann",
    }
    taxon = {"name": "Turdus merula", "preferred_common_name": "Blackbird", "rank": "species"}
    return {
        "id": id,
        "photos": [photo],
        "sounds": [sound],
        "taxon": taxon,
        "user": {"login": "ann", "id": 7},
        "geojson": {"x": 1},
    }


class Api(ThreadingHTTPServer):
    """Pages by id_above, and media.

    `answers` are given first: (status, headers). `asked`: (seconds, query) of the API.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.observations: list[dict[str, Any]] = []
        self.answers: list[tuple[int, dict[str, str]]] = []
        self.asked: list[tuple[float, dict[str, list[str]]]] = []
        self.media: list[str] = []
        self.raw = b""
        self.hidden: set[int] = set()  # counted, and not listed
        self.counts_all = False  # total_results without regard to id_above

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    @property
    def url(self) -> str:
        return f"http://{self.address}/v1/observations?taxon_id=3"


class Handler(BaseHTTPRequestHandler):
    server: Api

    def do_GET(self) -> None:
        parts, query = urlsplit(self.path), parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        if parts.path.startswith("/v1/"):
            self.server.asked.append((time.monotonic(), query))
            status, headers = self.server.answers.pop(0) if self.server.answers else (200, {})
            above, size = int(query["id_above"][0]), int(query["per_page"][0])
            left = [one for one in self.server.observations if one["id"] > above]
            found = [one for one in left[:size] if one["id"] not in self.server.hidden]
            total = len(self.server.observations) if self.server.counts_all else len(left)
            data, kind = json.dumps({"total_results": total, "results": found}).encode(), "application/json"
            data = self.server.raw or data
        else:
            self.server.media.append(parts.path)
            status, headers = 200, {}
            data, kind = (photo(), "image/jpeg") if "photos" in parts.path else (sound(), "audio/wav")
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


def photo() -> bytes:
    rng, file = np.random.default_rng(0), io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (96, 128, 3), dtype=np.uint8)).save(file, "jpeg")
    return file.getvalue()


def sound() -> bytes:
    """4 s of a tone with noise: two windows of 1.6 s."""
    file, t_s = io.BytesIO(), np.arange(4 * RATE_HZ) / RATE_HZ
    noise = np.random.default_rng(0).normal(0, 0.05, len(t_s))
    soundfile.write(
        file,
        0.3 * np.sin(2 * np.pi * 440 * t_s) * (1 + np.sin(2 * np.pi * 3 * t_s)) / 2 + noise,
        RATE_HZ,
        format="WAV",
    )
    return file.getvalue()


@pytest.fixture
def api() -> Iterator[Api]:
    with Api() as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        server.observations = [observation(id, base=f"http://{server.address}") for id in range(1, 8)]
        yield server
        server.shutdown()


def listed(path: Path | str, output: str = "", address: str = "", **settings: Any) -> list[Item]:
    config = InaturalistConfig(**{"per_page": 3, "requests_per_min": 60000, **settings})
    network = FetchConfig(
        allow_private=[address] if address else [], requests_per_s=0, retries=1, max_wait_s=2
    )
    return list(enumerate_items(SourceConfig(str(path), "inaturalist", inaturalist=config), network, output))


def test_an_observation_is_a_pair_with_both_ids_and_both_licenses() -> None:
    (item,) = pairs_of(observation(4, "cc0", "cc-by-nc"), "large")
    assert (item.id, item.license) == ("40_400", "CC-BY-NC-4.0")
    assert (item.url, item.sound_url) == (
        "https://static.example/photos/40/large.jpg",
        "https://static.example/sounds/400.wav?1",
    )
    assert (item.channel, item.title) == ("ann", "Blackbird")
    assert (
        item.meta["photo_license"] == "CC0-1.0"
        and item.meta["sound_license"] == "CC-BY-NC-4.0"
        and item.meta["observation"] == 4
    )


@pytest.mark.parametrize(
    ("stated", "code"),
    [
        (None, "all-rights-reserved"),
        ("", "all-rights-reserved"),
        ("CC-BY", "CC-BY-4.0"),
        ("cc0", "CC0-1.0"),
        ("pd", "PDM-1.0"),
        ("gfdl", "unknown"),
    ],
)
def test_no_code_means_all_rights_reserved(stated: str | None, code: str) -> None:
    assert license_code(stated or "", "inaturalist") == code


@pytest.mark.parametrize(
    ("photo", "sound", "pair"),
    [
        ("CC0-1.0", "CC-BY-4.0", "CC-BY-4.0"),
        ("CC-BY-NC-4.0", "CC-BY-4.0", "CC-BY-NC-4.0"),
        ("CC-BY-SA-4.0", "CC-BY-NC-4.0", "CC-BY-NC-SA-4.0"),  # neither alone is as strict as both
        ("CC-BY-SA-4.0", "CC-BY-ND-4.0", "CC-BY-ND-4.0"),
        ("CC-BY-NC-SA-4.0", "CC-BY-ND-4.0", "CC-BY-NC-ND-4.0"),
        ("CC-BY-NC-ND-4.0", "all-rights-reserved", "all-rights-reserved"),
        ("all-rights-reserved", "unknown", "unknown"),
        ("CC0-1.0", "PDM-1.0", "CC0-1.0"),
    ],
)
def test_a_pair_has_what_both_demand(photo: str, sound: str, pair: str) -> None:
    assert combined(photo, sound) == pair and properties(combined(sound, photo)) == properties(pair)


def test_every_pair_of_licenses_has_one_that_is_no_freer_than_either() -> None:
    codes = {*SITE_CODES["inaturalist"].values(), "unknown"}
    for one in codes:
        for other in codes:
            pair = combined(one, other)
            assert is_code(pair)
            assert strictness(pair) >= max(strictness(one), strictness(other))


def test_each_sound_pairs_with_the_freest_photo_and_hidden_media_with_none() -> None:
    many = observation(1)
    many["photos"] = [
        {"id": 1, "license_code": None, "url": "https://a/1/square.jpg"},
        {"id": 2, "license_code": "cc0", "url": "https://a/2/square.jpg"},
    ]
    many["sounds"] += [
        {"id": 9, "license_code": "cc0", "file_url": "https://a/9.mp3"},
        {"id": 8, "hidden": True, "file_url": "https://a/8.mp3"},
    ]
    assert [(item.id, item.license) for item in pairs_of(many, "large")] == [
        ("2_100", "CC-BY-4.0"),
        ("2_9", "CC0-1.0"),
    ]
    assert pairs_of({**many, "photos": []}, "large") == pairs_of({**many, "sounds": None}, "large") == []


@pytest.mark.parametrize("kind", ["photos", "sounds"])
@pytest.mark.parametrize(
    ("mark", "listed"),
    [
        ({"flags": [{"flag": "copyright infringement", "resolved": False}]}, False),
        ({"flags": [{"flag": "copyright infringement", "resolved": True}]}, False),
        ({"flags": [{"flag": "spam"}]}, False),
        ({"flags": ["copyright infringement"]}, False),
        ({"flags": [{"flag": "inappropriate", "resolved": True}]}, True),
        ({"flags": []}, True),
        ({"moderator_actions": [{"action": "hide"}]}, False),
        ({"moderator_actions": [], "hidden": False}, True),
        ({"hidden": True}, False),
        (
            {
                "url": "https://www.inaturalist.org/assets/copyright-infringement-square.png",
                "file_url": "https://a/copyright_infringement",
            },
            False,
        ),
        ({"attribution": "Copyright infringement"}, False),
    ],
)
def test_flagged_hidden_and_placeholder_media_are_never_listed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, mark: dict[str, Any], listed: bool
) -> None:
    marked = observation(2)
    marked[kind][0] |= mark
    (tmp_path / "a.json").write_text(json.dumps([observation(1), marked]))
    items = list(enumerate_items(SourceConfig(str(tmp_path / "a.json"), "inaturalist")))
    assert [item.id for item in items] == (["10_100", "20_200"] if listed else ["10_100"])
    assert ("1 photos and sounds are flagged, hidden or replaced" in caplog.text) != listed


def test_a_scrape_gives_windows_of_the_sound_with_the_photo(api: Api, tmp_path: Path) -> None:
    base = f"http://{api.address}"
    api.observations = [
        observation(1, base=base),
        observation(2, None, base=base),
        observation(3, "cc0", "cc-by-nc", base=base),
    ]
    source = SourceConfig(api.url, "inaturalist", inaturalist=InaturalistConfig(requests_per_min=60000))
    network = FetchConfig(allow_private=[api.address])
    settings: dict[str, Any] = {
        "clip": ClipConfig(1.6),
        "frame": FrameConfig(64),
        "network": network,
        "workers": 0,
        "unit_size": 2,
    }
    config = ScrapeConfig(
        output=str(tmp_path / "clips"), source=source, license=LicenseConfig(["CC-BY-4.0"]), **settings
    )
    assert scrape(config, progress=False).counts == {"kept": 2, "refused:license": 2}
    assert scrape(config, progress=False).units_done == 0
    assert set(api.media) == {"/photos/10/large.jpg", "/sounds/100.wav"}, (
        "what may not be kept is not asked for"
    )
    rows = {row["key"]: row for row in Dataset.open(str(tmp_path / "clips")).iter_rows()}
    kept = [row for row in rows.values() if row["status"] == "kept"]
    assert sorted(row["key"].rsplit("_", 1)[0] for row in kept) == ["inaturalist_10_100"] * 2
    assert {row["license"] for row in kept} == {"CC-BY-4.0"} and {row["channel"] for row in kept} == {"ann"}


def test_all_pairs_of_an_observer_fall_into_one_split(api: Api, tmp_path: Path) -> None:
    api.observations = [observation(id, base=f"http://{api.address}") for id in range(1, 7)]
    for one in api.observations:
        one["user"]["login"] = f"observer{one['id'] % 2}"
    source = SourceConfig(api.url, "inaturalist", inaturalist=InaturalistConfig(requests_per_min=60000))
    network = FetchConfig(allow_private=[api.address], requests_per_s=0)
    settings: dict[str, Any] = {
        "clip": ClipConfig(1.6),
        "frame": FrameConfig(64),
        "network": network,
        "workers": 0,
    }
    scrape(
        ScrapeConfig(
            output=str(tmp_path / "clips"), source=source, split=SplitConfig(validation=0.5), **settings
        ),
        progress=False,
    )
    splits = {(row["channel"], row["split"]) for row in Dataset.open(str(tmp_path / "clips")).iter_rows()}
    assert splits == {("observer0", "validation"), ("observer1", "train")}


@pytest.mark.parametrize(
    ("path", "settings", "message"),
    [
        ("missing.json", {}, "no such file"),
        ("https://api.inaturalist.org/v1/taxa", {}, "the API's observations"),
        (
            "https://api.inaturalist.org/v1/observations",
            {"requests_per_min": 61},
            "at most 60 requests a minute",
        ),
        ("https://api.inaturalist.org/v1/observations", {"requests_per_day": 10001}, "10000 a day"),
        ("x", {"per_page": 201}, "per_page=201"),
        ("x", {"photo_size": "huge"}, "photo_size=huge"),
        ("broken.json", {}, "cannot be read"),
        ("number.json", {}, "not a list of observations"),
        ("plain.csv", {}, "image_url and sound_url"),
    ],
)
def test_what_cannot_work_is_one_clear_line(
    tmp_path: Path, path: str, settings: dict[str, Any], message: str
) -> None:
    for name, text in (("broken.json", "{"), ("number.json", "[1]"), ("plain.csv", "id,url\n1,x\n")):
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        listed(path if path.startswith("http") else tmp_path / path, **{"requests_per_min": 60, **settings})


def test_the_operators_statement_is_not_taken(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="source.license=own"):
        enumerate_items(SourceConfig(str(tmp_path), "inaturalist", "own"))
