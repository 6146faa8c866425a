"""What media files say of machine use within themselves: XMP (IPTC/PLUS data mining, TDMRep) and C2PA
training assertions.

    embedded_evidence([Path("a.jpg"), Path("a.mp3")])     # "none found", or what it says; or `Refused`

Read before anything is decoded, since clips keep no metadata. Files are scanned for XMP packets, whatever
their container (JPEG, PNG, WEBP, AVIF, HEIC, TIFF, GIF, MP4, MOV, MP3, WAV, …); the two packings that hide
them from a scan are undone: JPEG's extended XMP, PNG's compressed text. C2PA is read by c2pa-python (extra
`c2pa`); without it, a file with such an assertion is refused. Files are hostile: this runs in the decoder's
sandbox, opens no other file and no network. A prohibition and a constraint both refuse: nobody here can
negotiate. Free texts such as xmpRights:UsageTerms are not judged.
"""

import itertools
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from ingest.clip.picture import regular_file
from ingest.sample import Reason, Refused

NONE_FOUND = "none found"
BLOCK_BYTES = 4 << 20
EDGE_BYTES = 128 << 20  # of a file larger than two of these, only both ends are searched: media are between
MAX_PACKET_BYTES = 4 << 20  # of XMP; a longer one is read up to here
MAX_PACKETS = 100
MAX_PROPERTIES = 10_000  # of a packet
MAX_CHUNKS = 100_000  # of a PNG, and segments of a JPEG
XMP_MARKS = {"<rdf:RDF".encode(code): code for code in ("utf-8", "utf-16-le", "utf-16-be")}
WIDE_MARK = "rdf:RDF".encode("utf-16-le")[:-1]  # in both orders of bytes: each search costs 0.4 ms a megabyte
XMP_END = "</rdf:RDF>"
C2PA_MARK = b"jumdc2pa\x00\x11\x00\x10"  # description of a manifest store
TRAINING_MARK = b"training-mining"
EXTENDED_XMP = b"http://ns.adobe.com/xmp/extension/\0"
STATEMENTS = ("}DataMining", "}reservation", "}tdm-reservation")
MINING_ALLOWED = (
    "DMI-ALLOWED",
    "DMI-UNSPECIFIED",
    "ALLOWED",
    "UNSPECIFIED",
)  # of PLUS; all its other values prohibit something
C2PA_KINDS = (
    (b"\xff\xd8\xff", 0, "image/jpeg"),
    (b"\x89PNG", 0, "image/png"),
    (b"GIF8", 0, "image/gif"),
    (b"WEBP", 8, "image/webp"),
    (b"WAVE", 8, "audio/wav"),
    (b"AVI ", 8, "video/avi"),
    (b"II*\0", 0, "image/tiff"),
    (b"MM\0*", 0, "image/tiff"),
    (b"ID3", 0, "audio/mpeg"),
    (b"fLaC", 0, "audio/flac"),
    (b"ftypavif", 4, "image/avif"),
    (b"ftyphei", 4, "image/heic"),
    (b"ftypmif1", 4, "image/heif"),
    (b"ftypqt", 4, "video/quicktime"),
    (b"ftyp", 4, "video/mp4"),
)
C2PA_SETTINGS = {
    "verify": {
        "verify_trust": False,
        "remote_manifest_fetch": False,
        "ocsp_fetch": False,
        "verify_after_reading": False,
    }
}


def embedded_evidence(paths: Iterable[str | Path]) -> str:
    """What the files say of machine use that prohibits nothing;

    `NONE_FOUND`. Raises `Refused` (opt_out) for what does.
    """
    found = []
    for path in dict.fromkeys(map(Path, paths)):
        regular_file(str(path))
        with path.open("rb") as file:
            for statement, prohibits in _statements(file):
                if prohibits:
                    raise Refused(Reason.OPT_OUT, f"within the {_kind(file)} file: {statement}")
                found.append(statement)
    return "; ".join(dict.fromkeys(found))[:1000] or NONE_FOUND


def _statements(file: BinaryIO) -> Iterator[tuple[str, bool]]:
    """(what a file says, whether that prohibits)."""
    places = _places(file, (b"<rdf:RDF", WIDE_MARK, C2PA_MARK))
    for text in _packets(file, [place for place, mark in places if mark != C2PA_MARK]):
        yield from judge_xmp(text)
    if any(mark == C2PA_MARK for _, mark in places):
        yield from _judge_c2pa(file, bool(_places(file, (TRAINING_MARK,))))


