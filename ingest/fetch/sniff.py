"""What a file or an answer is, by its first bytes: a Content-Type and a suffix are claims.

    media_type(head)        # "video/mp4", "image/png", …; "" for what is not in the table
    is_text(head)           # a page, a manifest, an error message

Covered: the containers that `ingest.clip.process` may open, and pictures. Not covered: whether what follows
is complete.
"""

import re

HEAD_BYTES = 4096

_MAGICS: tuple[tuple[str, str], ...] = (  # the first match counts; `.` is any byte
    ("image/avif", r".{4}ftypavi[fs]"),
    ("image/heif", r".{4}ftyp(hei[cxms]|hev[cx]|mif1|msf1)"),
    ("video/mp4", r".{4}(ftyp|moov|mdat|moof|styp|sidx|free|skip|wide|pnot)"),
    ("video/webm", r"\x1a\x45\xdf\xa3"),
    ("image/webp", r"RIFF.{4}WEBP"),
    ("audio/wav", r"(RIFF|RF64|RIFX).{4}WAVE"),
    ("video/x-msvideo", r"RIFF.{4}AVI "),
    ("application/ogg", r"OggS"),
    ("audio/flac", r"fLaC"),
    ("audio/aiff", r"FORM.{4}AIF[FC]"),
    ("audio/amr", r"#!AMR"),
    ("audio/x-caf", r"caff\0"),
    ("video/x-flv", r"FLV\x01"),
    ("video/x-ms-asf", r"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),
    ("video/mp2t", r"(.{4})?\x47.{187}(.{4})?\x47.{187}(.{4})?\x47"),
    ("video/mpeg", r"\0\0\x01[\xba\xb3]"),
    ("application/mxf", r"\x06\x0e\x2b\x34\x02\x05\x01\x01"),
    ("video/x-dv", r"\x1f\x07\0[\x3f\xbf]"),
    ("image/jpeg", r"\xff\xd8\xff"),
    ("image/png", r"\x89PNG\r\n\x1a\n"),
    ("image/gif", r"GIF8[79]a"),
    ("image/bmp", r"BM.{4}\0\0\0\0"),
    ("image/tiff", r"II\x2a\0|MM\0\x2a"),
    ("audio/mpeg", r"ID3[\x02-\x04]"),
    ("audio/aac", r"\xff[\xf0\xf1\xf8\xf9]"),
    ("audio/mpeg", r"\xff[\xe2-\xe7\xf2-\xf7\xfa-\xfd][^\xf0-\xff]"),
)
MANIFESTS = ("application/vnd.apple.mpegurl", "application/dash+xml")
_TABLE = tuple((name, re.compile(pattern.encode("latin-1"), re.DOTALL)) for name, pattern in _MAGICS)
_BYTE_ORDER_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")


def media_type(head: bytes) -> str:
    """The MIME type of a medium that begins with `head`; "" for texts and for what is not in the table."""
    return next((name for name, pattern in _TABLE if pattern.match(head)), "")


def is_text(head: bytes) -> bool:
    """Whether `head` can only be text: it has a byte order mark, or no control character."""
    return head.startswith(_BYTE_ORDER_MARKS) or not _CONTROL.search(head)


def text_type(head: bytes, stated: str) -> str:
    """The MIME type of a text: a manifest's by its start, else `stated` where it can be one, else HTML."""
    start = head.removeprefix(_BYTE_ORDER_MARKS[0]).lstrip()
    if start.startswith(b"#EXTM3U"):
        return MANIFESTS[0]
    if re.match(rb"(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<MPD[\s>]", start, re.DOTALL):
        return MANIFESTS[1]
    of_text = stated.startswith("text/") or re.search(r"xml|json|javascript", stated)
    return stated if of_text else "text/html"
