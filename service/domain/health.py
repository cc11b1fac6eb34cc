"""Whether what the service depends on answers, and how fast."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from service.cache.base import Cache
from service.db.pool import Database
from service.errors import ServiceError
from service.model import Health
from service.storage.base import BlobStore

TIMEOUT_SECONDS = 3.0


class HealthChecks:
    """Access times, measured at the call."""

    def __init__(self, database: Database, cache: Cache, store: BlobStore) -> None:
        self._pings: dict[str, Callable[[], Awaitable[None]]] = {
            "db": database.ping, "cache": cache.ping, "storage": store.ping}
        self._current: asyncio.Task[Health] | None = None
        self._next: asyncio.Task[Health] | None = None

    async def measure(self) -> Health:
        """How fast everything answers now.

        Whoever asks while others are being answered shares the next measurement, so that a flood of questions, which
        anybody may ask, does not become a flood of connections.
        """
        if self._next is None:
            self._next = asyncio.create_task(self._measure_after(self._current))
        return await asyncio.shield(self._next)

    async def _measure_after(self, current: asyncio.Task[Health] | None) -> Health:
        if current is not None:
            await asyncio.wait([current])
        self._current, self._next = self._next, None  # whoever comes now shares the one after this
        return await self._measure_all()

    async def _measure_all(self) -> Health:
        """Ask all at the same time, each with its own time-out."""
        times = await asyncio.gather(*(_measure(ping) for ping in self._pings.values()))
        return Health(milliseconds=dict(zip(self._pings, times, strict=True)))


async def _measure(ping: Callable[[], Awaitable[None]]) -> float | None:
    begin = time.perf_counter()
    try:
        await asyncio.wait_for(ping(), TIMEOUT_SECONDS)
    except (OSError, ServiceError):  # TimeoutError is an OSError
        return None
    return (time.perf_counter() - begin) * 1000
