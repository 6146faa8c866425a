"""The loopback site: what it offers, what it must never serve, and how it starts and stops."""

import csv
import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.load import UserError
from ingest.rights.page import read_page
from ingest.serve import ServeConfig, SiteServer, byte_range, running_site, serve
from ingest.synth import SynthConfig, synth


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SiteServer]:
    folder = tmp_path_factory.mktemp("world")
    synth(SynthConfig(str(folder), videos=6, webm=1, hls=1, dash=1, stills=1, scenes_per_video=1, workers=1))
    (folder / "media/escape.mp4").symlink_to(folder / "truth/mp40000.json")
    with running_site(folder) as running:
        yield running


def get(
    site: SiteServer, path: str, method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=10)
    try:
        connection.request(method, path.removeprefix(site.url), headers=headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.headers), answer.read()
    finally:
        connection.close()


def listed(site: SiteServer) -> dict[str, dict[str, str]]:
    with (site.site.folder / "urls.csv").open(newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def test_the_list_names_every_medium_by_its_catalogue_id_and_some_dead_links(site: SiteServer) -> None:
    catalogue = {
        entry["id"]: entry for entry in json.loads((site.site.folder / "catalogue.json").read_text())
    }
    rows = listed(site)
    assert catalogue.keys() < rows.keys()
    for id, row in rows.items():
        expected = {200, 429} if id in catalogue else {404, 410}
        assert get(site, row["url"])[0] in expected


def test_what_is_no_page_has_its_license_in_the_list_and_pages_have_theirs_on_the_page(
    site: SiteServer,
) -> None:
    catalogue = {
        entry["id"]: entry for entry in json.loads((site.site.folder / "catalogue.json").read_text())
    }
    silent = []
    for id, row in listed(site).items():
        if "/watch/" in row["url"] and id in catalogue:
            assert row["license"] == ""
            page = read_page(site.site.pages[f"/watch/{id}.html"])
            silent += [id] if not page.license else []
            assert page.license in ("", catalogue[id]["license"])
        elif id in catalogue:
            assert row["license"] == catalogue[id]["license"]
    assert silent == ["mp40003"]
    assert listed(site)["still0000"]["sound_url"].endswith(".wav")


def test_the_busy_page_is_busy_once(tmp_path: Path, site: SiteServer) -> None:
    (tmp_path / "catalogue.json").write_text((site.site.folder / "catalogue.json").read_text())
    with running_site(tmp_path) as fresh:
        answers = [get(fresh, "/watch/mp40002.html") for _ in range(3)]
    assert [status for status, _, _ in answers] == [429, 200, 200]
    assert answers[0][1]["Retry-After"] == "1"


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/media/mp40000.mp4", "video/mp4"),
        ("/media/webm0000.webm", "video/webm"),
        ("/media/hls0000/index.m3u8", "application/vnd.apple.mpegurl"),
        ("/media/hls0000/part000.ts", "video/mp2t"),
        ("/media/dash0000/manifest.mpd", "application/dash+xml"),
        ("/media/dash0000/init-stream0.m4s", "video/iso.segment"),
        ("/media/still0000.jpg", "image/jpeg"),
        ("/media/still0000.wav", "audio/wav"),
    ],
)
def test_media_come_whole_and_with_their_type(site: SiteServer, path: str, content_type: str) -> None:
    data = (site.site.folder / path.lstrip("/")).read_bytes()
    status, headers, body = get(site, path)
    assert (status, headers["Content-Type"], body) == (200, content_type, data)
    assert get(site, path, "HEAD")[1]["Content-Length"] == str(len(data))


def test_a_byte_range_is_a_206_of_those_bytes(site: SiteServer) -> None:
    data = (site.site.folder / "media/mp40000.mp4").read_bytes()
    status, headers, body = get(site, "/media/mp40000.mp4", Range="bytes=100-199")
    assert (status, body, headers["Content-Range"]) == (206, data[100:200], f"bytes 100-199/{len(data)}")
    assert get(site, "/media/mp40000.mp4", Range="bytes=-10")[2] == data[-10:]
    assert get(site, "/media/mp40000.mp4", Range=f"bytes={len(data)}-")[0] == 416


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("bytes=0-", (0, 9)),
        ("bytes=2-3", (2, 3)),
        ("bytes=2-99", (2, 9)),
        ("bytes=-3", (7, 9)),
        ("bytes=-99", (0, 9)),
        ("bytes=10-", "unsatisfiable"),
        ("bytes=-0", "unsatisfiable"),
        ("bytes=3-2", None),
        ("bytes=0-1,3-4", None),
        ("bytes=-", None),
        ("lines=1-2", None),
    ],
)
def test_byte_range(header: str | None, expected: object) -> None:
    assert byte_range(header, 10) == expected


@pytest.mark.parametrize(
    "path",
    [
        "/truth/mp40000.json",
        "/media/../truth/mp40000.json",
        "/media/%2e%2e/truth/mp40000.json",
        "/media/..%2ftruth%2fmp40000.json",
        "/media//truth/mp40000.json",
        "/media/escape.mp4",
        "/catalogue.json",
        "/urls.csv",
        "//etc/hostname",
        "/../../etc/hostname",
        "/media/",
        "/watch/nothing.html",
    ],
)
def test_nothing_outside_the_media_is_served(site: SiteServer, path: str) -> None:
    assert get(site, path)[0] == 404


def test_it_listens_on_loopback_alone(site: SiteServer) -> None:
    assert site.server_address[0] == "127.0.0.1"


def test_a_folder_without_a_catalogue_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="catalogue.json"):
        serve(ServeConfig(str(tmp_path)))


def test_a_port_in_use_is_refused_in_one_line(site: SiteServer) -> None:
    with pytest.raises(UserError, match=f"port={site.port} is in use") as caught:
        serve(ServeConfig(str(site.site.folder), site.port))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_says_where_it_is_and_stops_cleanly(
    site: SiteServer, tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "catalogue.json").write_text((site.site.folder / "catalogue.json").read_text())
    command = [sys.executable, "-m", "ingest", "serve", str(tmp_path), "port=0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    ) as child:
        assert child.stdout
        assert "http://127.0.0.1:" in child.stdout.readline()
        assert (tmp_path / "urls.csv").exists()
        child.send_signal(number)
        _, errors = child.communicate(timeout=20)
    assert (child.returncode, errors) == (0, "")
