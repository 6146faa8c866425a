"""What media files say of machine use within themselves: XMP (IPTC/PLUS data mining, TDMRep) and C2PA
training assertions.

    embedded_evidence([Path("a.jpg"), Path("a.mp3")])     # "none found", or the statements; or `Refused`

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
from typing import Any, BinaryIO, NamedTuple
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from ingest.clip.picture import regular_file
from ingest.sample import Reason, Refused

NONE_FOUND = "none found"
BLOCK_BYTES = 4 << 20
# metadata is at either end of a file: one larger than two of these is not searched between them,
# or a sparse terabyte would be read to its end before the decoder could refuse it
EDGE_BYTES = 128 << 20
# files are hostile: how much of one is parsed has bounds
MAX_PACKET_BYTES = 4 << 20  # of XMP; a longer one is read up to here
MAX_PACKETS = 100
MAX_PROPERTIES = 10_000  # of a packet
MAX_CHUNKS = 100_000  # of a PNG, and segments of a JPEG
MAX_EVIDENCE_CHARS = 1000  # it goes into the metadata of each sample
XMP_ENCODINGS = {"<rdf:RDF".encode(code): code for code in ("utf-8", "utf-16-le", "utf-16-be")}
UTF8_MARK = b"<rdf:RDF"
# one mark for both byte orders of UTF-16, since each search costs 0.4 ms a megabyte: the bytes they share
WIDE_MARK = "rdf:RDF".encode("utf-16-le")[:-1]
# so the "<" before it is left out: it begins 2 bytes earlier, or 3 in the big-endian order
WIDE_MARK_LEAD = 3
XMP_END = "</rdf:RDF>"
C2PA_MARK = b"jumdc2pa\x00\x11\x00\x10"  # description of a manifest store
TRAINING_MARK = b"training-mining"
EXTENDED_XMP = b"http://ns.adobe.com/xmp/extension/\0"
STATEMENTS = ("}DataMining", "}reservation", "}tdm-reservation")
# of PLUS; all its other values prohibit something
MINING_ALLOWED = ("DMI-ALLOWED", "DMI-UNSPECIFIED", "ALLOWED", "UNSPECIFIED")
# (magic bytes, their offset, type); `ftyp` without a brand we know comes last, since it begins the others
FILE_KINDS = (
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
# no network from the sandbox; and a prohibition counts whoever signed it
C2PA_SETTINGS = {
    "verify": {
        "verify_trust": False,
        "remote_manifest_fetch": False,
        "ocsp_fetch": False,
        "verify_after_reading": False,
    }
}


class Statement(NamedTuple):
    """What a file says of machine use, as it is recorded, and whether that prohibits training."""

    text: str
    prohibits: bool


class Mark(NamedTuple):
    """Where in a file one of the searched byte strings is."""

    offset: int
    mark: bytes


def embedded_evidence(paths: Iterable[str | Path]) -> str:
    """What the files say of machine use that prohibits nothing; `NONE_FOUND` where they say nothing.

    `Refused` (opt_out) where one prohibits it.
    """
    texts = []
    for path in dict.fromkeys(map(Path, paths)):
        regular_file(str(path))
        with path.open("rb") as file:
            for text, prohibits in _statements(file):
                if prohibits:
                    raise Refused(Reason.OPT_OUT, f"within the {_kind(file)} file: {text}")
                texts.append(text)
    return "; ".join(dict.fromkeys(texts))[:MAX_EVIDENCE_CHARS] or NONE_FOUND


def _statements(file: BinaryIO) -> Iterator[Statement]:
    marks = _find_marks(file, (UTF8_MARK, WIDE_MARK, C2PA_MARK))
    for text in _packets(file, [offset for offset, mark in marks if mark != C2PA_MARK]):
        yield from judge_xmp(text)
    # a second pass for the training mark only where there is C2PA, which is rare
    if any(mark == C2PA_MARK for _, mark in marks):
        yield from _judge_c2pa(file, bool(_find_marks(file, (TRAINING_MARK,))))


def _find_marks(file: BinaryIO, marks: tuple[bytes, ...]) -> list[Mark]:
    """The first appearances of each mark, in one pass over the file (of a huge one, over its ends)."""
    size = file.seek(0, os.SEEK_END)
    ranges = [(0, EDGE_BYTES), (size - EDGE_BYTES, size)] if size > 2 * EDGE_BYTES else [(0, size)]
    hits: set[Mark] = set()
    for start, end in ranges:
        _search(file, start, end, marks, hits)
    return sorted(hits)


def _search(file: BinaryIO, start: int, end: int, marks: tuple[bytes, ...], hits: set[Mark]) -> None:
    """Adds the marks between two offsets to `hits`, up to their limit."""
    overlap = max(map(len, marks)) - 1
    tail = b""
    file.seek(start)
    while start < end and (block := file.read(min(BLOCK_BYTES, end - start))):
        # a mark may be cut in two by the border of two blocks
        seam = tail + block[:overlap]
        for mark in marks:
            for data, offset in ((seam, start - len(tail)), (block, start)):
                at = data.find(mark)
                while at >= 0 and len(hits) < MAX_PACKETS * len(marks):
                    hits.add(Mark(offset + at, mark))
                    at = data.find(mark, at + 1)
        start += len(block)
        tail = block[-overlap:]


def _packets(file: BinaryIO, offsets: list[int]) -> Iterator[str]:
    """The XMP of a file: the packets at `offsets`, then those that JPEG and PNG hide."""
    yield from _plain_packets(file, offsets)
    read_hidden = {"JPEG": _extended_xmp, "PNG": _compressed_xmp}.get(_kind(file))
    if read_hidden:
        for data in read_hidden(file):
            text = data.decode("utf-8", "replace")
            packet = re.search(rf"<rdf:RDF\b.*{XMP_END}", text, re.DOTALL)
            yield packet[0] if packet else text


def _plain_packets(file: BinaryIO, offsets: list[int]) -> Iterator[str]:
    """The packets that begin at `offsets`; one that never ends is read up to MAX_PACKET_BYTES."""
    end_of_last = 0
    count = 0
    for offset in offsets:
        if offset < end_of_last or count >= MAX_PACKETS:
            continue
        file.seek(max(0, offset - WIDE_MARK_LEAD))
        data = file.read(MAX_PACKET_BYTES)
        starts = ((data.find(mark, 0, 24), code) for mark, code in XMP_ENCODINGS.items())
        start, code = next((start for start in starts if start[0] >= 0), (-1, ""))
        if start < 0:
            continue
        count += 1
        end = data.find(XMP_END.encode(code))
        length = end + len(XMP_END.encode(code))
        # without an end, a packet within it may still be whole
        end_of_last = offset - WIDE_MARK_LEAD + length if end >= 0 else offset + 1
        yield (data[start:length] if end >= 0 else data[start:]).decode(code, "replace")


def _mime(file: BinaryIO) -> str:
    """The media type by the first bytes; "" for other files."""
    file.seek(0)
    head = file.read(12)
    return next((mime for magic, at, mime in FILE_KINDS if head[at : at + len(magic)] == magic), "")


def _kind(file: BinaryIO) -> str:
    """Such as JPEG, for messages; `media` for a kind that is not known."""
    return _mime(file).split("/")[-1].upper() or "media"


def _extended_xmp(file: BinaryIO) -> Iterator[bytes]:
    """XMP of more than 64 KB is in pieces, each with its offset, in segments of a JPEG."""
    pieces_by_guid: dict[bytes, dict[int, bytes]] = {}
    offset = 2  # after the marker that begins every JPEG
    num_bytes = 0
    for _ in range(MAX_CHUNKS):
        file.seek(offset)
        head = file.read(4)
        # after SOS (0xDA) come the pixels, after EOI (0xD9) nothing
        if len(head) < 4 or head[0] != 0xFF or head[1] in (0xDA, 0xD9):
            break
        size = int.from_bytes(head[2:], "big")
        body = file.read(min(size - 2, 0x10000)) if head[1] == 0xE1 and size > 2 else b""
        if body.startswith(EXTENDED_XMP) and num_bytes < MAX_PACKET_BYTES:
            # 32 bytes of GUID, 4 of the full length, 4 of this piece's offset
            payload = body[len(EXTENDED_XMP) :]
            piece_offset = int.from_bytes(payload[36:40], "big")
            pieces_by_guid.setdefault(payload[:32], {})[piece_offset] = payload[40:]
            num_bytes += len(payload)
        offset += 2 + max(size, 2)
    # the pieces may be stored in any order
    for pieces in pieces_by_guid.values():
        yield b"".join(pieces[piece_offset] for piece_offset in sorted(pieces))


def _compressed_xmp(file: BinaryIO) -> Iterator[bytes]:
    """XMP in compressed text chunks of a PNG: iTXt, and ImageMagick's hexadecimal raw profiles."""
    offset = 8  # after the signature
    num_bytes = 0
    for _ in range(MAX_CHUNKS):
        file.seek(offset)
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
        offset += 12 + size  # length, type and checksum have 4 bytes each


