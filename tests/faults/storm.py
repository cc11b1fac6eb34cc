"""Storms: clients that write, read, delete and move on the same two paths of an account, and note what came of it.

What each of them asks for follows from its seed alone; when it does so does not.
"""

import asyncio
import hashlib
import math
import random
import time
from base64 import b64decode
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import quote

import aiohttp
import orjson

from tests.client import Api, new_account, until
from tests.faults.clients import NO_ANSWER, PAUSE_SECONDS
from tests.faults.examine import look
from tests.faults.ledger import body_of, digest_of
from tests.faults.linearizability import Operation, State, Value
from tests.stack import Stack

PATHS = ("/storm/a", "/storm/b")
EMPTY: State = (None, None)
SIZES = (0, 100, 4096, 70_000, 300_000)
CLIENTS = 9
TURNS = 45  # of each client
PATIENCE_SECONDS = 120.0
# they promise that all was done or nothing
IN_DOUBT = (502, 503, 504)


class Client:
    """Does things to the two paths of an account that others use too, and notes what came of it."""

    def __init__(self, api: Api, seed: int, name: str) -> None:
        self._api = api
        self._random = random.Random(seed)
        self._name = name
        self._ways: list[Callable[[int, int], Awaitable[Operation | None]]] = [
            self._put, self._put, self._put, self._get, self._get, self._head, self._delete, self._move, self._list]
        self.history: list[Operation] = []
        self.wrong: list[str] = []
        self.unavailable = 0  # reads that were told that the bytes cannot be read
        self.turns = 0

    async def run(self, turns: int) -> None:
        """So many requests, one after the other; those that could not be sent do not count."""
        while self.turns < turns:
            start = time.monotonic()
            try:
                operation = await self._random.choice(self._ways)(self._random.randrange(2), self.turns)
            except aiohttp.ClientConnectorError:
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            self.turns += 1
            if operation is not None:
                end = time.monotonic() if operation.is_certain else math.inf
                self.history.append(replace(operation, start=start, end=end))
                if not operation.is_certain:  # it asks for nothing more until somebody is there
                    await until(self._is_ready, seconds=PATIENCE_SECONDS)

    async def _is_ready(self) -> bool:
        await asyncio.sleep(PAUSE_SECONDS)
        try:
            return (await self._api.call("GET", "/readyz")).status == 200
        except NO_ANSWER:
            return False

    async def _ask(self, method: str, address: str, allowed: tuple[int, ...], **more: object) -> tuple[int, bytes]:
        """Status and body; 0 without an answer that says what became of it."""
        try:
            reply = await self._api.call(method, address, **more)  # type: ignore[arg-type]
        except aiohttp.ClientConnectorError:
            raise
        except NO_ANSWER:
            return 0, b""
        if is_unavailable := b"content_unavailable" in reply.body:
            self.unavailable += 1
        if reply.status in IN_DOUBT or is_unavailable:
            return 0, reply.body
        if reply.status not in allowed:
            self.wrong.append(f"{method} {address}: {reply.status} {reply.body[:200]!r}")
        return reply.status, reply.body

    @staticmethod
    def _end(status: int) -> float:
        return 0 if status else math.inf

    async def _put(self, index: int, number: int) -> Operation:
        body = body_of(f"{self._name}-{number}", self._random.choice(SIZES)) or f"{self._name}-{number}".encode()
        status, _ = await self._ask("PUT", f"/file?path={quote(PATHS[index])}", (200, 201), data=body)
        return Operation("put", 0, self._end(status), at=index, value=digest_of(body))

    async def _get(self, index: int, number: int) -> Operation | None:
        # A condition has the worker asked.  What nginx remembers is outdated before a change is acknowledged, not in
        # the very moment of its COMMIT: tests/api/test_decisions.py is about that.
        status, body = await self._ask("GET", f"/file/download?path={quote(PATHS[index])}", (200, 404),
                                       headers={"If-None-Match": '"none"'})
        value: Value = hashlib.sha256(body).hexdigest() if status == 200 else None
        return Operation("get", 0, 0, at=index, value=value) if status else None

    async def _head(self, index: int, number: int) -> Operation | None:
        """The digest that it names stands for the bytes."""
        status, found = 0, ""
        try:
            reply = await self._api.call("HEAD", f"/file/download?path={quote(PATHS[index])}",
                                         headers={"If-None-Match": '"none"'})
            status, found = reply.status, reply.headers.get("Repr-Digest", "")
        except aiohttp.ClientConnectorError:
            raise
        except NO_ANSWER:
            return None
        # 500: the blob went while nginx was about to open it; no body says so, and other mistakes are in the log
        self.unavailable += status == 500
        if status not in (200, 404, 500, *IN_DOUBT):
            self.wrong.append(f"HEAD {PATHS[index]}: {status}")
        if status not in (200, 404):
            return None
        value: Value = b64decode(found.removeprefix("sha-256=:").removesuffix(":")).hex() if status == 200 else None
        return Operation("get", 0, 0, at=index, value=value)

    async def _delete(self, index: int, number: int) -> Operation:
        status, _ = await self._ask("DELETE", f"/file?path={quote(PATHS[index])}&permanent=true", (204, 404))
        return Operation("delete", 0, self._end(status), at=index, found=status == 204)

    async def _move(self, index: int, number: int) -> Operation | None:
        """Over whatever is there."""
        status, _ = await self._ask("POST", "/file/move", (200, 404, 409), json={
            "from": PATHS[index], "to": PATHS[1 - index], "overwrite": True})
        if status == 409:  # something changed meanwhile: nothing was done
            return None
        return Operation("move", 0, self._end(status), at=index, to=1 - index, found=status == 200)

    async def _list(self, index: int, number: int) -> Operation | None:
        status, body = await self._ask("GET", "/file/list?folder=/storm", (200,))
        if status != 200:
            return None
        found = {file["path"]: file["sha256"] for file in orjson.loads(body)["files"]}
        return Operation("list", 0, 0, values=tuple(found.get(path) for path in PATHS))


@dataclass
class Storm:
    """A storm on the paths of one account."""

    api: Api
    clients: Sequence[Client] = field(default_factory=list)

    @classmethod
    async def prepare(cls, session: aiohttp.ClientSession, stack: Stack, seed: int, clients: int = CLIENTS) -> "Storm":
        """An account with nothing at the paths."""
        api = await new_account(session, stack)
        await api.call("POST", "/file/folder", json={"path": "/storm"}, expect=201)
        return cls(api, [Client(api, seed * 100 + number, f"{api.username}-{number}") for number in range(clients)])

    async def rage(self) -> None:
        """All turns of all clients; then a look, when nothing is under way."""
        await asyncio.gather(*(client.run(TURNS) for client in self.clients))
        start = time.monotonic()
        listed = (await look(self.api, "/file/list?folder=/storm")).json["files"]
        found = {file["path"]: file["sha256"] for file in listed}
        self.clients[0].history.append(Operation("list", start, time.monotonic(), values=tuple(map(found.get, PATHS))))

    @property
    def turns(self) -> int:
        """How many have been done."""
        return sum(client.turns for client in self.clients)

    @property
    def history(self) -> list[Operation]:
        """What was noted."""
        return [operation for client in self.clients for operation in client.history]

    @property
    def wrong(self) -> list[str]:
        """What was answered that may not be."""
        return [words for client in self.clients for words in client.wrong]

    @property
    def unavailable(self) -> int:
        """How many reads found a file and not its bytes: only beside a sweep without grace may there be any."""
        return sum(client.unavailable for client in self.clients)
