"""A client of the API for tests: one account and its token."""

import asyncio
import inspect
import os
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any
from urllib.parse import quote

import aiohttp
import orjson
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from tests.stack import Stack

PASSWORD = "correct horse battery staple"
PATIENCE_SECONDS = 20.0


@dataclass(frozen=True)
class Reply:
    """An answer, read to its end."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return orjson.loads(self.body)

    @property
    def code(self) -> str:
        """The code of a problem; checks its shape (RFC 9457)."""
        assert self.headers["Content-Type"].startswith("application/problem+json"), self.body
        problem = self.json
        assert {"type", "title", "status", "detail", "code", "request_id"} <= set(problem)
        assert problem["status"] == self.status
        assert problem["request_id"] == self.headers["X-Request-Id"]
        return str(problem["code"])


class Api:
    """Requests to the service, with or without an account."""

    def __init__(self, session: aiohttp.ClientSession, stack: Stack, token: str = "") -> None:
        self.session = session
        self.stack = stack
        self.token = token
        self.username = ""
        self.refresh_token = ""

    async def call(self, method: str, path: str, *, expect: int | None = None, headers: dict[str, str] | None = None,
                   **more: Any) -> Reply:
        """One request; `expect` is the status it has to have."""
        sent = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        url = URL(self.stack.url + path, encoded=True)
        if isinstance(more.get("data"), bytes):
            more["data"] = BytesIO(more["data"])  # aiohttp warns of large bytes
        async with self.session.request(method, url, headers={**sent, **(headers or {})}, **more) as response:
            reply = Reply(response.status, response.headers, await response.read())
        assert expect is None or reply.status == expect, (reply.status, reply.body[:500])
        return reply

    async def put(self, path: str, data: Any = b"", *, expect: int | None = 201, **more: Any) -> Reply:
        """Upload plain bytes to a path, which is encoded here."""
        return await self.call("PUT", f"/file?path={quote(path)}", data=data, expect=expect, **more)

    async def post(self, data: bytes = b"", *, filename: str = "file.bin", expect: int | None = 201,
                   content_type: str | None = None, query: str = "", **fields: str) -> Reply:
        """Upload a form with text fields and one file."""
        form = aiohttp.FormData(quote_fields=False)
        for name, value in fields.items():
            form.add_field(name, value)
        form.add_field("upload" if "file" in fields else "file", BytesIO(data), filename=filename,
                       content_type=content_type)
        return await self.call("POST", f"/file{query}", data=form, expect=expect)

    async def get(self, path: str, *, expect: int | None = 200, **more: Any) -> Reply:
        """Download by path or id."""
        return await self.call("GET", f"/file/download?path={quote(path)}", expect=expect, **more)

    async def info(self, path: str, *, expect: int | None = 200) -> Any:
        """What there is at a path."""
        return (await self.call("GET", f"/file/info?path={quote(path)}", expect=expect)).json

    async def delete(self, path: str, *, permanent: bool = False, expect: int | None = 204, **more: Any) -> Reply:
        """Delete: to the trash, or for good."""
        return await self.call("DELETE", f"/file?path={quote(path)}{'&permanent=true' * permanent}", expect=expect,
                               **more)

    async def list(self) -> Any:
        """All files."""
        return (await self.call("GET", "/file/list", expect=200)).json["files"]

    async def usage(self) -> Any:
        """What the account holds."""
        return (await self.call("GET", "/file/usage_memory", expect=200)).json


async def new_account(session: aiohttp.ClientSession, stack: Stack) -> Api:
    """A fresh account, logged in."""
    api = Api(session, stack)
    api.username = f"user-{uuid.uuid4().hex[:12]}"
    await api.call("POST", "/auth/register", json={"username": api.username, "password": PASSWORD}, expect=201)
    tokens = (await api.call("POST", "/auth/jwt/login", data={"username": api.username, "password": PASSWORD},
                             expect=200)).json
    api.token, api.refresh_token = tokens["access_token"], tokens["refresh_token"]
    return api


async def until(is_so: Callable[[], bool | Awaitable[bool]], *, seconds: float = PATIENCE_SECONDS) -> None:
    """Ask again and again; fail when the time is up."""
    deadline = time.monotonic() + seconds
    while True:
        answer = is_so()
        if await answer if inspect.isawaitable(answer) else answer:
            return
        assert time.monotonic() < deadline, "in vain"
        await asyncio.sleep(0.02)


def files_on_disk(stack: Stack) -> set[str]:
    """Every file of bytes, placed or on its way."""
    blobs = stack.root / "blobs"  # has one level of folders, which are many
    found = {f"blobs/{folder}/{name}" for folder in os.listdir(blobs) for name in os.listdir(blobs / folder)}
    return found.union(os.path.relpath(os.path.join(folder, name), stack.root) for top in ("staging", "spool")
                       for folder, _, names in os.walk(stack.root / top) for name in names)


def is_tidy(stack: Stack) -> bool:
    """Whether nothing is on its way; nginx removes a spooled body a moment after the answer."""
    return not any(name.startswith("staging/") or "/body/" in name for name in files_on_disk(stack))


@asynccontextmanager
async def nothing_stored(api: Api) -> AsyncIterator[None]:
    """What happens inside leaves neither a file of the account nor bytes on the disk."""
    await until(lambda: is_tidy(api.stack))
    on_disk, listed, usage = files_on_disk(api.stack), await api.list(), await api.usage()
    yield
    assert await api.list() == listed
    assert await api.usage() == usage
    await until(lambda: files_on_disk(api.stack) == on_disk)


async def converse(stack: Stack, *turns: tuple[bytes, str], is_head: bool = False) -> Reply:
    """Speak HTTP by hand: send each piece, then wait until the text has come back; the final answer.

    An empty text does not wait.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", stack.port)
    received = b""
    try:
        for piece, awaited in turns:
            writer.write(piece)
            await writer.drain()
            while awaited.encode() not in received:
                received += await _read(reader, received)
        while (reply := _parse_answer(received, is_head)) is None:
            received += await _read(reader, received)
    finally:
        writer.close()
    return reply


async def _read(reader: asyncio.StreamReader, before: bytes) -> bytes:
    piece = await asyncio.wait_for(reader.read(2**16), PATIENCE_SECONDS)
    assert piece, f"the connection was closed after {before!r}"
    return piece


def _parse_answer(received: bytes, is_head: bool) -> Reply | None:
    """The final answer, which has a Content-Length; None if there is more to come."""
    head, end, body = received.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n").partition(b"\r\n\r\n")
    if not end:
        return None
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = CIMultiDict((name, value.strip()) for name, _, value in (line.partition(":") for line in lines))
    if not is_head and len(body) < int(headers["Content-Length"]):
        return None
    return Reply(int(status.split()[1]), CIMultiDictProxy(headers), body)
