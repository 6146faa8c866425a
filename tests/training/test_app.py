"""The app: typed, opened in a browser, heard; and what others on the network get of it."""

import asyncio
import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

import aiohttp
import pytest
from PIL import Image

from configs.load import UserError
from tests.conftest import ROOT
from tests.fakes.chain import Chain, frames_of
from tests.fakes.devtools import Page, open_browser
from training.app import AppConfig, Site, is_loopback, license_of_model, running
from training.app_sounds import SoundMaker
from training.export import open_pipeline
from training.generate import GenerateConfig, generate

Talk = Callable[[aiohttp.ClientSession], Awaitable[Any]]


@pytest.fixture(scope="module")
def maker(chain: Chain, voice: str) -> SoundMaker:
    return SoundMaker(open_pipeline(chain.diffusion, vocoder=voice))


def talk(maker: SoundMaker, do: Talk, license: str = "", **settings: Any) -> Any:
    """What `do` returns, of a session whose addresses begin at the app."""

    async def within() -> Any:
        config = AppConfig(model="out/model", port=0, **settings)
        async with running(config, maker, license) as url, aiohttp.ClientSession(url) as session:
            return await do(session)

    return asyncio.run(within())


def form_of(*pictures: bytes, **fields: str) -> aiohttp.FormData:
    form = aiohttp.FormData(fields)
    for picture in pictures:
        form.add_field("pictures", picture, filename="a.png")
    return form


async def events_of(session: aiohttp.ClientSession, *pictures: bytes, **fields: str) -> list[dict[str, Any]]:
    async with session.post("/sounds", data=form_of(*pictures, **fields)) as answer:
        assert answer.status == 200, await answer.text()
        return [json.loads(line) for line in (await answer.text()).splitlines()]


# --- A person -----------------------------------------------------------------------------------------------


