"""A headless Chromium that tests drive over its DevTools protocol; real, not a fake.

async with browser(folder) as chromium:
    page = await chromium.open(url, width=1280, height=900, dark=False)
    title = await page.evaluate("document.title")
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
START_S_MAX = 30.0
MESSAGE_BYTES_MAX = 64 << 20
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--mute-audio"),
    *("--no-first-run", "--disable-extensions", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--remote-debugging-port=0"),
)
_MARK = "DevTools listening on "


class Page:
    """One tab. `said`: what it wrote to the console, and its errors."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session
        self.said: list[str] = []

    async def call(self, method: str, **parameters: Any) -> Any:
        return await self._browser.call(method, self._session, **parameters)

    async def look(self, *, width: int, height: int, dark: bool) -> None:
        """A window of that size, in that colour scheme."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        found = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    async def until(self, expression: str, *, timeout_s: float = 20.0) -> Any:
        """Wait until it is true; its value."""
        async with asyncio.timeout(timeout_s):
            while True:
                if found := await self.evaluate(expression):
                    return found
                await asyncio.sleep(0.05)

    async def picture(self) -> bytes:
        """A PNG of the window."""
        found = await self.call("Page.captureScreenshot", format="png")
        return base64.b64decode(found["data"])

    def hear(self, method: str, parameters: Any) -> None:
        if method == "Runtime.exceptionThrown":
            self.said.append(str(parameters["exceptionDetails"]))
        elif method == "Log.entryAdded":
            entry = parameters["entry"]
            self.said.append(f"{entry['level']}: {entry['text']} {entry.get('url', '')}")
        elif method == "Runtime.consoleAPICalled":
            self.said.append(f"{parameters['type']}: {parameters['args']}")


class Browser:
    """Requests and events over one web socket."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._pages: dict[str, Page] = {}

    async def open(self, url: str, *, width: int, height: int, dark: bool = False) -> Page:
        """A new tab at `url`, once it is loaded."""
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )
        page = self._pages[attached["sessionId"]] = Page(self, attached["sessionId"])
        for domain in ("Page", "Runtime", "Log"):
            await page.call(f"{domain}.enable")
        await page.look(width=width, height=height, dark=dark)
        await page.call("Page.navigate", url=url)
        await page.until("location.href != 'about:blank' && document.readyState == 'complete'")
        return page

    async def call(self, method: str, session: str | None = None, **parameters: Any) -> Any:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json(message)
        return await asyncio.wait_for(future, START_S_MAX)

    async def read(self) -> None:
        """Take in what comes until the socket closes."""
        async for message in self._socket:
            found = message.json()
            if "method" in found:
                page = self._pages.get(found.get("sessionId", ""))
                if page is not None:
                    page.hear(found["method"], found["params"])
                continue
            future = self._waiting.pop(found["id"])
            if "error" in found:
                future.set_exception(RuntimeError(str(found["error"])))
            elif not future.done():
                future.set_result(found["result"])


@contextlib.asynccontextmanager
async def browser(folder: Path) -> AsyncIterator[Browser]:
    """A fresh Chromium with its profile in `folder`; skips the test where there is none."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"none of {', '.join(NAMES)} is on PATH (Debian: package chromium)")
    process = await asyncio.create_subprocess_exec(
        program,
        *FLAGS,
        f"--user-data-dir={folder}",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        url = await asyncio.wait_for(_address(process), START_S_MAX)
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(url, max_msg_size=MESSAGE_BYTES_MAX) as socket,
        ):
            found = Browser(socket)
            reader = asyncio.create_task(found.read())
            drain = asyncio.create_task(_drain(process))
            try:
                yield found
            finally:
                for task in (reader, drain):
                    task.cancel()
                await asyncio.gather(reader, drain, return_exceptions=True)
    finally:
        with contextlib.suppress(ProcessLookupError):  # with its helpers
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def _address(process: asyncio.subprocess.Process) -> str:
    assert process.stderr is not None
    seen = []
    async for line in process.stderr:
        text = line.decode(errors="replace").strip()
        seen.append(text)
        if text.startswith(_MARK):
            return text.removeprefix(_MARK)
    raise RuntimeError(f"chromium ended: {seen[-5:]}")


async def _drain(process: asyncio.subprocess.Process) -> None:
    assert process.stderr is not None
    async for _ in process.stderr:
        pass
