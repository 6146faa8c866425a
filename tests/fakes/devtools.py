"""A headless Chromium that a test drives as a person would: files chosen, buttons pressed, downloads kept.

    async with open_browser(folder) as page:
        await page.show("http://127.0.0.1:7860", width_px=390)
        await page.choose("#files", [Path("a.jpg")])
        await page.press("#go")
        await page.wait_for("document.querySelectorAll('audio').length == 2")
    page.requests                                   # addresses of all that the page asked for

Speaks Chromium's DevTools protocol. Skips the test where no Chromium is installed (apt-get install chromium).
"""

import asyncio
import base64
import contextlib
import itertools
import os
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE_S = 60.0
LOOK_EVERY_S = 0.05


class Page:
    """One tab. `requests`: addresses asked for; `errors`: what its scripts raised, or the browser refused;
    `failures`: what could not be loaded.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, downloads: Path):
        self.socket = socket
        self.downloads = downloads
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.failures: list[str] = []
        self.session = ""
        self.target = ""
        self.numbers = itertools.count(1)
        self.answers: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def listen(self) -> None:
        """Takes in what the browser says, until it ends."""
        async for message in self.socket:
            said = message.json()
            if "id" in said:
                self.answers.pop(said["id"]).set_result(said)
            elif said["method"] == "Network.requestWillBeSent":
                self.requests.append(said["params"]["request"]["url"])
            elif said["method"] == "Runtime.exceptionThrown":
                self.errors.append(str(said["params"]["exceptionDetails"]))
            elif said["method"] == "Log.entryAdded" and said["params"]["entry"]["level"] == "error":
                entry = said["params"]["entry"]
                (self.errors if entry["source"] == "security" else self.failures).append(entry["text"])

    async def tell(self, method: str, **params: Any) -> Any:
        """A command of the protocol; its result."""
        number = next(self.numbers)
        self.answers[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": params}
        await self.socket.send_json(message | ({"sessionId": self.session} if self.session else {}))
        answer = await asyncio.wait_for(self.answers[number], PATIENCE_S)
        assert "error" not in answer, (method, answer)
        return answer["result"]

    async def show(self, url: str, width_px: int, is_dark: bool = False, height_px: int = 900) -> None:
        """Opens an address in a window of that size."""
        await self.resize(width_px, is_dark, height_px)
        await self.tell("Page.navigate", url=url)
        await self.wait_for(f"location.href.startsWith({url!r}) && document.readyState == 'complete'")

    async def resize(self, width_px: int, is_dark: bool = False, height_px: int = 900) -> None:
        size = {"width": width_px, "height": height_px, "deviceScaleFactor": 1, "mobile": False}
        await self.tell("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        await self.tell("Emulation.setEmulatedMedia", features=[scheme])

    async def run(self, script: str) -> Any:
        """The value of a script, awaited."""
        found = await self.tell(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def wait_for(self, condition: str) -> None:
        """Until the script is true."""
        end = time.monotonic() + PATIENCE_S
        while not await self.run(f"Boolean({condition})"):
            if time.monotonic() > end:
                raise AssertionError(
                    f"never: {condition}; the page: {await self.run('document.body.innerText')}"
                )
            await asyncio.sleep(LOOK_EVERY_S)

    async def choose(self, selector: str, files: list[Path]) -> None:
        """Gives files to an input, as its dialog would."""
        root = (await self.tell("DOM.getDocument"))["root"]["nodeId"]
        found = await self.tell("DOM.querySelector", nodeId=root, selector=selector)
        await self.tell("DOM.setFileInputFiles", files=[str(file) for file in files], nodeId=found["nodeId"])

    async def drop(self, selector: str, files: list[Path]) -> None:
        """Drags files or folders over an element, and lets go."""
        x, y = await self._middle(selector)
        data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            await self.tell("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    async def press(self, selector: str) -> None:
        """A click of the mouse in the middle of an element."""
        x, y = await self._middle(selector)
        for kind in ("mousePressed", "mouseReleased"):
            await self.tell("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    async def _middle(self, selector: str) -> list[float]:
        script = f"""(() => {{ const one = document.querySelector({selector!r});
            one.scrollIntoView({{block: "center"}}); const box = one.getBoundingClientRect();
            return [box.left + box.width / 2, box.top + box.height / 2]; }})()"""
        middle: list[float] = await self.run(script)
        return middle

    async def picture(self, path: Path) -> None:
        """A screenshot of the whole page."""
        taken = await self.tell("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(taken["data"]))


@contextlib.asynccontextmanager
async def open_browser(folder: Path) -> AsyncIterator[Page]:
    """A tab of a browser of its own, which keeps its profile and downloads in `folder`; ends with the block."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("needs a Chromium")
    profile = folder / "profile"
    downloads = folder / "downloads"
    downloads.mkdir(parents=True)
    command = [
        browser,
        "--headless",
        "--disable-gpu",
        f"--user-data-dir={profile}",
        "--remote-debugging-port=0",
    ]
    # Chromium refuses its sandbox to root
    command += ["--no-sandbox"] if os.geteuid() == 0 else []
    silent = {"stdout": asyncio.subprocess.DEVNULL, "stderr": asyncio.subprocess.DEVNULL}
    process = await asyncio.create_subprocess_exec(*command, "about:blank", **silent)
    try:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(await _address(profile), max_msg_size=0) as socket,
        ):
            page = Page(socket, downloads)
            listening = asyncio.create_task(page.listen())
            await _attach(page)
            yield page
            await page.tell("Target.closeTarget", targetId=page.target)
            listening.cancel()
    finally:
        process.terminate()
        await process.wait()


async def _address(profile: Path) -> str:
    """Where the browser listens, which it writes down when it does."""
    file = profile / "DevToolsActivePort"
    end = time.monotonic() + PATIENCE_S
    while not (file.exists() and file.read_text().count("\n") == 1):
        assert time.monotonic() < end, "the browser does not start"
        await asyncio.sleep(LOOK_EVERY_S)
    port, path = file.read_text().split("\n")
    return f"ws://127.0.0.1:{port}{path}"


async def _attach(page: Page) -> None:
    page.target = (await page.tell("Target.createTarget", url="about:blank"))["targetId"]
    behaviour = {"behavior": "allow", "downloadPath": str(page.downloads)}
    await page.tell("Browser.setDownloadBehavior", **behaviour)
    attached = await page.tell("Target.attachToTarget", targetId=page.target, flatten=True)
    page.session = attached["sessionId"]
    for domain in ("Page", "Runtime", "Network", "DOM", "Log"):
        await page.tell(f"{domain}.enable")