def test_a_person_chooses_pictures_and_hears_what_generate_writes(
    chain: Chain, voice: str, tmp_path: Path
) -> None:
    pictures = frames_of(chain, tmp_path / "frames", 2)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    settings = {"steps": 2, "seed": 3, "takes": 2, "guidance": 1.5}
    wavs = generate(
        GenerateConfig(
            model=chain.diffusion,
            vocoder=voice,
            images=f"{tmp_path}/frames",
            output=f"{tmp_path}/out",
            threads=1,
            **settings,
        ),
        progress=False,
    )["wavs"]
    command = [sys.executable, "-m", "training", "app", chain.diffusion]
    command += ["port=0", "per_minute=2", "threads=1", f"vocoder={voice}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout
            line = process.stdout.readline()
            found = re.search(r"listening at (http://127\.0\.0\.1:\d+) ", line)
            assert found, line
            asyncio.run(use_the_page(found[1], [*pictures, tmp_path / "bad.png"], wavs, tmp_path))
        finally:
            process.terminate()


async def use_the_page(url: str, pictures: list[Path], wavs: list[str], folder: Path) -> None:
    async with open_browser(folder / "browser") as page:
        await page.show(url, width_px=1200)
        assert "this run has no model card yet" in await page.run("document.body.innerText")

        # --- Several pictures at once, one of them none, with two takes each --------------------------------
        await page.choose("#files", pictures)
        for name, value in (("steps", 2), ("seed", 3), ("takes", 2), ("guidance", 1.5)):
            await page.run(f"document.querySelector('[name={name}]').value = {value}")
        await page.press("#go")
        await page.wait_for(
            "document.querySelector('#go').disabled == false && document.querySelector('.card')"
        )
        assert await page.run("document.querySelector('#status').innerText") == (
            "4 of 6 sounds; 1 of 3 pictures gave none"
        )
        cards = await page.run("[...document.querySelectorAll('.card')].map(one => one.innerText)")
        assert [picture.name in card for picture, card in zip(pictures, cards, strict=True)] == [True] * 3
        assert "no sound: not a picture of JPEG" in cards[2] and "take 2, seed 3" in cards[1]

        # --- Side by side, and each is heard ----------------------------------------------------------------
        lengths = (
            "Promise.all([...document.querySelectorAll('audio')].map(one => one.duration || new Promise("
        )
        lengths += "done => one.onloadedmetadata = () => done(one.duration))))"
        assert await page.run(lengths) == [pytest.approx(1.6, abs=0.001)] * 4
        tops = (
            "[...document.querySelectorAll('.card')[0].querySelectorAll('figure')].map(one => one.offsetTop)"
        )
        assert len(set(await page.run(tops))) == 1
        spectrograms = "[...document.querySelectorAll('figure img')].map(one => one.naturalWidth > 0)"
        assert await page.run(spectrograms) == [True] * 4
        await page.run("document.querySelector('audio').play()")
        await page.wait_for("document.querySelector('audio').currentTime > 0.05")
        for number, wav in enumerate(wavs):
            await page.press(f".card:nth-child({1 + number // 2}) figure:nth-child({1 + number % 2}) a")
            assert await downloaded(page, Path(wav).name) == Path(wav).read_bytes()

        await press_more_often_than_allowed(page, pictures[0])
        await look_on_a_telephone(page)

        # --- Nothing was asked of anybody else --------------------------------------------------------------
        assert page.errors == []
        hosts = {urlsplit(address).netloc for address in page.requests if address.startswith(("http", "ws"))}
        assert hosts == {urlsplit(url).netloc}
        assert {urlsplit(address).scheme for address in page.requests} <= {"http", "blob", "data"}


async def press_more_often_than_allowed(page: Page, picture: Path) -> None:
    await page.choose("#files", [picture])
    await page.press("#go")
    await page.wait_for("document.querySelectorAll('.card').length == 4")
    await page.wait_for("!document.querySelector('#go').disabled")
    await page.press("#go")
    await page.wait_for("document.querySelector('#status').innerText.includes('try again in')")
    said = await page.run("document.querySelector('#status').innerText")
    assert re.fullmatch(r"at most 2 requests a minute; try again in \d+ s", said)


async def look_on_a_telephone(page: Page) -> None:
    await page.resize(390, is_dark=True)
    beyond = "[...document.querySelectorAll('*')].filter(one => one.getBoundingClientRect().right > 390)"
    assert await page.run(f"{beyond}.map(one => one.tagName)") == []
    assert await page.run("document.documentElement.scrollWidth") <= 390
    colours = await page.run(
        "[document.body, document.querySelector('.card')].map(one => getComputedStyle(one).backgroundColor)"
    )
    assert colours == ["rgb(16, 19, 28)", "rgb(25, 29, 41)"]


async def downloaded(page: Page, name: str) -> bytes:
    for _ in range(200):
        if (page.downloads / name).is_file():
            return (page.downloads / name).read_bytes()
        await asyncio.sleep(0.05)
    raise AssertionError(f"{name} is not among {os.listdir(page.downloads)}")


def test_a_folder_is_dropped_and_goes_in_as_many_requests_as_it_needs(
    maker: SoundMaker, tmp_path: Path
) -> None:
    folder = tmp_path / "photos/2024"
    folder.mkdir(parents=True)
    for number in range(5):
        Image.new("RGB", (32, 32), (40 * number, 0, 0)).save(folder / f"{number}.png")
    (folder / "notes.txt").write_text("no picture")

    async def drop(session: aiohttp.ClientSession) -> None:
        async with open_browser(tmp_path / "browser") as page:
            await page.show(str(session._base_url), width_px=1200)
            await page.drop("#drop", [tmp_path / "photos"])
            await page.wait_for("document.querySelectorAll('#chosen img').length == 5")
            await page.run("document.querySelector('[name=steps]').value = 1")
            await page.press("#go")
            await page.wait_for("document.querySelector('#status').innerText == '5 of 5 sounds'")
            names = await page.run("[...document.querySelectorAll('h2')].map(one => one.innerText)")
            assert names == [f"{number}.png" for number in range(5)]
            assert [address for address in page.requests if address.endswith("/sounds")] != []
            assert sum(address.endswith("/sounds") for address in page.requests) == 3
            await page.press("#clear")
            assert await page.run("document.querySelectorAll('.card').length") == 0

    talk(maker, drop, max_sounds=2)


# --- Others on the network ----------------------------------------------------------------------------------


def test_no_file_of_the_machine_can_be_had(maker: SoundMaker) -> None:
    paths = (
        "/gradio_api/file=/etc/passwd",
        "/file=/etc/passwd",
        "/..%2f..%2f..%2fetc/passwd",
        "//etc/passwd",
    )
    paths += (
        "/static/../../../etc/passwd",
        "/app.html.j2",
        "/app.py",
        "/sounds/../app.js",
        "/app.js/../../etc/hosts",
    )

    async def ask(session: aiohttp.ClientSession) -> list[int]:
        base = str(session._base_url).rstrip("/")
        # as they are: a client would tidy them up
        asked = [aiohttp.client.URL(base + path, encoded=True) for path in paths]
        return [(await session.get(url)).status for url in asked] + [(await session.get("/")).status]

    assert set(talk(maker, ask)[:-1]) == {404}
    assert talk(maker, ask)[-1] == 200


def test_other_sites_can_neither_use_nor_frame_it(maker: SoundMaker) -> None:
    async def ask(session: aiohttp.ClientSession) -> list[tuple[int, str]]:
        answers = []
        for headers in ({"Host": "rebound.example"}, {"Origin": "https://evil.example"}, {"Origin": "null"}):
            async with session.post("/sounds", data=form_of(b"a"), headers=headers) as answer:
                answers.append((answer.status, (await answer.json())["error"]))
        async with session.get("/") as answer:
            assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
            assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
            assert "Access-Control-Allow-Origin" not in answer.headers and "Server" not in answer.headers
        return answers

    others = (403, "requests of other sites are refused")
    named = (403, "this page answers to 127.0.0.1 and localhost only")
    assert talk(maker, ask) == [named, others, others]


def test_a_mistake_is_one_line_and_costs_no_sound(maker: SoundMaker) -> None:
    asked = (
        ({"steps": "0"}, "steps=0: give a whole number from 1 to 200"),
        ({"takes": "64"}, "takes=64: 2 pictures with 64 takes each are more than 64 sounds at once"),
        ({"sampler": "ddim"}, "sampler=ddim: give one of euler, dpmsolver, unipc"),
    )

    async def ask(session: aiohttp.ClientSession) -> None:
        for fields, said in asked:
            async with session.post("/sounds", data=form_of(b"a", b"b", **fields)) as answer:
                assert (answer.status, await answer.json()) == (400, {"error": said})
        async with session.post("/sounds", data=form_of(b"a" * 2_000_000)) as answer:
            said = "pictures: more than 1 MB at once; give fewer or smaller ones"
            assert (answer.status, await answer.json()) == (400, {"error": said})

    with mock.patch.object(SoundMaker, "sounds_of", side_effect=AssertionError):
        talk(maker, ask, max_upload_mb=1)


def test_one_batch_is_made_at_a_time_and_whoever_leaves_costs_no_more(
    maker: SoundMaker, tmp_path: Path
) -> None:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    red = (tmp_path / "red.png").read_bytes()
    at_work = 0
    made: list[int] = []
    sample = maker.pipeline._sample

    def counting(*args: Any) -> Any:
        nonlocal at_work
        at_work += 1
        made.append(at_work)
        sounds = sample(*args)
        at_work -= 1
        return sounds

    async def ask(session: aiohttp.ClientSession) -> list[list[dict[str, Any]]]:
        several = [events_of(session, red, red, steps="1", takes="5") for _ in range(3)]
        found = await asyncio.gather(*several)
        before = len(made)
        # one that closes the page after its first sound
        async with session.post("/sounds", data=form_of(*[red] * 20, steps="1")) as answer:
            await answer.content.readline()
            answer.close()
        await asyncio.sleep(0.5)
        assert len(made) - before < 10
        return found

    with mock.patch.object(maker.pipeline, "_sample", counting):
        found = talk(maker, ask, max_requests=3)
    assert set(made) == {1}
    assert any(event.get("waiting") for events in found for event in events)
    for events in found:
        sounds = [event for event in events if "wav" in event]
        assert [event["take"] for event in sounds] == [1, 2, 3, 4, 5] * 2 and events[-1] == {"done": True}
        assert len({event["wav"] for event in sounds}) == 5
        assert all(base64.b64decode(event["wav"]).startswith(b"RIFF") for event in sounds)


def test_more_open_requests_than_are_allowed_are_told_so(maker: SoundMaker) -> None:
    async def ask() -> int:
        config = AppConfig(model="m", port=0, max_requests=1)
        site = Site(config, maker, "")
        site.num_open = 1
        request = mock.Mock(remote="127.0.0.1")
        answer = await site.make_sounds(request)
        assert "1 requests are waiting already" in str(answer.text)  # type: ignore[attr-defined]
        return answer.status

    assert asyncio.run(ask()) == 503


# --- Settings and the model ---------------------------------------------------------------------------------


def test_it_answers_this_machine_alone_unless_told_and_says_which_port_is_taken(maker: SoundMaker) -> None:
    assert AppConfig(model="m").host == "127.0.0.1"
    assert [is_loopback(host) for host in ("::1", "127.0.0.2", "192.0.2.1", "::")] == [
        True,
        True,
        False,
        False,
    ]

    async def twice(session: aiohttp.ClientSession) -> None:
        port = session._base_url.port
        async with running(AppConfig(model="m", port=port), maker, ""):
            pass

    with pytest.raises(UserError, match=r"port=\d+: .*in use.*; give another one; port=0 takes a free one"):
        talk(maker, twice)
    with pytest.raises(UserError, match="per_minute=0: give 1 or more"):
        AppConfig(model="m", per_minute=0)


def test_the_page_states_the_license_of_the_model_card(maker: SoundMaker, tmp_path: Path) -> None:
    assert license_of_model(tmp_path) == ""
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-sa-4.0\n---\n")
    code = license_of_model(tmp_path)

    async def page(session: aiohttp.ClientSession) -> str:
        return await (await session.get("/")).text()

    assert 'href="https://creativecommons.org/licenses/by-sa/4.0/"' in talk(maker, page, license=code)
    # of names, nothing is markup
    assert "<b>" not in talk(maker, page, license="<b>x")
