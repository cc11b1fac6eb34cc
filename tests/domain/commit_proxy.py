"""A socket between the service and PostgreSQL that loses the connection around a COMMIT: before it or after it.

And then, if it is to, lets nobody through who would ask what became of it.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, quote, urlsplit

Moment = Literal["before", "after"]
_SOCKET = ".s.PGSQL.5432"
_COMMIT = b"COMMIT;\0"  # what asyncpg sends
_COMMITTED = b"COMMIT\0"  # what the server answers
_PIECE_BYTES = 2**16


class CommitProxy:
    """Passes everything on; when armed, the next COMMIT costs its connection."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._armed: Moment | None = None
        self._then_shuts = False
        self._is_shut = False
        self.lost = 0

    def arm(self, moment: Moment, *, then_shuts: bool = False) -> None:
        """Lose the next COMMIT before it reaches the server, or the answer to it; then refuse new connections."""
        self._armed = moment
        self._then_shuts = then_shuts

    def open(self) -> None:
        """Let everybody through again."""
        self._is_shut = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        if self._is_shut:
            writer.transport.abort()
            return
        server_reader, server_writer = await asyncio.open_unix_connection(self._upstream)
        to_server = asyncio.create_task(self._pass_requests(reader, server_writer))
        to_client = asyncio.create_task(self._pass_answers(server_reader, writer))
        await asyncio.wait([to_server, to_client], return_when=asyncio.FIRST_COMPLETED)
        for task in (to_server, to_client):
            task.cancel()
        await asyncio.gather(to_server, to_client, return_exceptions=True)
        for end in (writer, server_writer):
            end.transport.abort()

    async def _pass_requests(self, reader: asyncio.StreamReader, server: asyncio.StreamWriter) -> None:
        while data := await reader.read(_PIECE_BYTES):
            if self._armed == "before" and _COMMIT in data:
                self._lose()
                return
            server.write(data)
            await server.drain()

    async def _pass_answers(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        while data := await reader.read(_PIECE_BYTES):
            if self._armed == "after" and _COMMITTED in data:
                self._lose()
                return
            client.write(data)
            await client.drain()

    def _lose(self) -> None:
        self._armed = None
        self._is_shut = self._then_shuts
        self.lost += 1


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
            await server.wait_closed()
