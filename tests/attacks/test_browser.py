"""Attack 5: what is stored is a page, an image or a name that runs a script.  In a real browser none of it runs.

Each payload reports to another site when it runs; that it would is shown by opening it there, but for `NOWHERE`.
"""

import base64
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import aiohttp
import pytest

from tests.attacks.browser import Beacon, Browser, Page, find_or_install, open_beacon, open_browser
from tests.client import Api, new_account, until
from tests.stack import Stack


@dataclass(frozen=True)
class Payload:
    """A file whose content reports `{url}`."""

    name: str
    content_type: str
    text: str


SCRIPT = "new Image().src='{url}'"
PDF = """%PDF-1.7
1 0 obj <</Type /Catalog /Pages 2 0 R /OpenAction <</S /JavaScript /JS (this.submitForm('{url}'))>>>> endobj
2 0 obj <</Type /Pages /Kids [3 0 R] /Count 1>> endobj
3 0 obj <</Type /Page /Parent 2 0 R /MediaBox [0 0 99 99]>> endobj
trailer <</Root 1 0 R>>
%%EOF"""
PAYLOADS = [
    Payload("page.html", "text/html", f"<!doctype html><p>x<script>{SCRIPT}</script>"),
    Payload("handler.html", "text/html", f'<body onload="{SCRIPT}"><img src=x onerror="{SCRIPT}">'),
    Payload("page.xhtml", "application/xhtml+xml",
            f'<html xmlns="http://www.w3.org/1999/xhtml"><body><script>{SCRIPT}</script></body></html>'),
    Payload("image.svg", "image/svg+xml",
            f'<svg xmlns="http://www.w3.org/2000/svg" onload="{SCRIPT}"><script>{SCRIPT}</script></svg>'),
    Payload("data.xml", "text/xml",
            f'<?xml version="1.0"?><a><b xmlns="http://www.w3.org/1999/xhtml"><script>{SCRIPT}</script></b></a>'),
    Payload("no ending", "application/octet-stream", f"<html><script>{SCRIPT}</script></html>"),
    Payload("plain.txt", "text/plain", f"<html><script>{SCRIPT}</script></html>"),
    Payload("picture.gif", "image/gif", f"GIF89a=1;{SCRIPT};/*<html><script>{SCRIPT}</script>*/"),
    Payload("script.js", "text/javascript", SCRIPT),
    Payload("parts", "multipart/x-mixed-replace;boundary=b",
            f"--b\r\nContent-Type: text/html\r\n\r\n<script>{SCRIPT}</script>\r\n--b--"),
    Payload("liar.png", "image/png", f"<html><script>{SCRIPT}</script></html>"),
    Payload("form.pdf", "application/pdf", PDF),
]
# How the other site, which is careless, serves them so that they run: as what they are, but for these.
UNTYPED = {"no ending", "plain.txt", "picture.gif", "liar.png"}  # the browser takes what it finds in them
AS_SCRIPT = {"script.js", "picture.gif"}  # from a page
# And what reports nothing in this browser wherever it is served; in others it may.
NOWHERE = {"parts", "form.pdf"}


@pytest.fixture
async def beacon() -> AsyncIterator[Beacon]:
    """The other site."""
    async with open_beacon() as opened:
        yield opened


@pytest.fixture
async def browser(tmp_path: Path) -> AsyncIterator[Browser]:
    """Chromium."""
    program = find_or_install()
    if program is None:
        assert os.geteuid() != 0, "root can install Chromium: this attack has to be made somewhere"
        pytest.skip("Chromium is not installed here, and cannot be: what a browser does is not tested")
    async with open_browser(program, tmp_path) as opened:
        yield opened


async def settle(browser: Browser, beacon: Beacon) -> None:
    """Every report of what was opened before has come when one that is made now has come."""
    beacon.pages["/last"] = Page(f"<script>{SCRIPT.format(url='/seen')}</script>")
    await browser.visit(f"{beacon.url}/last")
    await until(lambda: "/seen" in beacon.hits)
    beacon.hits.remove("/seen")


async def store_all(api: Api, beacon: Beacon) -> list[str]:
    """Every payload in a folder; their paths."""
    paths = []
    for payload in PAYLOADS:
        path = f"/bad/{payload.name}"
        await api.put(path, payload.text.format(url=f"{beacon.url}/{payload.name}").encode(),
                      headers={"Content-Type": payload.content_type})
        paths.append(path)
    return paths


async def link_to(api: Api, path: str) -> str:
    """A public link."""
    made = await api.call("POST", "/file/link", json={"path": path}, expect=201)
    return str(made.json["url"])


