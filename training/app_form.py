"""A form of pictures and settings, read from a request within limits; nothing of it is written to a disk.

    fields, pictures = await read_form(request, max_bytes=64_000_000, max_pictures=64)

aiohttp's own `post()` would write each file to a temporary one first, and count no bytes of them.
"""

from aiohttp import BodyPartReader, web

from configs.load import UserError

PICTURES = "pictures"  # the field of files; all others are settings
MAX_FIELDS = 16
MAX_FIELD_BYTES = 200
CHUNK_BYTES = 1 << 16


async def read_form(
    request: web.Request, max_bytes: int, max_pictures: int
) -> tuple[dict[str, str], list[bytes]]:
    """The settings by name, and the pictures, of at most `max_bytes` together.

    `UserError` for what is over a limit or no such form, `ValueError` for one that is broken.
    """
    if request.content_type != "multipart/form-data":
        raise UserError("give a form with pictures (multipart/form-data)")
    fields: dict[str, str] = {}
    pictures: list[bytes] = []
    left = max_bytes
    async for part in await request.multipart():
        if not isinstance(part, BodyPartReader) or not part.name:
            raise UserError("give a form with pictures, and settings by name")
        if part.name != PICTURES:
            data = await read_part(part, MAX_FIELD_BYTES)
            if data is None or len(fields) >= MAX_FIELDS:
                raise UserError(f"{part.name[:80]}: too long, or one field too many")
            fields[part.name] = data.decode("utf-8", "replace")
            continue
        if part.filename is None:
            raise UserError(f"{PICTURES}: give files; no path or address is read here")
        data = await read_part(part, left)
        if data is None:
            mb = max_bytes // 1_000_000
            raise UserError(f"{PICTURES}: more than {mb} MB at once; give fewer or smaller ones")
        if len(pictures) >= max_pictures:
            raise UserError(f"{PICTURES}: more than {max_pictures} at once; give fewer")
        pictures.append(data)
        left -= len(data)
    if not pictures:
        raise UserError(f"{PICTURES}: give at least one")
    return fields, pictures


async def read_part(part: BodyPartReader, most: int) -> bytes | None:
    """Its bytes; None where they are more than `most`."""
    data = bytearray()
    while chunk := await part.read_chunk(CHUNK_BYTES):
        data += chunk
        if len(data) > most:
            return None
    return bytes(data)
