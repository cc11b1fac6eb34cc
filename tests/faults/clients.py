"""Clients that keep books: each works on files of its own, one change after the other, until it is told to stop.

What a reader must find is known for every file that nobody is changing: `Reader` looks, in all the ways there are.
"""

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from io import BytesIO
from typing import Any
from urllib.parse import quote

import aiohttp

from tests.client import Api, Reply, new_account
from tests.faults.ledger import Ledger, State, body_of, digest_of
from tests.stack import Stack

ANSWER_SECONDS = 90.0
KEYED_TRIES = 100
PAUSE_SECONDS = 0.05  # after an error, so that a service that is down is not asked all the time
SIZES = (0, 1, 100, 4096, 20_000, 70_000, 300_000, 1_500_000)  # through memory, through the spool, more than one piece
NO_ANSWER = (aiohttp.ClientError, asyncio.TimeoutError, OSError)
# they mean that nothing was done, and may come while something is wrong
REFUSALS = (429, 507)


@asynccontextmanager
async def client_session() -> AsyncIterator[aiohttp.ClientSession]:
    """A connection for each request, and each request sent once."""
    async with aiohttp.ClientSession(
            cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False, timeout=aiohttp.ClientTimeout(ANSWER_SECONDS),
            connector=aiohttp.TCPConnector(force_close=True, limit=0)) as session:
        session._retry_connection = False  # aiohttp sends PUT and DELETE again when there is no answer
        yield session