async def test_payloads_do_run_where_a_careless_site_serves_them(browser: Browser, beacon: Beacon) -> None:
    """Or the tests below would prove nothing."""
    for payload in PAYLOADS:
        home, reported = quote(f"/home/{payload.name}"), quote(f"/{payload.name}")
        beacon.pages[f"/home/{payload.name}"] = Page(payload.text.format(url=f"{beacon.url}/{payload.name}"),
                                                     "" if payload.name in UNTYPED else payload.content_type)
        beacon.pages["/page"] = Page(f'<script src="{home}"></script>')
        await browser.visit(f"{beacon.url}{'/page' if payload.name in AS_SCRIPT else home}")
        if payload.name in NOWHERE:
            await settle(browser, beacon)
            assert reported not in beacon.hits
        else:
            await until(lambda: reported in beacon.hits)


async def test_no_stored_file_runs_a_script_at_any_door(
        nginx_stack: Stack, session: aiohttp.ClientSession, browser: Browser, beacon: Beacon) -> None:
    """Opened as a download with a token, as a link, as what a link leads to, at a signed address."""
    api = await new_account(session, nginx_stack)
    folder = await link_to(api, "/") if await store_all(api, beacon) else ""
    for payload in PAYLOADS:
        path = f"/bad/{payload.name}"
        encoded = path.replace(" ", "%20")
        assert await browser.visit(f"{nginx_stack.url}/file/download?path={encoded}", token=api.token) == ""
        link = await link_to(api, path)
        assert payload.name in await browser.visit(link)
        assert await browser.visit(f"{link}?download=1") == ""
        assert await browser.visit(f"{folder}?path={encoded[1:]}&download=1") == ""
        signed = await api.call("POST", "/file/sign", json={"path": path, "expires_in": 600}, expect=201)
        assert await browser.visit(signed.json["url"]) == ""
    await settle(browser, beacon)
    assert beacon.hits == []


async def test_another_site_can_make_nothing_of_what_is_here(
        nginx_stack: Stack, session: aiohttp.ClientSession, browser: Browser, beacon: Beacon) -> None:
    """As a script, a style, an image, a frame or an object of its own page; nor of the documentation."""
    api = await new_account(session, nginx_stack)
    for path in await store_all(api, beacon):
        link = await link_to(api, path)
        signed = await api.call("POST", "/file/sign", json={"path": path, "expires_in": 600}, expect=201)
        beacon.pages["/evil"] = Page("<p>evil" + "".join(
            f'<script src="{url}"></script><link rel=stylesheet href="{url}"><img src="{url}">'
            f'<iframe src="{url}"></iframe><object data="{url}"></object><embed src="{url}">'
            for url in (f"{link}?download=1", link, str(signed.json["url"]))))
        assert await browser.visit(f"{beacon.url}/evil") == "evil"
    for query in ("url", "configUrl", "urls", "oauth2RedirectUrl", "validatorUrl"):  # of the page of the documentation
        await browser.visit(f"{nginx_stack.url}/docs?{query}={beacon.url}/openapi.json#/{beacon.url}/x")
    await settle(browser, beacon)
    assert beacon.hits == []


def _as_a_name(beacon: Beacon, form: str) -> str:
    """A name that reports `/name`; it must not have a slash in it."""
    for padding in ("name", "name?", "name??"):
        encoded = base64.b64encode(f"{beacon.url}/{padding}".encode()).decode()
        if "/" not in encoded:
            return form.format(f"new Image().src=atob('{encoded}')")
    raise AssertionError("every encoding has a slash")


FORMS = ("<img src=x onerror={}>", "\"><img src=x onerror=\"{}\">.txt", "'><svg onload=\"{}\">", "<script>{}<\\script>",
         "<\N{FRACTION SLASH}title><img src=x onerror={}>", "{{{{constructor.constructor('{0}')()}}}}", "javascript:{}")


async def test_names_are_text_on_every_page(
        nginx_stack: Stack, session: aiohttp.ClientSession, browser: Browser, beacon: Beacon) -> None:
    """On the page of a file, of a folder with it, of a folder of that name."""
    api = await new_account(session, nginx_stack)
    for form in FORMS:
        name = _as_a_name(beacon, form)
        await api.put(f"/{name}/{name}", b"x")
        for url in (await link_to(api, "/"), await link_to(api, f"/{name}"), await link_to(api, f"/{name}/{name}")):
            assert name in await browser.visit(url)
    await settle(browser, beacon)
    assert beacon.hits == []
