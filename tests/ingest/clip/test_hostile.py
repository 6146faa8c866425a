"""Files made to harm: bombs, playlists under other names, files that never end.

Each ends as a reason; nothing else happens.
"""

import ctypes
import os
import socket
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from cluster.record import cpu_seconds
from ingest.clip.clipper import AudioConfig, ClipConfig, Clipper, FrameConfig, MediaLimits
from ingest.sample import Media, Reason, Refused
from tests.fakes.media import card, film
from tests.ingest.clip.test_clipper import ffmpeg

# CPU-seconds of one file, the start of a new decoder included: the machine may be busy, so not by the clock
MAX_CPU_S = 20.0
ENDLESS_S = 4.0  # what a file without an end may cost


def cutter(timeout_s: float) -> Clipper:
    return Clipper(ClipConfig(1.0, "grid"), AudioConfig(), FrameConfig(64), MediaLimits(timeout_s=timeout_s))


@pytest.fixture(scope="module")
def clipper() -> Iterator[Clipper]:
    with cutter(timeout_s=300.0) as clipper:
        yield clipper


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a film and a photo with its sound that nothing is wrong with."""
    root = tmp_path_factory.mktemp("good")
    for name in ("good.mp4", "good.mkv", "good.mov"):
        film(root / name)
    Image.fromarray(card(1.0)).save(root / "good.jpg")
    soundfile.write(root / "good.wav", np.zeros(32000), 16000)
    return root


def reason(clipper: Clipper, picture: Path, sound: Path | None = None) -> Reason | None:
    """Why it is refused, at a bounded cost."""
    cpu_before_s = cpu_seconds(living=True)
    with pytest.raises(Refused) as caught:
        clipper.cut(Media(picture, sound or picture, sound is not None, "own"))
    assert cpu_seconds(living=True) - cpu_before_s < MAX_CPU_S
    return caught.value.reason


def assert_cuts(clipper: Clipper, path: Path) -> None:
    """A film of 4 s that nothing is wrong with is cut, whatever came before."""
    assert len(clipper.cut(Media(path, path, False, "own"))) == 4


class Watched:
    """A file whose openings the kernel reports (inotify), and a port that remembers every connection."""

    IN_OPEN = 0x20

    def __init__(self, path: Path):
        self.libc = ctypes.CDLL(None)
        self.notices = self.libc.inotify_init1(os.O_NONBLOCK)
        assert self.libc.inotify_add_watch(self.notices, str(path).encode(), self.IN_OPEN) > 0
        self.server = socket.create_server(("127.0.0.1", 0))
        self.server.setblocking(False)
        self.port = self.server.getsockname()[1]

    def touched(self) -> list[str]:
        touched = []
        try:
            touched += ["file"] if os.read(self.notices, 4096) else []
        except BlockingIOError:
            pass
        try:
            self.server.accept()[0].close()
            touched.append("port")
        except BlockingIOError:
            pass
        return touched


@pytest.fixture
def watched(tmp_path: Path, good: Path) -> Iterator[Watched]:
    (tmp_path / "secret.ts").write_bytes((good / "good.mp4").read_bytes())
    watch = Watched(tmp_path / "secret.ts")
    yield watch
    os.close(watch.notices)
    watch.server.close()


def playlists(secret: Path, port: int) -> dict[str, str]:
    url = f"http://127.0.0.1:{port}/a.ts"
    representation = '<Representation id="1" bandwidth="1"><BaseURL>{}</BaseURL></Representation>'
    mpd = '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT9S"><Period>'
    return {
        "hls of a file": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:{secret}\n#EXT-X-ENDLIST\n",
        "hls of a site": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{url}\n#EXT-X-ENDLIST\n",
        "hls of a master": f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{url}.m3u8\n",
        "concat": f"ffconcat version 1.0\nfile '{secret}'\n",
        "concat of a site": f"ffconcat version 1.0\nfile '{url}'\n",
        "dash": f"{mpd}<AdaptationSet mimeType='video/mp4'>{representation.format(url)}</AdaptationSet></Period></MPD>",
        "sdp": f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        "redirection": f"<ASX version='3.0'><Entry><Ref href='{url}'/></Entry></ASX>",
        "list of pictures": f"[playlist]\nFile1={url}\nNumberOfEntries=1\n",
        "svg": f"<svg xmlns='http://www.w3.org/2000/svg'><image href='{url}'/></svg>",
    }


PLAYLISTS = tuple(playlists(Path(), 0))


@pytest.mark.parametrize("kind", PLAYLISTS)
def test_a_playlist_opens_no_other_file_and_no_connection(
    kind: str, tmp_path: Path, clipper: Clipper, good: Path, watched: Watched
) -> None:
    text = playlists(tmp_path / "secret.ts", watched.port)[kind]
    for suffix in ("mp4", "mkv", "m3u8", "avi", "jpg", "wav"):
        path = tmp_path / f"evil.{suffix}"
        path.write_text(text)
        refused = reason(clipper, path, good / "good.wav") if suffix == "jpg" else reason(clipper, path)
        assert refused in (Reason.CORRUPT, Reason.UNSUPPORTED)
        assert reason(clipper, good / "good.jpg", path) in (Reason.CORRUPT, Reason.UNSUPPORTED)
    assert watched.touched() == []


def test_the_watch_sees_what_a_decoder_without_whitelists_does(tmp_path: Path, watched: Watched) -> None:
    lists = playlists(tmp_path / "secret.ts", watched.port)
    (tmp_path / "evil.txt").write_text(lists["concat"])
    with av.open(str(tmp_path / "evil.txt"), format="concat", options={"safe": "0"}) as followed:
        assert followed.streams.video and watched.touched() == ["file"]
    (tmp_path / "evil.m3u8").write_text(lists["hls of a site"])
    options = {
        "extension_picky": "0",
        "allowed_extensions": "ALL",
        "protocol_whitelist": "file,http,tcp",
        "rw_timeout": "300000",
    }
    with pytest.raises(av.FFmpegError):
        av.open(str(tmp_path / "evil.m3u8"), options=options, timeout=0.5)
    assert watched.touched() == ["port"]


def _box(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", 8 + len(body)) + name + body


def _grown(data: bytes, path: list[bytes], change: bytes) -> bytes:
    """`data`, a row of mp4 boxes, with the body of the box at `path` (the first of each name) replaced."""
    offset = 0
    grown = b""
    while offset < len(data):
        size = struct.unpack(">I", data[offset : offset + 4])[0]
        name = data[offset + 4 : offset + 8]
        body = data[offset + 8 : offset + size]
        if path and name == path[0]:
            body = change if len(path) == 1 else _grown(body, path[1:], change)
            path = []
        grown += _box(name, body)
        offset += size
    return grown


def test_a_mov_opens_no_other_file_for_its_data(
    tmp_path: Path, clipper: Clipper, good: Path, watched: Watched
) -> None:
    name = b"/secret.ts"  # of its path, one level up from the film and one down: beside it
    alias = (
        bytes(10 + 28 + 12)
        + bytes([len(name) - 1])
        + name[1:].ljust(63, b"\0")
        + bytes(16)
        + struct.pack(">hh", 1, 1)
        + bytes(16)
    )
    alias += struct.pack(">hh", 2, len(name)) + name + struct.pack(">hh", -1, 0)
    entry = struct.pack(">I", 12 + len(alias)) + b"alis" + bytes(4) + alias
    reference = bytes(4) + struct.pack(">I", 1) + entry
    data = _grown(
        (good / "good.mov").read_bytes(), [b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"], reference
    )
    (tmp_path / "evil.mov").write_bytes(data)
    av.open(str(tmp_path / "evil.mov"), options={"enable_drefs": "1"}).close()
    assert watched.touched() == ["file"]  # what the option is there for
    try:
        clipper.cut(Media(tmp_path / "evil.mov", tmp_path / "evil.mov", False, "own"))
    except Refused as refused:
        assert refused.reason in (Reason.CORRUPT, Reason.UNSUPPORTED, Reason.NO_VIDEO)
    assert watched.touched() == []


def _png(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def test_pictures_of_huge_stated_sizes_are_refused(tmp_path: Path, clipper: Clipper, good: Path) -> None:
    (tmp_path / "a.png").write_bytes(_png(2**31 - 1, 2**31 - 1))
    jpeg = bytearray((good / "good.jpg").read_bytes())
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65000, 65000)
    (tmp_path / "a.jpg").write_bytes(jpeg)
    lossless = struct.pack("<I", 16383 | 16383 << 14)
    webp = b"VP8L" + struct.pack("<I", 10) + b"\x2f" + lossless + bytes(5)
    (tmp_path / "a.webp").write_bytes(b"RIFF" + struct.pack("<I", 4 + len(webp)) + b"WEBP" + webp)
    for name in ("a.png", "a.jpg"):
        assert reason(clipper, tmp_path / name, good / "good.wav") == Reason.TOO_LARGE
    assert reason(clipper, tmp_path / "a.webp", good / "good.wav") in (
        Reason.TOO_LARGE,
        Reason.CORRUPT,
        Reason.UNSUPPORTED,
    )
    (tmp_path / "long.png").write_bytes(_png(64, 500_000))
    assert reason(clipper, tmp_path / "long.png", good / "good.wav") in (Reason.TOO_LARGE, Reason.CORRUPT)
    assert len(clipper.cut(Media(good / "good.mp4", good / "good.mp4", False, "own"))) == 4


def _patched(good: Path, name: str, out: Path, mark: bytes, offset: int, value: bytes) -> Path:
    data = bytearray((good / name).read_bytes())
    place = data.index(mark) + offset
    data[place : place + len(value)] = value
    out.write_bytes(data)
    return out


@pytest.mark.parametrize(
    ("name", "mark", "offset", "value"),
    [
        ("good.mp4", b"avc1", 28, struct.pack(">HH", 65535, 65535)),  # declared size of the picture
        ("good.mp4", b"stsz", 8, struct.pack(">II", 1, 2**31 - 1)),  # 2^31 samples of one byte
        ("good.mp4", b"stsz", 8, struct.pack(">II", 0, 2**32 - 1)),
        ("good.mp4", b"stts", 8, struct.pack(">II", 2**31 - 1, 1)),
        ("good.mp4", b"stco", 8, struct.pack(">I", 2**32 - 1)),
        ("good.mp4", b"ctts", 8, struct.pack(">I", 2**32 - 1)),
        ("good.mp4", b"moov", -4, struct.pack(">I", 2**32 - 1)),
        ("good.mp4", b"avcC", -4, struct.pack(">I", 2**31)),
        ("good.mp4", b"mp4a", 20, struct.pack(">H", 65535)),  # channels
        ("good.mkv", b"\x63\xa2", 2, b"\x08\x7f\xff\xff\xff"),  # codec private of 34 GB
        ("good.mkv", b"\x9f\x81\x02", 0, b"\x9f\x88"),  # channels: a number of eight bytes, whatever follows
        ("good.mkv", b"\x1a\x45\xdf\xa3", 4, b"\x01\xff\xff\xff\xff\xff\xff\xfe"),
    ],
)
def test_tables_that_would_fill_the_memory(
    name: str, mark: bytes, offset: int, value: bytes, tmp_path: Path, clipper: Clipper, good: Path
) -> None:
    """Refused with a reason at a bounded cost, or cut all the same where the field does not matter."""
    path = _patched(good, name, tmp_path / name, mark, offset, value)
    cpu_before_s = cpu_seconds(living=True)
    try:
        assert len(clipper.cut(Media(path, path, False, "own"))) <= 4
    except Refused as refused:
        assert refused.reason in (
            Reason.CORRUPT,
            Reason.TOO_LARGE,
            Reason.TOO_LONG,
            Reason.UNSUPPORTED,
            Reason.NO_VIDEO,
            Reason.NO_AUDIO,
        )
    assert cpu_seconds(living=True) - cpu_before_s < MAX_CPU_S
    assert_cuts(clipper, good / "good.mp4")


def test_pipes_and_devices_are_not_opened(tmp_path: Path, good: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with cutter(timeout_s=30.0) as clipper:  # an opened pipe would wait for all of it
        assert reason(clipper, tmp_path / "pipe.mp4") == Reason.UNSUPPORTED
        assert reason(clipper, tmp_path / "pipe.mp4", good / "good.wav") == Reason.UNSUPPORTED
        assert reason(clipper, Path("/dev/zero")) == Reason.UNSUPPORTED


def test_a_missing_file_is_refused(tmp_path: Path, clipper: Clipper) -> None:
    assert reason(clipper, tmp_path / "away.mp4") == Reason.CORRUPT


def endless(path: Path, head: bytes) -> Path:
    """`head`, and zeros up to a terabyte, of which the disk stores none."""
    path.write_bytes(head)
    os.truncate(path, 1 << 40)
    return path


@pytest.mark.parametrize("kind", ["mp4", "mp3", "ts"])
def test_a_file_without_an_end_costs_no_more_than_its_limit(kind: str, tmp_path: Path, good: Path) -> None:
    film(tmp_path / "start.ts")
    heads = {"mp4": b"", "mp3": b"ID3\x04\0\0\0\0\0\0", "ts": (tmp_path / "start.ts").read_bytes()}
    path = endless(tmp_path / f"a.{kind}", heads[kind])
    with cutter(ENDLESS_S) as limited:
        assert reason(limited, path) in (Reason.CORRUPT, Reason.NO_VIDEO, Reason.DECODER_TIMEOUT)


def test_zeros_behind_a_film_cost_little(tmp_path: Path, clipper: Clipper, good: Path) -> None:
    path = endless(tmp_path / "d.mp4", (good / "good.mp4").read_bytes())
    cpu_before_s = cpu_seconds(living=True)
    assert_cuts(clipper, path)
    assert cpu_seconds(living=True) - cpu_before_s < MAX_CPU_S


def test_the_item_after_one_that_took_too_long_is_cut(tmp_path: Path, good: Path) -> None:
    film(tmp_path / "start.ts")
    path = endless(tmp_path / "c.ts", (tmp_path / "start.ts").read_bytes())
    with cutter(ENDLESS_S) as limited:
        reason(limited, path)
        limited.sandbox.timeout_s = 300.0  # by the clock: a busy machine may take long to start a decoder
        assert_cuts(limited, good / "good.mp4")


def test_file_names_are_no_options(tmp_path: Path, clipper: Clipper, good: Path) -> None:
    for name in (
        "-i.mp4",
        "%03d.mp4",
        "a'b;$(touch x).mp4",
        "file:a.mp4",
        "concat:a|b.mp4",
        "\u202egnp.mp4",
        "new\nline.mp4",
    ):
        (tmp_path / name).write_bytes((good / "good.mp4").read_bytes())
        assert len(clipper.cut(Media(tmp_path / name, tmp_path / name, False, "own"))) == 4


def test_long_and_broken_metadata_is_ignored(tmp_path: Path, clipper: Clipper, good: Path) -> None:
    for kind in ("mp4", "mkv"):
        arguments = [
            "-metadata",
            f"title={'long ' * 20000}",
            "-metadata",
            "comment=\x1b[2J\u202e<script>",
            "-metadata",
            "artist=MARKED",
        ]
        ffmpeg("-i", str(good / f"good.{kind}"), "-c", "copy", *arguments, str(tmp_path / f"a.{kind}"))
        data = (tmp_path / f"a.{kind}").read_bytes()
        (tmp_path / f"a.{kind}").write_bytes(data.replace(b"MARKED", b"\xff\xfe\x80\xc3\x28\x00"))
        assert len(clipper.cut(Media(tmp_path / f"a.{kind}", tmp_path / f"a.{kind}", False, "own"))) == 4
