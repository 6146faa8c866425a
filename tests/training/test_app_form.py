"""A form of pictures and settings, read within limits and into memory."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from configs.load import UserError
from training.app_form import read_form

Form = tuple[dict[str, str], list[bytes]]


def read(make: Callable[[aiohttp.ClientSession, str], Awaitable[Any]]) -> Form | str:
    """What is read of a request to a server here; of a refused one, why."""
    found: list[Form | str] = []

    async def answer(request: web.Request) -> web.Response:
        try:
            found.append(await read_form(request, max_bytes=300_000, max_pictures=2))
        except (UserError, ValueError) as error:
            found.append(str(error))
        return web.Response()

    async def talk() -> None:
        application = web.Application()
        application.router.add_post("/", answer)
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with aiohttp.ClientSession() as session:
            await make(session, f"http://127.0.0.1:{runner.addresses[0][1]}")
        await runner.cleanup()

    asyncio.run(talk())
    return found[0]


def form_of(*pictures: bytes, **fields: str) -> Form | str:
    form = aiohttp.FormData()
    for name, value in fields.items():
        form.add_field(name, value)
    for picture in pictures:
        form.add_field("pictures", picture, filename="../../etc/passwd")
    return read(lambda session, url: session.post(url, data=form))


def test_pictures_and_settings_are_read_byte_for_byte() -> None:
    large = bytes(range(256)) * 800
    assert form_of(large, b"--\r\n", takes="2") == ({"takes": "2"}, [large, b"--\r\n"])


@pytest.mark.parametrize(
    ("pictures", "fields", "said"),
    [
        (
            [b"a" * 200_000, b"b" * 100_001],
            {},
            "pictures: more than 0 MB at once; give fewer or smaller ones",
        ),
        ([b"a", b"b", b"c"], {}, "pictures: more than 2 at once; give fewer"),
        ([], {"takes": "1"}, "pictures: give at least one"),
        ([b"a"], {"takes": "1" * 201}, "takes: too long, or one field too many"),
        ([b"a"], {f"field{n}": "" for n in range(17)}, "field16: too long, or one field too many"),
    ],
)
def test_what_is_over_a_limit_is_one_line(pictures: list[bytes], fields: dict[str, str], said: str) -> None:
    if not pictures:
        # a form without a file is sent in another format, unless it is told not to
        form = aiohttp.FormData(fields, default_to_multipart=True)
        assert read(lambda session, url: session.post(url, data=form)) == said
    else:
        assert form_of(*pictures, **fields) == said


def test_a_path_or_another_format_is_refused() -> None:
    form = aiohttp.FormData({"pictures": "/etc/passwd"}, default_to_multipart=True)
    said = read(lambda session, url: session.post(url, data=form))
    assert said == "pictures: give files; no path or address is read here"
    said = read(lambda session, url: session.post(url, json={"pictures": ["/etc/passwd"]}))
    assert said == "give a form with pictures (multipart/form-data)"
    broken = {"Content-Type": "multipart/form-data; boundary=x"}
    assert "boundary" in str(read(lambda session, url: session.post(url, data=b"nothing", headers=broken)))
