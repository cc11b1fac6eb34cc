"""A socket between the service and PostgreSQL: loses connections around a COMMIT, loses what is said, or keeps it back.

And after a COMMIT, if it is to, lets nobody through who would ask what became of it.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, quote, urlsplit

Moment = Literal["before", "after"]
_SOCKET = ".s.PGSQL.5432"
_COMMIT = b"COMMIT;\0"  # what asyncpg sends
_COMMITTED = b"COMMIT\0"  # what the server answers
_PIECE_BYTES = 2**16


@dataclass(eq=False)
class _Wire:
    """One connection through the proxy."""

    is_cut: bool
    task: "asyncio.Task[None]"
    is_over: asyncio.Event = field(default_factory=asyncio.Event)


class CommitProxy:
    """Passes everything on; when armed, the next COMMIT costs its connection."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._armed: Moment | None = None
        self._then_shuts = self._tells_nobody = False
        self._is_shut = False
        self._wires: set[_Wire] = set()
        self._is_black_hole = False
        self._kept_back: bytes | None = None
        self._may_pass = asyncio.Event()
        self.is_keeping = asyncio.Event()
        self.lost = 0

    def swallow(self, *, also_new: bool = False) -> None:
        """Nothing that is said on the connections that there are arrives any more, and neither end is told."""
        for wire in self._wires:
            wire.is_cut = True
        self._is_black_hole = also_new

    def keep_back(self, piece: bytes) -> None:
        """Keep what the next client says that holds this piece until `pass_on`; `is_keeping` is set then."""
        self._kept_back = piece
        self.is_keeping.clear()
        self._may_pass.clear()

    def pass_on(self) -> None:
        """What was kept back arrives now."""
        self._may_pass.set()

    def arm(self, moment: Moment, *, then_shuts: bool = False, tells_nobody: bool = False) -> None:
        """Lose the next COMMIT before it reaches the server, or the answer to it, and the connection with it.

        `then_shuts`: new connections are refused then.  `tells_nobody`: neither end sees that the connection is gone.
        """
        self._armed = moment
        self._then_shuts = then_shuts
        self._tells_nobody = tells_nobody

    def open(self) -> None:
        """Let everybody through again."""
        self._is_shut = self._is_black_hole = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        if self._is_shut:
            writer.transport.abort()
            return
        server_reader, server_writer = await asyncio.open_unix_connection(self._upstream)
        task = asyncio.current_task()
        assert task is not None
        self._wires.add(wire := _Wire(is_cut=self._is_black_hole, task=task))
        to_server = asyncio.create_task(self._pass_requests(wire, reader, server_writer))
        to_client = asyncio.create_task(self._pass_answers(wire, server_reader, writer))
        tasks = [to_server, to_client, asyncio.create_task(wire.is_over.wait())]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._wires.discard(wire)
        for end in (writer, server_writer):
            end.transport.abort()

    async def end(self) -> None:
        """Hang up everywhere."""
        wires = list(self._wires)
        for wire in wires:
            wire.is_over.set()
        if wires:
            await asyncio.wait([wire.task for wire in wires])

    async def _pass_requests(self, wire: _Wire, reader: asyncio.StreamReader, server: asyncio.StreamWriter) -> None:
        while data := await reader.read(_PIECE_BYTES):
            if self._kept_back is not None and self._kept_back in data:
                self._kept_back = None
                self.is_keeping.set()
                await self._may_pass.wait()
            if self._armed == "before" and _COMMIT in data and not self._lose(wire):
                return
            if wire.is_cut:
                await asyncio.Event().wait()
            server.write(data)
            await server.drain()

    async def _pass_answers(self, wire: _Wire, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        while data := await reader.read(_PIECE_BYTES):
            if self._armed == "after" and _COMMITTED in data and not self._lose(wire):
                return
            if wire.is_cut:
                continue
            client.write(data)
            await client.drain()

    def _lose(self, wire: _Wire) -> bool:
        """Whether its ends are left to themselves."""
        self._armed = None
        self._is_shut = self._then_shuts
        self.lost += 1
        wire.is_cut = self._tells_nobody
        return self._tells_nobody


@asynccontextmanager
async def open_proxy(dsn: str) -> AsyncIterator[tuple[CommitProxy, str]]:
    """The proxy and the address to reach the database through it."""
    parts = urlsplit(dsn)
    host = parse_qs(parts.query)["host"][0]
    with tempfile.TemporaryDirectory(prefix="proxy-") as folder:
        proxy = CommitProxy(str(Path(host) / _SOCKET))
        server = await asyncio.start_unix_server(proxy.serve, Path(folder) / _SOCKET)
        try:
            yield proxy, f"postgresql://{parts.username}@{parts.path}?host={quote(folder, safe='')}&port=5432"
        finally:
            server.close()
            await proxy.end()
            await server.wait_closed()
