"""`training app MODEL`: a page to drop pictures on, and to hear them.

    python -m training app out/demo/export                     # http://127.0.0.1:7860, until Ctrl-C

    GET  /           the page (app.html.j2) and its script (app.js); nothing else is read from the disk
    POST /sounds     pictures and settings as a form -> a line of JSON per sound, as each is made

It answers this machine alone unless `host` says otherwise. A picture is decoded by `ingest.pixels` and kept
in memory until it is heard; no file is written, none can be asked for, and the page loads nothing from
elsewhere. Sounds are made one batch at a time for all clients (training.app_sounds), in turn; how much of it
a client may have is training.app_limits'. There are no accounts: whoever reaches the page may use it.
"""

import asyncio
import base64
import contextlib
import ipaddress
import json
import logging
import math
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import torch
from aiohttp import web

from cluster.learnt import last_name
from configs.load import UserError, at_least, operational
from configs.terminal import counted
from ingest.licenses import url_of
from ingest.pixels import PictureError
from training.app_form import read_form
from training.app_limits import MAX_GUIDANCE, MAX_SEED, Bounds, RequestLimit, Wish, wish_of
from training.app_sounds import HeardTake, SoundMaker
from training.export import open_pipeline
from training.pipeline.codec import BadMelError
from training.pretrained import local_copy
from training.weights_license import UNKNOWN, license_beside

log = logging.getLogger(__name__)
PAGE = Path(__file__).parent / "app.html.j2"
SCRIPT = Path(__file__).parent / "app.js"
# a form that takes longer to come is nobody's, and so is an answer that is not read
UPLOAD_S = 300.0
READ_S = 60.0
# after Ctrl-C, for answers that are being written
CLOSE_S = 2.0
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; "
    "img-src 'self' blob: data:; media-src blob:; connect-src 'self'; form-action 'none'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


Event = dict[str, Any]
"""A line of the answer: `waiting`; a `picture`'s number with a sound or an `error`; or `done`."""


@dataclass
class AppConfig:
    """The model, whom the page answers, and how much of it one client may have."""

    model: str  # a finished run, an exported folder or hub:owner/name
    vocoder: str = ""  # a finished run, a save_pretrained folder or hub:owner/name in place of the model's
    prior: str = ""  # a finished run or exported folder, for a model that attends to tokens of AudioMAE
    sampler: str = ""  # ddim, euler, dpmsolver or unipc in place of the model's
    host: str = operational(
        "127.0.0.1"
    )  # whom it answers: this machine; 0.0.0.0 is everyone, with no password
    port: int = operational(7860)  # 0 takes any free one
    per_minute: int = operational(20)  # requests of one client
    max_upload_mb: int = operational(64)  # of the pictures of one request
    max_megapixels: int = operational(50)  # of one picture
    max_sounds: int = operational(64)  # of one request: pictures times takes
    max_steps: int = operational(200)  # of the sampler
    max_requests: int = operational(16)  # that are open at once, most of them waiting
    threads: int = operational(0)  # of torch; 0 = the cores

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise UserError(f"port={self.port}: give a number from 0 to 65535")
        limits = ("per_minute", "max_upload_mb", "max_megapixels", "max_sounds", "max_steps", "max_requests")
        at_least(self, 1, *limits)
        at_least(self, 0, "threads")


def serve(config: AppConfig, ready: Callable[[str, str], None]) -> None:
    """Opens the model and serves until it is interrupted; then `ready(url, license)` is called once.

    `UserError` for a model that cannot be opened, or a port that is taken.
    """
    torch.set_num_threads(config.threads or os.cpu_count() or 1)
    source = local_copy(config.model)
    # where nothing is there, the error names what was given
    model = str(source) if source.exists() else config.model
    pipeline = open_pipeline(model, vocoder=config.vocoder, sampler=config.sampler, prior=config.prior)
    maker = SoundMaker(pipeline, config.max_megapixels * 1_000_000)
    license = license_of_model(source)
    if not is_loopback(config.host):
        log.warning(
            "host=%s: everyone who reaches this machine can make sounds here; there is no password and no "
            "encryption. Put it behind a proxy that has both, or leave host out",
            config.host,
        )

    async def forever() -> None:
        async with running(config, maker, license) as url:
            ready(url, license)
            await asyncio.Event().wait()

    asyncio.run(forever())