def _places(file: BinaryIO, marks: tuple[bytes, ...]) -> list[tuple[int, bytes]]:
    """(offset, mark) of the first appearances of each mark, found in one pass over the file (of a huge one,
    over its ends).
    """
    size = file.seek(0, os.SEEK_END)
    stretches = [(0, EDGE_BYTES), (size - EDGE_BYTES, size)] if size > 2 * EDGE_BYTES else [(0, size)]
    found: set[tuple[int, bytes]] = set()
    for start, end in stretches:
        _search(file, start, end, marks, found)
    return sorted(found)


def _search(
    file: BinaryIO, start: int, end: int, marks: tuple[bytes, ...], found: set[tuple[int, bytes]]
) -> None:
    """Adds the places of `marks` between two offsets to `found`, as far as that may grow."""
    overlap = max(map(len, marks)) - 1
    kept = b""
    file.seek(start)
    while start < end and (block := file.read(min(BLOCK_BYTES, end - start))):
        seam = kept + block[:overlap]
        for mark in marks:
            for data, offset in ((seam, start - len(kept)), (block, start)):
                at = data.find(mark)
                while at >= 0 and len(found) < MAX_PACKETS * len(marks):
                    found.add((offset + at, mark))
                    at = data.find(mark, at + 1)
        start += len(block)
        kept = block[-overlap:]


def _packets(file: BinaryIO, places: list[int]) -> Iterator[str]:
    """The XMP of a file: packets that lie in it as they are, then those that JPEG and PNG hide."""
    behind = 0
    count = 0
    for place in places:
        if place < behind or count >= MAX_PACKETS:
            continue
        file.seek(max(0, place - 3))
        data = file.read(MAX_PACKET_BYTES)
        starts = ((data.find(mark, 0, 24), code) for mark, code in XMP_MARKS.items())
        first, code = next((start for start in starts if start[0] >= 0), (-1, ""))
        if first < 0:
            continue
        count += 1
        end = data.find(XMP_END.encode(code))
        length = end + len(XMP_END.encode(code))
        behind = place - 3 + length if end >= 0 else place + 1
        yield (data[first:length] if end >= 0 else data[first:]).decode(code, "replace")
    hidden = {"JPEG": _extended_xmp, "PNG": _compressed_xmp}.get(_kind(file))
    if hidden:
        for data in hidden(file):
            text = data.decode("utf-8", "replace")
            whole = re.search(rf"<rdf:RDF\b.*{XMP_END}", text, re.DOTALL)
            yield whole[0] if whole else text


def _kind(file: BinaryIO) -> str:
    file.seek(0)
    head = file.read(12)
    kind = next((kind for magic, at, kind in C2PA_KINDS if head[at : at + len(magic)] == magic), "media")
    return kind.split("/")[-1].upper() if kind != "media" else kind


def _extended_xmp(file: BinaryIO) -> Iterator[bytes]:
    """XMP of more than 64 KB lies in pieces, each with its offset, in segments of a JPEG."""
    pieces: dict[bytes, dict[int, bytes]] = {}
    place, num_bytes = 2, 0
    for _ in range(MAX_CHUNKS):
        file.seek(place)
        head = file.read(4)
        if len(head) < 4 or head[0] != 0xFF or head[1] in (0xDA, 0xD9):
            break
        size = int.from_bytes(head[2:], "big")
        body = file.read(min(size - 2, 0x10000)) if head[1] == 0xE1 and size > 2 else b""
        if body.startswith(EXTENDED_XMP) and num_bytes < MAX_PACKET_BYTES:
            rest = body[len(EXTENDED_XMP) :]
            pieces.setdefault(rest[:32], {})[int.from_bytes(rest[36:40], "big")] = rest[40:]
            num_bytes += len(rest)
        place += 2 + max(size, 2)
    for parts in pieces.values():
        yield b"".join(parts[offset] for offset in sorted(parts))


def _compressed_xmp(file: BinaryIO) -> Iterator[bytes]:
    """XMP in compressed text chunks of a PNG: iTXt, and ImageMagick's hexadecimal raw profiles."""
    place, num_bytes = 8, 0
    for _ in range(MAX_CHUNKS):
        file.seek(place)
        head = file.read(8)
        if len(head) < 8 or head[4:] == b"IEND" or num_bytes > MAX_PACKET_BYTES:
            break
        size = int.from_bytes(head[:4], "big")
        if head[4:] in (b"iTXt", b"zTXt", b"tEXt"):
            body = file.read(min(size, MAX_PACKET_BYTES))
            num_bytes += len(body)
            text = _png_text(head[4:], body)
            if text:
                yield text
        place += 12 + size


