"""A real browser without a window, driven over its DevTools protocol; and a place that scripts report to."""

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests import packages
from tests.client import until

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE_SECONDS = 60.0
WITHOUT_WINDOW = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                  "--disable-extensions", "--disable-background-networking", "--disable-component-update",
                  "--disable-sync", "--mute-audio", "--remote-debugging-port=0")


def find_or_install() -> str | None:
    """The program; with root's rights it is fetched by the package manager if need be."""
    if found := next(filter(None, map(shutil.which, NAMES)), None):
        return found
    packages.install({NAMES[0]: "chromium"})
    return shutil.which(NAMES[0])


@dataclass(frozen=True)
class Page:
    """What the other site serves; an empty content type leaves the browser to guess."""

    text: str
    content_type: str = "text/html"


@dataclass
class Beacon:
    """Another site: it serves pages that were put into it, and notes every request for anything else."""

    pages: dict[str, Page] = field(default_factory=dict)
    hits: list[str] = field(default_factory=list)
    url: str = ""

    async def answer(self, request: web.Request) -> web.Response:
        """A page, or a note."""
        if (page := self.pages.get(request.path)) is not None:
            return web.Response(body=page.text.encode(), headers={"Content-Type": page.content_type})
        if request.path != "/favicon.ico":
            self.hits.append(request.path_qs)
        return web.Response(status=204, headers={"Access-Control-Allow-Origin": "*"})


@asynccontextmanager
async def open_beacon() -> AsyncIterator[Beacon]:
    """Listen on a port of its own: another origin than the service's."""
    beacon = Beacon()
    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", beacon.answer)
    async with TestServer(app) as server:
        beacon.url = str(server.make_url("")).rstrip("/")
        yield beacon


class Browser:
    """One tab of a running browser."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._is_loaded = False
        self._reader = asyncio.create_task(self._read())
        self._number = 0
        self._tab: dict[str, str] = {}

    async def open_tab(self) -> None:
        """To be called first."""
        target = (await self._command("Target.createTarget", url="about:blank"))["targetId"]
        attached = await self._command("Target.attachToTarget", targetId=target, flatten=True)
        self._tab = {"sessionId": attached["sessionId"]}
        await self._command("Page.enable")
        await self._command("Network.enable")

    async def _read(self) -> None:
        async for message in self._socket:
            event = message.json()
            if "id" in event:
                self._answers.pop(event["id"]).set_result(event)
            elif event["method"] == "Page.loadEventFired":
                self._is_loaded = True

    async def _command(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        answer = self._answers[self._number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters, **self._tab})
        found = await asyncio.wait_for(answer, PATIENCE_SECONDS)
        assert "error" not in found, found
        result: dict[str, Any] = found["result"]
        return result

    async def visit(self, url: str, *, token: str = "") -> str:
        """Open an address and wait for all of it; the text of the page, "" for a download."""
        await self._command("Network.setExtraHTTPHeaders",
                            headers={"Authorization": f"Bearer {token}"} if token else {})
        self._is_loaded = False
        went = await self._command("Page.navigate", url=url)
        if "errorText" in went:
            assert went["errorText"] == "net::ERR_ABORTED", (url, went)  # a download
            return ""
        await until(lambda: self._is_loaded, seconds=PATIENCE_SECONDS)
        shown = await self._command("Runtime.evaluate", expression="document.documentElement.textContent")
        return str(shown["result"].get("value", ""))

    async def close(self) -> None:
        """Let go of it."""
        self._reader.cancel()
        await self._socket.close()


@asynccontextmanager
async def open_browser(program: str, folder: Path) -> AsyncIterator[Browser]:
    """Start a browser that knows nothing, with its files in the folder."""
    port_file = folder / "DevToolsActivePort"
    with (folder / "browser.out").open("wb") as output:
        process = subprocess.Popen([program, *WITHOUT_WINDOW, f"--user-data-dir={folder}", "about:blank"],
                                   stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        await until(lambda: port_file.exists() and port_file.read_text().count("\n") >= 1, seconds=PATIENCE_SECONDS)
        port, path = port_file.read_text().split()
        async with aiohttp.ClientSession() as session, session.ws_connect(
                f"ws://127.0.0.1:{port}{path}", max_msg_size=0) as socket:
            browser = Browser(socket)
            try:
                await browser.open_tab()
                yield browser
            finally:
                await browser.close()
    finally:
        process.kill()
        process.wait()
