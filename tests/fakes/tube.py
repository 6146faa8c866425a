"""A YouTube of recorded shapes on loopback, behind an HTTP proxy that ends TLS with a certificate of its own.

yt-dlp's real extractors talk to it as to the real one: every connect goes to the proxy on 127.0.0.1, no name
is resolved. It serves watch pages, player answers, a player's script of our own, playlists, a channel with
two tabs, search, and media with byte ranges, and records every request.
"""

import contextlib
import datetime
import json
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ingest.serve import byte_range

CC = "Creative Commons Attribution license (reuse allowed)"
CHANNEL = "UC" + "a" * 22
OWNER = {"owner": {"videoOwnerRenderer": {"title": {"runs": [{"text": "Someone"}]}}}}
PLAYER = "/s/player/0a1b2c3d/player_ias.vflset/en_US/base.js"
PLAYER_SCRIPT = """
(function () {
  "use strict";
  var config = {signatureTimestamp: 20500};
  class Address {
    constructor() { this.values = {}; }
    set(name, value) { this.values[name] = value; }
    get(name) { return this.values[name]; }
    clone() { return this; }
    turn() { this.set("n", this.get("n").split("").reverse().join("")); }
  }
  function sign(url, name, signature) {
    const address = new Address(url);
    address.set("alr", "yes");
    if (signature) address.set(name, signature.split("").reverse().join(""));
    return address;
  }
}).call(this);
"""  # in the form that yt-dlp's solver recognises: it reverses `n` and signatures
NAMES = ("*.youtube.com", "youtube.com", "*.googlevideo.com")


@dataclass
class Video:
    """`playability` other than OK gives no formats; `media_status` is what the media hosts answer."""

    id: str
    license: str = CC
    channel_id: str = CHANNEL
    playability: dict[str, Any] = field(default_factory=lambda: {"status": "OK"})
    details: dict[str, Any] = field(default_factory=dict)
    media_status: int = 200
    formats: bool = True
    player_status: int = 200
    challenge: str = ""  # the `n` of the media's addresses, which a player's script has to transform


class Tube(ThreadingHTTPServer):
    """`picture` and `sound`: a media file of pictures only, and one of sound only.

    `requests`: (host, path, cookies) of each.
    """

    daemon_threads = True

    def __init__(self, folder: Path, picture: Path, sound: Path):
        super().__init__(("127.0.0.1", 0), Proxy)
        self.picture, self.sound = picture.read_bytes(), sound.read_bytes()
        self.videos: dict[str, Video] = {}
        self.listed: list[str] = []
        self.requests: list[tuple[str, str, str]] = []
        self.tunnels: list[tuple[str, str]] = []
        self.redirect = ""
        self.ca = folder / "ca.pem"
        self.tls = certificate(folder)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def add(self, *videos: Video) -> None:
        self.videos.update({video.id: video for video in videos})

    def paths(self, part: str) -> list[str]:
        return [path for _, path, _ in self.requests if part in path]