def _png_text(kind: bytes, body: bytes) -> bytes:
    keyword, _, rest = body.partition(b"\0")
    if kind == b"iTXt" and keyword == b"XML:com.adobe.xmp" and rest[:1] == b"\1":
        return _inflated(rest[2:].split(b"\0", 2)[-1])
    if keyword.lower() in (b"raw profile type xmp", b"raw profile type app1") and kind != b"iTXt":
        text = _inflated(rest[1:]) if kind == b"zTXt" else rest
        digits = re.sub(rb"[^0-9a-fA-F]", b"", text.strip().split(b"\n", 2)[-1])
        return bytes.fromhex(digits[: len(digits) // 2 * 2].decode())
    return b""


def _inflated(data: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, MAX_PACKET_BYTES)
    except zlib.error:
        return b""


def judge_xmp(text: str) -> Iterator[tuple[str, bool]]:
    """(statement, whether it prohibits) of plus:DataMining and TDMRep's tdm:reservation in an XMP packet."""
    try:
        root = fromstring(text, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError, LookupError):
        yield from _judge_broken(text)
        return
    for name, value in itertools.islice(_properties(root), MAX_PROPERTIES):
        namespace, _, local = name.rpartition("}")
        if "useplus.org" in namespace and local == "DataMining":
            yield (
                f"XMP plus:DataMining {value[:200]}",
                value.rstrip("/").split("/")[-1].upper() not in MINING_ALLOWED,
            )
        elif "tdmrep" in namespace.lower() and local.lower() in ("reservation", "tdm-reservation"):
            yield f"XMP tdm:reservation {value[:20]}", value != "0"


def _properties(root: Element) -> Iterator[tuple[str, str]]:
    """(name, value) of what may be a statement: an attribute, or an element with texts and resources, at any
    depth within it.
    """
    left = [(root, "")]
    while left:
        element, within = left.pop()
        yield from (
            (name, value.strip())
            for name, value in element.attrib.items()
            if name.endswith(STATEMENTS) and value.strip()
        )
        tag = element.tag if isinstance(element.tag, str) else ""
        within = within or (tag if tag.endswith(STATEMENTS) else "")
        if within:
            texts = [element.text, *(child.tail for child in element)]
            texts += [value for name, value in element.attrib.items() if name.endswith("}resource")]
            yield from ((within, text.strip()) for text in texts if text and text.strip())
        left += [(child, within) for child in element]


def _judge_broken(text: str) -> Iterator[tuple[str, bool]]:
    """Of a packet that is no XML (cut off, or with entities): what stands in it in plain words."""
    mining = re.search(r"DataMining.{0,300}?(DMI-PROHIBITED[\w-]*)", text, re.DOTALL)
    reserved = re.search(r"tdm:reservation\W{1,40}1\b", text)
    if mining:
        yield f"XMP plus:DataMining {mining[1][:200]}", True
    if reserved:
        yield "XMP tdm:reservation 1", True


def _judge_c2pa(file: BinaryIO, names_training: bool) -> Iterator[tuple[str, bool]]:
    """Training and data mining assertions of every manifest in the file, of C2PA and CAWG; signatures are not
    judged.
    """
    file.seek(0)
    head = file.read(12)
    mime = next((kind for magic, at, kind in C2PA_KINDS if head[at : at + len(magic)] == magic), "")
    try:
        uses = _training_uses(file, mime)
    except (ImportError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        yield (
            f"a C2PA manifest that cannot be read ({type(error).__name__}: {str(error)[:100]})",
            names_training,
        )
        return
    if not uses:
        yield "C2PA without a training assertion", False
    for label, name, use in uses:
        yield f"C2PA {label}: {name} {use}"[:200], use != "allowed"


def _training_uses(file: BinaryIO, mime: str) -> list[tuple[str, str, str]]:
    """(assertion, entry, use) of all manifests.

    Errors: whatever c2pa-python raises for what it cannot read, `ImportError`.
    """
    import c2pa  # 53 MB, and only where there is something to read

    file.seek(0)
    try:
        with c2pa.Reader(mime, file, context=c2pa.Context(c2pa.Settings.from_dict(C2PA_SETTINGS))) as reader:
            manifests = json.loads(reader.json())["manifests"].values()
    except c2pa.C2paError as error:
        raise ValueError(str(error)) from None
    found = []
    for manifest in manifests:
        for assertion in manifest.get("assertions", []):
            if "training-mining" in assertion["label"]:
                entries = assertion["data"]["entries"]
                named = (
                    entries.items()
                    if isinstance(entries, dict)
                    else ((entry.get("name", ""), entry) for entry in entries)
                )
                found += [
                    (str(assertion["label"]), str(name), str(entry.get("use"))) for name, entry in named
                ]
    return found