def _png_text(kind: bytes, body: bytes) -> bytes:
    """The XMP in a text chunk; b"" of a chunk without, or whose XMP the search of the file finds as it is."""
    keyword, _, value = body.partition(b"\0")
    # a flag, a method, then a language and a translated keyword that a zero ends
    if kind == b"iTXt" and keyword == b"XML:com.adobe.xmp" and value[:1] == b"\1":
        return _inflated(value[2:].split(b"\0", 2)[-1])
    if keyword.lower() in (b"raw profile type xmp", b"raw profile type app1") and kind != b"iTXt":
        text = _inflated(value[1:]) if kind == b"zTXt" else value
        # two lines, the name and the length, come before the digits
        digits = re.sub(rb"[^0-9a-fA-F]", b"", text.strip().split(b"\n", 2)[-1])
        return bytes.fromhex(digits[: len(digits) // 2 * 2].decode())
    return b""


def _inflated(data: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, MAX_PACKET_BYTES)
    except zlib.error:
        return b""


def judge_xmp(text: str) -> Iterator[Statement]:
    """Statements of plus:DataMining and of TDMRep's tdm:reservation in an XMP packet."""
    try:
        root = fromstring(text, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError, LookupError):
        yield from _judge_broken(text)
        return
    for name, value in itertools.islice(_properties(root), MAX_PROPERTIES):
        namespace, _, local = name.rpartition("}")
        if "useplus.org" in namespace and local == "DataMining":
            # the value is a term of the vocabulary, with or without its URL
            term = value.rstrip("/").split("/")[-1].upper()
            yield Statement(f"XMP plus:DataMining {value[:200]}", term not in MINING_ALLOWED)
        elif "tdmrep" in namespace.lower() and local.lower() in ("reservation", "tdm-reservation"):
            yield Statement(f"XMP tdm:reservation {value[:20]}", value != "0")


def _properties(root: Element) -> Iterator[tuple[str, str]]:
    """(name, value) of what may be a statement: an attribute, or an element with texts and resources, at any
    depth within it.
    """
    # a stack, not recursion: a hostile packet nests deeper than Python may
    stack = [(root, "")]
    while stack:
        element, within = stack.pop()
        for name, value in element.attrib.items():
            if name.endswith(STATEMENTS) and value.strip():
                yield name, value.strip()
        tag = element.tag if isinstance(element.tag, str) else ""
        within = within or (tag if tag.endswith(STATEMENTS) else "")
        if within:
            texts = [element.text, *(child.tail for child in element)]
            texts += [value for name, value in element.attrib.items() if name.endswith("}resource")]
            for text in texts:
                if text and text.strip():
                    yield within, text.strip()
        stack += [(child, within) for child in element]


def _judge_broken(text: str) -> Iterator[Statement]:
    """Of a packet that is no XML (cut off, or with entities): the prohibitions that its text names."""
    mining = re.search(r"DataMining.{0,300}?(DMI-PROHIBITED[\w-]*)", text, re.DOTALL)
    reserved = re.search(r"tdm:reservation\W{1,40}1\b", text)
    if mining:
        yield Statement(f"XMP plus:DataMining {mining[1][:200]}", True)
    if reserved:
        yield Statement("XMP tdm:reservation 1", True)


def _judge_c2pa(file: BinaryIO, names_training: bool) -> Iterator[Statement]:
    """Training and data mining assertions of every manifest in the file, of C2PA and CAWG; signatures are not
    judged.
    """
    mime = _mime(file)
    try:
        uses = _training_uses(file, mime)
    except (ImportError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        # an assertion that nobody here can read may be a prohibition
        cause = f"{type(error).__name__}: {str(error)[:100]}"
        yield Statement(f"a C2PA manifest that cannot be read ({cause})", names_training)
        return
    if not uses:
        yield Statement("C2PA without a training assertion", False)
    for label, name, use in uses:
        yield Statement(f"C2PA {label}: {name} {use}"[:200], use != "allowed")


class TrainingUse(NamedTuple):
    """One entry of a training assertion: which use of the medium, and whether it is allowed."""

    label: str
    name: str
    use: str


def _training_uses(file: BinaryIO, mime: str) -> list[TrainingUse]:
    """The entries of all training assertions of all manifests.

    Errors: whatever c2pa-python raises for what it cannot read, `ImportError`.
    """
    import c2pa  # 53 MB, and only where there is something to read

    file.seek(0)
    try:
        with c2pa.Reader(mime, file, context=c2pa.Context(c2pa.Settings.from_dict(C2PA_SETTINGS))) as reader:
            manifests = json.loads(reader.json())["manifests"].values()
    except c2pa.C2paError as error:
        raise ValueError(str(error)) from None
    uses: list[TrainingUse] = []
    for manifest in manifests:
        for assertion in manifest.get("assertions", []):
            label = assertion["label"]
            if "training-mining" not in label:
                continue
            for name, entry in _named_entries(assertion["data"]["entries"]):
                uses.append(TrainingUse(str(label), str(name), str(entry.get("use"))))
    return uses


def _named_entries(entries: Any) -> list[tuple[Any, Any]]:
    """(name, entry) of an assertion's entries, which are a mapping or a list of objects with a name."""
    if isinstance(entries, dict):
        return list(entries.items())
    return [(entry.get("name", ""), entry) for entry in entries]
