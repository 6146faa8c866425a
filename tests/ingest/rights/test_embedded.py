"""What media say of machine use within themselves is obeyed before anything of them is kept."""

import io
import json
import struct
import tarfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from cluster.dataset import Dataset
from ingest.clip.clipper import ClipConfig, FrameConfig
from ingest.rights import embedded
from ingest.rights.embedded import NONE_FOUND, embedded_evidence
from ingest.sample import Reason, Refused
from ingest.scrape import ScrapeConfig, scrape
from ingest.sources.settings import SourceConfig
from tests.fakes.media import film

VOCABULARY = "http://ns.useplus.org/ldf/vocab/"
PROHIBITED = f"{VOCABULARY}DMI-PROHIBITED-AIMLTRAINING"
SPACES = 'xmlns:plus="http://ns.useplus.org/ldf/xmp/1.0/" xmlns:tdm="http://www.w3.org/ns/tdmrep/"'


def xmp(attributes: str = "", inner: str = "") -> str:
    return (
        '<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        f'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" {SPACES} {attributes}>'
        f'{inner}</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    )


NO_TRAINING = xmp(f'plus:DataMining="{PROHIBITED}"')


def refusal_of(path: Path) -> str:
    """The detail of the opt-out, "" where the file does not opt out."""
    try:
        embedded_evidence([path])
    except Refused as refusal:
        assert refusal.reason == Reason.OPT_OUT
        return refusal.detail
    return ""


def chunk(name: bytes, data: bytes) -> bytes:
    """Of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def picture(kind: str, text: str = "") -> bytes:
    out = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    packet = {"tiffinfo": {700: text.encode()}} if kind == "TIFF" else {"xmp": text.encode()}
    Image.fromarray(noise).save(out, kind, **(packet if text else {}))
    return out.getvalue()


def sound(kind: str) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, np.random.default_rng(0).normal(0, 0.2, 32000), 16000, format=kind)
    return out.getvalue()


def png_with(name: bytes, data: bytes) -> bytes:
    png = picture("PNG")
    return png[:33] + chunk(name, data) + png[33:]


def extended_jpeg() -> bytes:
    """The property is in the second of two pieces of extended XMP, which are stored in the wrong order."""
    text = xmp(
        "", "<plus:Note>" + "x" * 70_000 + f'</plus:Note><plus:DataMining rdf:resource="{PROHIBITED}"/>'
    ).encode()
    pieces = [(offset, text[offset : offset + 60_000]) for offset in range(0, len(text), 60_000)]
    segments = b""
    for offset, piece in reversed(pieces):
        body = (
            b"http://ns.adobe.com/xmp/extension/\0"
            + b"A" * 32
            + struct.pack(">II", len(text), offset)
            + piece
        )
        segments += b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
    jpeg = picture("JPEG")
    return jpeg[:2] + segments + jpeg[2:]


def raw_profile() -> bytes:
    """As ImageMagick writes it."""
    digits = NO_TRAINING.encode().hex()
    lines = "\n".join(digits[at : at + 72] for at in range(0, len(digits), 72))
    return b"Raw profile type xmp\0\0" + zlib.compress(f"\nxmp\n{len(digits) // 2:8}\n{lines}\n".encode())


def film_bytes(tmp_path: Path, kind: str) -> bytes:
    path = tmp_path / f"film.{kind}"
    film(path)
    return path.read_bytes()


UUID_XMP = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
FILES: dict[str, Callable[[Path], bytes]] = {
    "a.jpg": lambda _: picture("JPEG", NO_TRAINING),
    "extended.jpg": lambda _: extended_jpeg(),
    "a.png": lambda _: png_with(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + NO_TRAINING.encode()),
    "compressed.png": lambda _: png_with(
        b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(NO_TRAINING.encode())
    ),
    "profile.png": lambda _: png_with(b"zTXt", raw_profile()),
    "a.webp": lambda _: picture("WEBP", NO_TRAINING),
    "a.avif": lambda _: picture("AVIF", NO_TRAINING),
    "a.tiff": lambda _: picture("TIFF", NO_TRAINING),
    "uuid.mp4": lambda at: (
        film_bytes(at, "mp4")
        + struct.pack(">I", 24 + len(NO_TRAINING))
        + b"uuid"
        + UUID_XMP
        + NO_TRAINING.encode()
    ),
    "udta.mov": lambda at: (
        film_bytes(at, "mov") + struct.pack(">I", 8 + len(NO_TRAINING)) + b"XMP_" + NO_TRAINING.encode()
    ),
    "priv.mp3": lambda _: (
        b"ID3\4\0\0\0\0\x0f\x7fPRIV\0\0\x0f\x75\0\0XMP\0"
        + NO_TRAINING.encode().ljust(2000, b"\0")
        + sound("MP3")
    ),
    "pmx.wav": lambda _: sound("WAV") + b"_PMX" + struct.pack("<I", len(NO_TRAINING)) + NO_TRAINING.encode(),
    "wide.jpg": lambda _: picture("JPEG") + NO_TRAINING.encode("utf-16-le"),
    "wide.mp4": lambda at: film_bytes(at, "mp4") + NO_TRAINING.encode("utf-16-be"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_prohibition_is_found_in_every_kind_of_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FILES[name](tmp_path))
    assert "plus:DataMining" in refusal_of(tmp_path / name) and "DMI-PROHIBITED-AIMLTRAINING" in refusal_of(
        tmp_path / name
    )


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
def test_a_file_that_says_nothing_is_kept(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a").write_bytes(picture(kind))
    assert embedded_evidence([tmp_path / "a"]) == NONE_FOUND


@pytest.mark.parametrize(
    ("packet", "statement"),
    [
        (xmp(f'plus:DataMining="{VOCABULARY}DMI-PROHIBITED"'), "DMI-PROHIBITED"),
        (xmp(f'plus:DataMining="{VOCABULARY}DMI-PROHIBITED-GENAIMLTRAINING"'), "GENAIMLTRAINING"),
        (xmp(f'plus:DataMining="{VOCABULARY}DMI-PROHIBITED-EXCEPTSEARCHENGINEINDEXING"'), "EXCEPTSEARCH"),
        (xmp('plus:DataMining="DMI-PROHIBITED-SEECONSTRAINT"'), "SEECONSTRAINT"),
        (xmp("", f"<plus:DataMining>{PROHIBITED}</plus:DataMining>"), "AIMLTRAINING"),
        (xmp("", f'<plus:DataMining rdf:resource="{PROHIBITED}"/>'), "AIMLTRAINING"),
        (
            xmp("", f"<plus:DataMining><rdf:Bag><rdf:li>{PROHIBITED}</rdf:li></rdf:Bag></plus:DataMining>"),
            "AIMLTRAINING",
        ),
        (
            xmp(f'plus:DataMining="{PROHIBITED}"').replace("plus:", "p9:").replace(":plus=", ":p9="),
            "AIMLTRAINING",
        ),
        (xmp('plus:DataMining="Prohibited for AI/ML training"'), "Prohibited"),
        (xmp('tdm:reservation="1" tdm:policy="https://a.example/policy"'), "tdm:reservation 1"),
        (xmp("", "<tdm:reservation>1</tdm:reservation>"), "tdm:reservation 1"),
        (NO_TRAINING[: NO_TRAINING.index("</rdf:Desc")], "AIMLTRAINING"),  # cut off
        (NO_TRAINING.replace("<rdf:RDF", '<rdf:RDF bad="&x;"'), "AIMLTRAINING"),  # an entity
        (xmp(f'plus:DataMining="{VOCABULARY}DMI-ALLOWED"'), ""),
        (xmp(f'plus:DataMining="{VOCABULARY}DMI-UNSPECIFIED"'), ""),
        (xmp('tdm:reservation="0"'), ""),
        (xmp(f'plus:Note="{PROHIBITED}"'), ""),
        (xmp(f'plus:DataMining="{PROHIBITED}"').replace("useplus", "example"), ""),
        (f"DataMining {PROHIBITED} outside of any packet", ""),
    ],
)
def test_what_a_packet_says_decides(tmp_path: Path, packet: str, statement: str) -> None:
    (tmp_path / "a.jpg").write_bytes(picture("JPEG") + packet.encode())
    refusal = refusal_of(tmp_path / "a.jpg")
    if statement:
        assert statement in refusal and "within the JPEG file" in refusal
    else:
        assert not refusal


def test_a_statement_at_the_seam_of_two_blocks_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(bytes((4 << 20) - 5) + NO_TRAINING.encode())
    assert refusal_of(tmp_path / "a.mp4")


@pytest.mark.parametrize(
    "data",
    [
        b"<rdf:RDF" * 200_000,
        b"<rdf:RDF>" + b"<plus:DataMining>" * 100_000,
        (xmp("", "<plus:DataMining>" * 50_000 + "</plus:DataMining>" * 50_000)).encode(),
        png_with(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(100_000_000))),
        b"\xff\xd8" + b"\xff\xe1\0\2" * 500_000,
        b"<rdf:RDF><!DOCTYPE a [<!ENTITY b '" + b"c" * 1000 + b"'>]>" + b"&b;" * 10_000 + b"</rdf:RDF>",
    ],
)
def test_a_hostile_file_is_read_in_seconds(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a").write_bytes(data)
    started = time.process_time()
    refusal_of(tmp_path / "a")
    assert time.process_time() - started < 5


C2PA_CASES = [
    (
        "cawg.training-mining",
        {"cawg.ai_generative_training": "notAllowed"},
        "cawg.ai_generative_training notAllowed",
    ),
    ("cawg.training-mining", {"cawg.data_mining": "constrained"}, "cawg.data_mining constrained"),
    (
        "c2pa.training-mining",
        {"c2pa.ai_training": "allowed", "c2pa.ai_inference": "notAllowed"},
        "c2pa.ai_inference notAllowed",
    ),
    ("cawg.training-mining", {"cawg.ai_training": "allowed"}, ""),
    ("", {}, ""),
]


@pytest.mark.parametrize(("label", "entries", "statement"), C2PA_CASES)
def test_training_assertions_of_c2pa_are_obeyed(
    tmp_path: Path, label: str, entries: dict[str, str], statement: str
) -> None:
    pytest.importorskip("c2pa")
    from tests.fakes.credentials import with_assertion

    (tmp_path / "a.jpg").write_bytes(with_assertion(picture("JPEG"), "image/jpeg", label, entries))
    if statement:
        assert statement in refusal_of(tmp_path / "a.jpg")
    else:
        assert "C2PA" in embedded_evidence([tmp_path / "a.jpg"])


def test_a_training_assertion_in_a_film_and_in_a_sound_is_found(tmp_path: Path) -> None:
    pytest.importorskip("c2pa")
    from tests.fakes.credentials import with_assertion

    label, entries, statement = C2PA_CASES[0]
    for name, mime, data in (
        ("a.mp4", "video/mp4", film_bytes(tmp_path, "mp4")),
        ("a.wav", "audio/wav", sound("WAV")),
    ):
        (tmp_path / name).write_bytes(with_assertion(data, mime, label, entries))
        assert statement in refusal_of(tmp_path / name)


def test_an_unreadable_training_assertion_prohibits(tmp_path: Path) -> None:
    store = b"jumdc2pa\x00\x11\x00\x10\x80\x00\x00\xaa\x00\x38\x9b\x71"
    (tmp_path / "a.jpg").write_bytes(picture("JPEG") + store + b"cawg.training-mining" + bytes(50))
    (tmp_path / "b.jpg").write_bytes(picture("JPEG") + store + bytes(50))
    assert "cannot be read" in refusal_of(tmp_path / "a.jpg") and not refusal_of(tmp_path / "b.jpg")


@pytest.mark.parametrize("kind", ["folder", "webdataset"])
def test_an_opt_out_is_a_row_and_kept_samples_have_evidence(tmp_path: Path, kind: str) -> None:
    media = tmp_path / "media"
    media.mkdir()
    for name, text in (("free", ""), ("closed", NO_TRAINING)):
        (media / f"{name}.jpg").write_bytes(picture("JPEG", text))
        (media / f"{name}.wav").write_bytes(sound("WAV"))
    if kind == "webdataset":
        with tarfile.open(media / "a.tar", "w") as tar:
            for path in sorted(media.glob("*.*g")) + sorted(media.glob("*.wav")):
                tar.add(path, path.name)
    shape = {"clip": ClipConfig(1.0), "frame": FrameConfig(32), "workers": 0}
    summary = scrape(
        ScrapeConfig(str(tmp_path / "out"), SourceConfig(str(media), kind, "own"), **shape), progress=False
    )
    assert summary.counts["refused:opt_out"] == 1 and summary.counts["kept"] == 2
    refused = [row for row in Dataset.open(str(tmp_path / "out")).iter_rows() if row["status"] == "refused"]
    assert "plus:DataMining" in refused[0]["detail"] and PROHIBITED in refused[0]["detail"]
    (tar_path,) = (tmp_path / "out/shards").glob("*.tar")
    with tarfile.open(tar_path) as tar:
        samples = [json.load(tar.extractfile(member)) for member in tar if member.name.endswith(".json")]
    assert [sample["meta"]["permission"]["embedded"] for sample in samples] == [NONE_FOUND] * 2


@pytest.mark.parametrize("where", ["start", "end"])
def test_both_ends_of_a_huge_file_are_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """A sparse terabyte takes no longer than its ends."""
    monkeypatch.setattr(embedded, "EDGE_BYTES", 16 << 20)
    path = tmp_path / "huge.mp4"
    packet = NO_TRAINING.encode()
    with path.open("wb") as file:
        file.truncate(1 << 40)
        file.seek(0 if where == "start" else (1 << 40) - len(packet))
        file.write(packet)
    with pytest.raises(Refused, match="DataMining"):
        embedded_evidence([path])