def certificate(folder: Path) -> ssl.SSLContext:
    """A fresh authority in `folder`/ca.pem, and the server's side of a certificate for NAMES."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a YouTube of tests")])
    now = datetime.datetime.now(datetime.UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in NAMES]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "ca.pem").write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(key.private_bytes(*plain))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "ca.pem", folder / "key.pem")
    return context


class Proxy(BaseHTTPRequestHandler):
    server: Tube

    def do_CONNECT(self) -> None:
        self.server.tunnels.append((self.path, self.headers.get("Proxy-Authorization") or ""))
        self.send_response(200)
        self.end_headers()
        with (
            contextlib.suppress(OSError),
            self.server.tls.wrap_socket(self.connection, server_side=True) as tunnel,
        ):
            Site(tunnel, self.client_address, self.server)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


class Site(BaseHTTPRequestHandler):
    server: Tube

    def do_GET(self) -> None:
        self.record()
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        if self.headers["Host"].endswith("googlevideo.com"):
            self.media(query["v"][0], url.path.strip("/"))
        elif url.path == "/watch":
            video = self.server.videos[query["v"][0]]
            self.page(*watch_page(video), script_url=PLAYER if video.challenge else "")
        elif url.path == PLAYER:
            self.send(200, "text/javascript", PLAYER_SCRIPT.encode())
        elif url.path == "/playlist":
            self.page(list_page("playlistVideoRenderer", self.server.listed))
        elif url.path.startswith("/@") and url.path.endswith("/shorts"):
            self.page(channel_page(self.server.listed[::2], "shorts"))
        elif url.path.startswith("/@"):
            self.page(channel_page(self.server.listed, "videos"))
        else:
            # /embed/…
            client = {"clientName": "WEB_EMBEDDED_PLAYER", "clientVersion": "1"}
            config = {"INNERTUBE_CONTEXT": {"client": client}}
            self.send(200, "text/html", f"<script>ytcfg.set({json.dumps(config)});</script>".encode())

    def do_POST(self) -> None:
        self.record()
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "/player" in self.path:
            video = self.server.videos[request["videoId"]]
            self.send_json(player_answer(video), video.player_status)
        elif "/search" in self.path:
            self.send_json(search_answer(self.server.listed))
        else:
            self.send_json({"contents": {}})

    def record(self) -> None:
        request = (self.headers["Host"], self.path, self.headers.get("Cookie") or "")
        self.server.requests.append(request)

    def media(self, id: str, kind: str) -> None:
        if self.server.redirect:
            return self.send(302, "text/plain", b"", Location=self.server.redirect)
        status = self.server.videos[id].media_status
        if status != 200:
            return self.send(status, "video/mp4", b"")
        data = self.server.picture if kind == "picture" else self.server.sound
        wanted_bytes = byte_range(self.headers.get("Range"), len(data))
        if isinstance(wanted_bytes, tuple):
            first, last = wanted_bytes
            content_range = f"bytes {first}-{last}/{len(data)}"
            return self.send(206, "video/mp4", data[first : last + 1], Content_Range=content_range)
        self.send(200, "video/mp4", data)

    def page(self, data: dict[str, Any], player: dict[str, Any] | None = None, script_url: str = "") -> None:
        config = {"INNERTUBE_API_KEY": "k", "VISITOR_DATA": "v"}
        if script_url:
            config["PLAYER_JS_URL"] = script_url
        script = f"ytcfg.set({json.dumps(config)});var ytInitialData = {json.dumps(data)};"
        script += f"var ytInitialPlayerResponse = {json.dumps(player)};" if player else ""
        self.send(200, "text/html; charset=utf-8", f"<html><script>{script}</script></html>".encode())

    def send_json(self, answer: dict[str, Any], status: int = 200) -> None:
        self.send(status, "application/json", json.dumps(answer).encode())

    def send(self, status: int, content_type: str, data: bytes, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


def watch_page(video: Video) -> tuple[dict[str, Any], dict[str, Any]]:
    """(initial data, initial player response) as a watch page embeds them; the license is a row below the
    description.
    """
    row = {
        "metadataRowRenderer": {
            "title": {"simpleText": "License"},
            "contents": [{"runs": [{"text": video.license}]}],
        }
    }
    rows = {"metadataRowContainerRenderer": {"rows": [row] if video.license else []}}
    contents = [
        {"videoPrimaryInfoRenderer": {}},
        {"videoSecondaryInfoRenderer": {"metadataRowContainer": rows, **OWNER}},
    ]
    results = {"twoColumnWatchNextResults": {"results": {"results": {"contents": contents}}}}
    return {"contents": results}, player_answer(video)


def player_answer(video: Video) -> dict[str, Any]:
    """A playable video has two adaptive formats, one of pictures and one of sound; none has both."""
    details = {
        "videoId": video.id,
        "title": f"Video {video.id}",
        "channelId": video.channel_id,
        "author": "Someone",
        "lengthSeconds": "6",
    }
    answer = {
        "playabilityStatus": video.playability,
        "videoDetails": {**details, "isLiveContent": False, **video.details},
    }
    if video.formats and video.playability["status"] == "OK":
        host = "https://r1---sn-test.googlevideo.com"
        picture = {
            "itag": 133,
            "mimeType": 'video/mp4; codecs="avc1.4d4015"',
            "width": 96,
            "height": 96,
            "fps": 10,
            "bitrate": 100000,
        }
        sound = {
            "itag": 140,
            "mimeType": 'audio/mp4; codecs="mp4a.40.2"',
            "bitrate": 128000,
            "audioSampleRate": "16000",
        }
        query = f"v={video.id}&expire=9999999999"
        if video.challenge:
            query += f"&n={video.challenge}"
        formats = [
            {**picture, "url": f"{host}/picture?{query}"},
            {**sound, "url": f"{host}/sound?{query}"},
        ]
        answer["streamingData"] = {"adaptiveFormats": formats}
    return answer


def search_answer(ids: list[str]) -> dict[str, Any]:
    videos = [{"videoRenderer": renderer(id)} for id in ids]
    results = {"sectionListRenderer": {"contents": [{"itemSectionRenderer": {"contents": videos}}]}}
    return {"contents": {"twoColumnSearchResultsRenderer": {"primaryContents": results}}}


def renderer(id: str) -> dict[str, Any]:
    byline = {"runs": [{"text": "Someone", "navigationEndpoint": {"browseEndpoint": {"browseId": CHANNEL}}}]}
    return {
        "videoId": id,
        "title": {"runs": [{"text": f"Video {id}"}]},
        "shortBylineText": byline,
        "lengthText": {"simpleText": "0:06"},
    }


def list_page(kind: str, ids: list[str]) -> dict[str, Any]:
    videos = {"playlistVideoListRenderer": {"contents": [{kind: renderer(id)} for id in ids]}}
    content = {"sectionListRenderer": {"contents": [{"itemSectionRenderer": {"contents": [videos]}}]}}
    tab = {"tabRenderer": {"selected": True, "title": "Videos", "content": content}}
    return {
        "contents": {"twoColumnBrowseResultsRenderer": {"tabs": [tab]}},
        "metadata": {"playlistMetadataRenderer": {"title": "List"}},
    }


def channel_page(ids: list[str], selected: str) -> dict[str, Any]:
    items = [{"richItemRenderer": {"content": {"videoRenderer": renderer(id)}}} for id in ids]
    tabs = []
    for name in ("videos", "shorts"):
        url = f"/@someone/{name}"
        tab: dict[str, Any] = {"title": name.title(), "selected": name == selected}
        tab["endpoint"] = {"commandMetadata": {"webCommandMetadata": {"url": url}}}
        if name == selected:
            tab["content"] = {"richGridRenderer": {"contents": items}}
        tabs.append({"tabRenderer": tab})
    about = {
        "channelMetadataRenderer": {
            "title": "Someone",
            "externalId": CHANNEL,
            "channelUrl": f"https://www.youtube.com/channel/{CHANNEL}",
        }
    }
    return {"contents": {"twoColumnBrowseResultsRenderer": {"tabs": tabs}}, "metadata": about}


@contextlib.contextmanager
def running_tube(folder: Path, picture: Path, sound: Path) -> Iterator[Tube]:
    with Tube(folder, picture, sound) as tube:
        threading.Thread(target=tube.serve_forever, args=(0.05,), daemon=True).start()
        yield tube
        tube.shutdown()