@contextlib.asynccontextmanager
async def running(config: AppConfig, maker: SoundMaker, license: str) -> AsyncIterator[str]:
    """For the block, the page at the URL that is given. `license`: its code, or ""."""
    runner = web.AppRunner(
        Site(config, maker, license).application(), access_log=None, shutdown_timeout=CLOSE_S
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, config.host, config.port)
        try:
            await site.start()
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(
                f"host={config.host} port={config.port}: {reason}; give another one; port=0 takes a free one"
            ) from error
        host = f"[{config.host}]" if ":" in config.host else config.host
        yield f"http://{host}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


class Site:
    """The handlers, and what they share. All run in one event loop, the model in one thread beside it."""

    def __init__(self, config: AppConfig, maker: SoundMaker, license: str):
        self.config = config
        self.maker = maker
        self.limit = RequestLimit(config.per_minute)
        self.turn = asyncio.Lock()
        self.num_open = 0
        self.thread = ThreadPoolExecutor(1, "sounds")
        most_steps = int(min(config.max_steps, maker.max_steps))
        self.bounds = Bounds(config.max_sounds, most_steps, maker.samplers)
        self.page = page_text(config, maker, self.bounds, license)
        self.script = SCRIPT.read_text()

    def application(self) -> web.Application:
        """`GET /`, `GET /app.js`, `POST /sounds`; nothing else, and no path of the disk."""
        application = web.Application(middlewares=[self.same_site])
        application.router.add_get("/", self.show_page)
        application.router.add_get("/app.js", self.show_script)
        application.router.add_post("/sounds", self.make_sounds)
        application.on_response_prepare.append(add_headers)
        return application

    @web.middleware
    async def same_site(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Refuses what other sites, open in the same browser, send here.

        A page of another site can post to this machine, and a name of its own may point here (DNS rebinding).
        """
        host = request.headers.get("Host", "")
        if is_loopback(self.config.host) and not is_loopback(hostname_of(host)):
            return refused(403, "this page answers to 127.0.0.1 and localhost only")
        origin = request.headers.get("Origin", f"http://{host}")
        if origin.partition("://")[2] != host:
            return refused(403, "requests of other sites are refused")
        answer: web.StreamResponse = await handler(request)
        return answer

    async def show_page(self, request: web.Request) -> web.Response:
        return web.Response(text=self.page, content_type="text/html")

    async def show_script(self, request: web.Request) -> web.Response:
        return web.Response(text=self.script, content_type="text/javascript")

    async def make_sounds(self, request: web.Request) -> web.StreamResponse:
        """A line of JSON per event: waiting, a sound, an error of a picture; the last is done."""
        wait_s = self.limit.take(request.remote or "", time.monotonic())
        if wait_s:
            each = f"at most {counted(self.config.per_minute, 'request')} a minute"
            seconds = math.ceil(wait_s)
            return refused(429, f"{each}; try again in {seconds} s", {"Retry-After": str(seconds)})
        if self.num_open >= self.config.max_requests:
            return refused(503, f"{self.num_open} requests are waiting already; try again later")
        self.num_open += 1
        try:
            try:
                async with asyncio.timeout(UPLOAD_S):
                    wish, pictures = await self.read(request)
            except (UserError, ValueError, TimeoutError) as error:
                return refused(400, str(error) or "the upload took too long")
            answer = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
            await answer.prepare(request)
            # whoever has closed the page, or reads nothing, is not told
            with contextlib.suppress(ConnectionError, TimeoutError):
                await self.answer_with(answer, request, wish, pictures)
            return answer
        finally:
            self.num_open -= 1

    async def read(self, request: web.Request) -> tuple[Wish, list[bytes]]:
        """What is asked for, of which pictures. `UserError` or `ValueError` for what cannot be done."""
        config = self.config
        fields, pictures = await read_form(request, config.max_upload_mb * 1_000_000, config.max_sounds)
        wish = self.maker.check(wish_of(fields, self.maker.usual, self.bounds))
        if len(pictures) * wish.takes > config.max_sounds:
            count = f"{counted(len(pictures), 'picture')} with {counted(wish.takes, 'take')} each"
            raise UserError(f"takes={wish.takes}: {count} are more than {config.max_sounds} sounds at once")
        return wish, pictures

    async def answer_with(
        self, answer: web.StreamResponse, request: web.Request, wish: Wish, pictures: list[bytes]
    ) -> None:
        """Writes the events as they happen. `ConnectionError` or `TimeoutError` where nobody reads them."""

        async def tell(event: Event) -> None:
            async with asyncio.timeout(READ_S):
                await answer.write(json.dumps(event).encode() + b"\n")

        if self.num_open > 1:
            await tell({"waiting": self.num_open - 1})
        for number, picture in enumerate(pictures):
            sounds = self.maker.sounds_of(picture, wish)
            while events := await self.next_events(request, sounds):
                for event in events:
                    await tell({"picture": number, **event})
        await tell({"done": True})

    async def next_events(self, request: web.Request, sounds: Iterator[list[HeardTake]]) -> list[Event]:
        """The next sounds of a picture, or why there are none; nothing at its end.

        A batch at a time: of two requests, the second need not wait for all of the first.
        """
        loop = asyncio.get_running_loop()
        async with self.turn:
            if request.transport is None or request.transport.is_closing():
                raise ConnectionError("nobody listens any more")
            try:
                made = await loop.run_in_executor(self.thread, next_of, sounds)
            except (PictureError, BadMelError, UserError) as error:
                return [{"error": str(error)}]
        return [as_event(sound) for sound in made]


def next_of(sounds: Iterator[list[HeardTake]]) -> list[HeardTake]:
    """The next ones, or none at the end: no future can carry a `StopIteration`."""
    return next(sounds, [])


def as_event(sound: HeardTake) -> Event:
    """A sound as JSON holds it."""
    return {
        "take": sound.take,
        "seed": sound.seed,
        "seconds": round(sound.seconds, 3),
        "wav": base64.b64encode(sound.wav).decode(),
        "spectrogram": base64.b64encode(sound.spectrogram).decode(),
    }


def refused(status: int, reason: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """An answer with one line that the page shows."""
    return web.json_response({"error": reason}, status=status, headers=headers)


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """To every answer, errors too: nothing is loaded from elsewhere, framed or kept."""
    response.headers.update(HEADERS)
    response.headers.pop("Server", None)


def hostname_of(host: str) -> str:
    """The name in a Host header, without its port.

    >>> hostname_of("localhost:7860"), hostname_of("[::1]:7860")
    ('localhost', '::1')
    """
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] or host


def is_loopback(host: str) -> bool:
    """Whether a name or an address is this machine's own.

    >>> is_loopback("localhost"), is_loopback("127.0.0.1"), is_loopback("0.0.0.0"), is_loopback("a.example")
    (True, True, False, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def license_of_model(folder: Path) -> str:
    """The code in its model card; "" for a run, which has none yet."""
    code = license_beside([folder]) if (folder / "README.md").is_file() else ""
    return "" if code in UNKNOWN else code


def page_text(config: AppConfig, maker: SoundMaker, bounds: Bounds, license: str) -> str:
    """The page, with the model's usual settings and the limits in it."""
    mel = maker.pipeline.mel
    usual_guidance = maker.pipeline.guidance_for(None)
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(PAGE.read_text()).render(
        name=last_name(config.model),
        duration_s=f"{mel.num_samples / mel.sample_rate_hz:g}",
        sample_rate=f"{mel.sample_rate_hz:,}",
        license=license,
        license_url=url_of(license) if license else "",
        guidance=f"{usual_guidance:g}",
        can_guide=maker.can_guide,
        max_guidance=MAX_GUIDANCE,
        max_seed=MAX_SEED,
        steps=min(maker.usual.steps, bounds.max_steps),
        bounds=bounds,
        sampler=config.sampler,
        max_upload_bytes=config.max_upload_mb * 1_000_000,
    )
