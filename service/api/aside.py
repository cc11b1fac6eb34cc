"""An answer that is put aside before a client gets any of it, so that nothing waits for a client who is slow."""

import contextlib
from typing import BinaryIO

from aiohttp import web

from service.api.keys import STORE
from service.storage.base import explain

MEMORY_BYTES = 2**18
PIECE_BYTES = 2**18


class Aside:
    """Takes the bytes of an answer: into memory, and into a scratch file when they are more than fit there."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._store = request.app[STORE]
        self._pending = bytearray()
        self._size_bytes = 0
        self._file: BinaryIO | None = None

    async def write(self, data: bytes) -> None:
        """Append; raises StorageFull, DiskFailed, Unavailable."""
        self._pending += data
        self._size_bytes += len(data)
        if len(self._pending) > MEMORY_BYTES:
            await self._put_away()

    async def _put_away(self) -> None:
        if self._file is None:
            self._file = await self._store.run(self._store.scratch)
        data, self._pending = self._pending, bytearray()
        try:
            await self._store.run(self._file.write, data)
        except OSError as error:
            raise explain(error) from error

    async def send(self, headers: dict[str, str]) -> web.StreamResponse:
        """Send it all; its length is known now."""
        response = web.StreamResponse(headers=headers)
        response.content_length = self._size_bytes
        if self._file is not None:
            await self._put_away()
            await self._store.run(self._file.seek, 0)
        await response.prepare(self._request)
        if self._request.method != "HEAD":
            if self._file is None:
                await response.write(self._pending)
            else:
                while piece := await self._store.run(self._file.read, PIECE_BYTES):
                    await response.write(piece)
        await response.write_eof()
        return response

    def close(self) -> None:
        """Give up the scratch file."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # what it has still to write may be what the disk did not take
                self._file.close()
