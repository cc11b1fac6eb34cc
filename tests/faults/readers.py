"""Clients that look while others write and things break: what was acknowledged is there, whatever way one looks.

A file that a change is under way or in doubt for may be in either state and is not judged.
"""

import asyncio
import hashlib
import io
import random
import zipfile
from collections.abc import Awaitable, Callable
from urllib.parse import quote, urlsplit

from tests.client import Api, Reply
from tests.faults.clients import NO_ANSWER, PAUSE_SECONDS, REFUSALS, Account


class Unanswered(Exception):
    """There was no answer, or one that promises nothing."""


class Reader:
    """Looks again and again; `wrong` says what was not as it had to be."""

    def __init__(self, account: Account, seed: int) -> None:
        self._account = account
        self._ledger = account.ledger
        self._random = random.Random(seed)
        self._ways: list[Callable[[str], Awaitable[None]]] = [
            self._whole, self._whole, self._pieces, self._list, self._through_link, self._signed, self._archive]
        self.looks = 0
        self.unanswered = 0
        self.wrong: list[str] = []

    async def run(self, stop: asyncio.Event, *, pause_seconds: float = 0) -> None:
        """Until it is told to stop."""
        while not stop.is_set():
            paths = self._ledger.free_paths()
            if paths:
                try:
                    await self._random.choice(self._ways)(self._random.choice(paths))
                    self.looks += 1
                except Unanswered:
                    self.unanswered += 1
                    await asyncio.sleep(PAUSE_SECONDS)
            await asyncio.sleep(pause_seconds or PAUSE_SECONDS)

    async def _ask(self, api: Api, method: str, address: str, **more: object) -> Reply:
        try:
            reply = await api.call(method, address, **more)  # type: ignore[arg-type]
        except NO_ANSWER:
            raise Unanswered from None
        if b"internal_error" in reply.body:
            self.wrong.append(f"{method} {address}: {reply.status} {reply.body[:200]!r}")
        if reply.status >= 500 and b"content_unavailable" not in reply.body or reply.status in REFUSALS:
            raise Unanswered
        return reply

    def _states(self, folder: str = "/") -> dict[str, tuple[str | None, int]]:
        """What is known for certain, and how often it had been touched."""
        busy = self._ledger.busy_paths()
        return {path: (digest, self._ledger.touched[path]) for path, digest in self._ledger.known.items()
                if path not in busy and path.startswith(folder)}

    def _compare(self, way: str, before: dict[str, tuple[str | None, int]], found: dict[str, str]) -> None:
        for path, (digest, touched) in before.items():
            if self._ledger.touched[path] == touched and found.get(path) != digest:
                self.wrong.append(f"{way} {path}: acknowledged {digest}, found {found.get(path)}")

    def _judge(self, way: str, path: str, before: tuple[str | None, int], status: int, body: bytes) -> None:
        digest = hashlib.sha256(body).hexdigest() if status in (200, 206) else f"status {status} {body[:200]!r}"
        self._compare(way, {path: before}, {path: digest})

    def _state(self, path: str) -> tuple[str | None, int]:
        return self._ledger.known[path], self._ledger.touched[path]

    async def _whole(self, path: str) -> None:
        before = self._state(path)
        reply = await self._ask(self._account.api, "GET", f"/file/download?path={quote(path)}")
        self._judge("download", path, before, reply.status, reply.body)

    async def _pieces(self, path: str) -> None:
        """A download that is broken off and gone on with: the pieces are of one version."""
        before, address = self._state(path), f"/file/download?path={quote(path)}"
        first = await self._ask(self._account.api, "GET", address, headers={"Range": "bytes=0-999"})
        if first.status == 416:  # it is empty
            self._judge("pieces", path, before, 200, b"")
            return
        if first.status != 206:
            self._judge("pieces", path, before, first.status, first.body)
            return
        total = int(first.headers["Content-Range"].rpartition("/")[2])
        body = first.body
        if total > len(body):
            rest = await self._ask(self._account.api, "GET", address, headers={
                "Range": f"bytes={len(body)}-", "If-Range": first.headers["ETag"]})
            body = body + rest.body if rest.status == 206 else rest.body
        if len(body) != total and self._state(path) == before:
            self.wrong.append(f"pieces {path}: {len(body)} of {total} bytes")
        self._judge("pieces", path, before, 206, body)

    async def _list(self, path: str) -> None:
        before = self._states()
        reply = await self._ask(self._account.api, "GET", "/file/list")
        if reply.status != 200:
            self.wrong.append(f"list: {reply.status} {reply.body[:200]!r}")
            return
        self._compare("list", before, {file["path"]: file["sha256"] for file in reply.json["files"]})

    async def _through_link(self, path: str) -> None:
        before = self._state(path)
        made = await self._ask(self._account.api, "POST", "/file/link", json={"path": path})
        if made.status != 201:
            self._judge("link", path, before, made.status, made.body)
            return
        stranger = Api(self._account.api.session, self._account.api.stack)
        reply = await self._ask(stranger, "GET", str(urlsplit(made.json["url"]).path))
        self._judge("link", path, before, reply.status, reply.body)
        await self._ask(self._account.api, "DELETE", f"/file/link/{made.json['id']}")

    async def _signed(self, path: str) -> None:
        before = self._state(path)
        made = await self._ask(self._account.api, "POST", "/file/sign", json={"path": path, "expires_in": 600})
        if made.status != 201:
            self._judge("signed", path, before, made.status, made.body)
            return
        parts = urlsplit(made.json["url"])
        stranger = Api(self._account.api.session, self._account.api.stack)
        reply = await self._ask(stranger, "GET", f"{parts.path}?{parts.query}")
        self._judge("signed", path, before, reply.status, reply.body)

    async def _archive(self, path: str) -> None:
        """The folder that the file is in, as a zip."""
        folder = path.rpartition("/")[0]
        before = self._states(f"{folder}/")
        reply = await self._ask(self._account.api, "GET", f"/file/archive?path={quote(folder)}")
        if reply.status != 200:
            self._compare(f"archive {reply.status}", before, {})
            return
        base = folder.rpartition("/")[0]
        with zipfile.ZipFile(io.BytesIO(reply.body)) as archive:  # it compares the CRC of what is read
            found = {f"{base}/{name}": hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()
                     if not name.endswith("/")}
        self._compare("archive", before, found)