class Account:
    """An account, its books, and how a change is asked for."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.ledger = Ledger()

    @classmethod
    async def open(cls, session: aiohttp.ClientSession, stack: Stack) -> "Account":
        """A new one."""
        return cls(await new_account(session, stack))

    async def change(self, effect: State, method: str, address: str, **more: Any) -> Reply | None:
        """Ask for a change and write down what came of it; None if there was no answer.

        AssertionError for a 500: no fault from outside makes a mistake of the service right.
        """
        number = self.ledger.begin(effect)
        self.ledger.note(effect, f"{method} {address}")
        try:
            reply = await self.api.call(method, address, **more)
        except aiohttp.ClientConnectorError:
            self.ledger.forget(number)
            self.ledger.note(effect, "not sent")
            return None
        except NO_ANSWER as error:
            self.ledger.note(effect, repr(error))
            return None
        self.ledger.note(effect, f"{reply.status} {reply.headers.get('X-Request-Id')}")
        self._check(reply, f"{method} {address}")
        if 200 <= reply.status < 300:
            self.ledger.acknowledge(number)
        elif reply.status in REFUSALS or reply.status < 500:
            self.ledger.refuse(number, f"{method} {address}: {reply.status} {reply.body[:300]!r}")
        return reply

    def _check(self, reply: Reply, what: str) -> None:
        assert reply.status != 500 or self.api.stack.is_mistaken, f"{what}: 500 {reply.body[:300]!r}"

    async def put(self, path: str, body: bytes) -> Reply | None:
        """Store bytes."""
        return await self.change({path: digest_of(body)}, "PUT", f"/file?path={quote(path)}", data=body)

    async def put_surely(self, path: str, body: bytes) -> Reply | None:
        """Store bytes under a key, sent again until there is a clear answer or the patience is over."""
        headers = {"Idempotency-Key": f'"{uuid.uuid4()}"'}
        number = self.ledger.begin({path: digest_of(body)})
        self.ledger.note([path], f"PUT {path} with a key")
        reply = None
        for _ in range(KEYED_TRIES):
            try:
                reply = await self.api.call("PUT", f"/file?path={quote(path)}", data=body, headers=headers)
            except NO_ANSWER as error:
                self.ledger.tries_in_doubt += not isinstance(error, aiohttp.ClientConnectorError)
                self.ledger.note([path], repr(error))
            else:
                self.ledger.tries_in_doubt += reply.status >= 500 and reply.status not in REFUSALS
                self.ledger.note([path], f"{reply.status} {reply.headers.get('X-Request-Id')}")
                self._check(reply, f"PUT {path} with a key")
                if reply.status < 300:
                    self.ledger.acknowledge(number)
                    break
                if reply.status < 500 and reply.status != 409:  # 409: the first one is under way
                    self.ledger.refuse(number, f"PUT {path} with a key: {reply.status} {reply.body[:300]!r}")
                    break
            await asyncio.sleep(PAUSE_SECONDS)
        return reply

    async def batch(self, moved: str, to: str, deleted: str) -> Reply | None:
        """Move one file and delete another, both or neither."""
        effect = {moved: None, to: self.ledger.known[moved], deleted: None}
        return await self.change(effect, "POST", "/file/batch", json={
            "operations": [{"op": "move", "from": moved, "to": to}, {"op": "delete", "path": deleted}]})

    async def restore_version(self, path: str, version: int, digest: str) -> Reply | None:
        """Make a former version the newest."""
        return await self.change({path: digest}, "POST", "/file/versions/restore",
                                 json={"path": path, "version": version})

    async def post(self, path: str, body: bytes) -> Reply | None:
        """Store bytes by a form."""
        form = aiohttp.FormData()
        form.add_field("path", path)
        form.add_field("file", BytesIO(body), filename="name")  # aiohttp warns of large bytes
        return await self.change({path: digest_of(body)}, "POST", "/file", data=form)

    async def delete(self, path: str, *, permanent: bool) -> Reply | None:
        """Delete a file."""
        return await self.change({path: None}, "DELETE", f"/file?path={quote(path)}{'&permanent=true' * permanent}")

    async def move(self, path: str, to: str) -> Reply | None:
        """Move a file to where nothing is."""
        return await self.change({path: None, to: self.ledger.known[path]}, "POST", "/file/move",
                                 json={"from": path, "to": to})

    async def copy(self, path: str, to: str) -> Reply | None:
        """Copy a file to where nothing is."""
        return await self.change({to: self.ledger.known[path]}, "POST", "/file/copy", json={"from": path, "to": to})

    async def restore(self, item: str, to: str, digest: str) -> Reply | None:
        """Bring something back from the trash."""
        return await self.change({to: digest}, "POST", "/file/trash/restore", json={"id": item, "to": to})


class Writer:
    """Does one thing after the other in a folder of its own; its seed says what."""

    def __init__(self, account: Account, folder: str, seed: int, *, sizes: Sequence[int] = SIZES,
                 max_files: int = 1000) -> None:
        self._account = account
        self._folder = folder
        self._random = random.Random(seed)
        self._sizes = sizes
        self._max_files = max_files
        self._count = 0
        self._trashed: dict[str, str] = {}
        self._steps: Mapping[str, Callable[[], Awaitable[Reply | None]]] = {
            "put": self._put, "post": self._post, "overwrite": self._overwrite, "delete": self._delete,
            "move": self._move, "copy": self._copy, "restore": self._restore, "surely": self._put_surely,
            "batch": self._batch, "version": self._restore_version}

    async def run(self, stop: asyncio.Event, *, pause_seconds: float = 0) -> None:
        """Until it is told to stop."""
        while not stop.is_set():
            reply = await self.step()
            if reply is None or reply.status >= 500:
                await asyncio.sleep(PAUSE_SECONDS)
            await asyncio.sleep(pause_seconds)

    async def step(self) -> Reply | None:
        """One change."""
        kind, = self._random.choices(list(self._steps), weights=(30, 10, 20, 15, 10, 10, 10, 5, 5, 5))
        count = len(self._own())
        if count >= self._max_files:
            kind = "delete"
        elif not count or kind == "restore" and not self._trashed or kind == "batch" and count < 2:
            kind = "put"
        return await self._steps[kind]()

    def _own(self) -> list[str]:
        return [path for path in self._account.ledger.free_paths() if path.startswith(f"{self._folder}/")]

    def _fresh(self) -> str:
        self._count += 1
        return f"{self._folder}/{self._random.randrange(4)}/{self._count}.bin"

    def _body(self) -> bytes:
        self._count += 1
        return body_of(f"{self._account.api.username}{self._folder}{self._count}", self._random.choice(self._sizes))

    async def _put(self) -> Reply | None:
        return await self._account.put(self._fresh(), self._body())

    async def _post(self) -> Reply | None:
        return await self._account.post(self._fresh(), self._body())

    async def _overwrite(self) -> Reply | None:
        return await self._account.put(self._random.choice(self._own()), self._body())

    async def _put_surely(self) -> Reply | None:
        return await self._account.put_surely(self._fresh(), self._body())

    async def _batch(self) -> Reply | None:
        moved, deleted = self._random.sample(self._own(), 2)
        return await self._account.batch(moved, self._fresh(), deleted)

    async def _restore_version(self) -> Reply | None:
        """The oldest there is; the file may have only one."""
        path = self._random.choice(self._own())
        try:
            reply = await self._account.api.call("GET", f"/file/versions?path={quote(path)}")
        except NO_ANSWER:
            return None
        if reply.status != 200:
            return reply
        oldest = reply.json["versions"][-1]
        return await self._account.restore_version(path, oldest["version"], oldest["sha256"])

    async def _delete(self) -> Reply | None:
        path = self._random.choice(self._own())
        digest = self._account.ledger.known[path]
        is_permanent = self._random.random() < 0.5
        reply = await self._account.delete(path, permanent=is_permanent)
        if not is_permanent and digest and reply is not None and reply.status == 204:
            self._trashed[path] = digest
        return reply

    async def _move(self) -> Reply | None:
        return await self._account.move(self._random.choice(self._own()), self._fresh())

    async def _copy(self) -> Reply | None:
        return await self._account.copy(self._random.choice(self._own()), self._fresh())

    async def _restore(self) -> Reply | None:
        """Bring one thing back from the trash, and throw the others away for good."""
        try:
            reply = await self._account.api.call("GET", "/file/trash?limit=1000")
        except NO_ANSWER:
            return None
        if reply.status != 200:
            return reply
        items = {item["path"]: item["id"] for item in reply.json["items"] if item["path"] in self._trashed}
        for path in list(self._trashed):
            digest = self._trashed.pop(path)
            if path not in items:
                self._account.ledger.refused.append(f"{path} was trashed and is not in the trash")
            elif len(self._trashed) % 4 == 0:
                await self._account.restore(items[path], self._fresh(), digest)
            else:
                await self._account.change({}, "DELETE", f"/file/trash?id={items[path]}")
        return reply
