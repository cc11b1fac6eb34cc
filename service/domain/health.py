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
ANSWER_SECONDS = 4.25  # also for whoever had to wait for the measurement before
LEAST_SECONDS = 1.0


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
        begin = time.monotonic()
        if current is not None:
            await asyncio.wait([current])
        self._current, self._next = self._next, None  # whoever comes now shares the one after this
        left = ANSWER_SECONDS - (time.monotonic() - begin)
        return await self._measure_all(min(TIMEOUT_SECONDS, max(LEAST_SECONDS, left)))

    async def _measure_all(self, timeout_seconds: float) -> Health:
        """Ask all at the same time, and wait so long for each."""
        times = await asyncio.gather(*(_measure(ping, timeout_seconds) for ping in self._pings.values()))
        return Health(milliseconds=dict(zip(self._pings, times, strict=True)))


async def _measure(ping: Callable[[], Awaitable[None]], timeout_seconds: float) -> float | None:
    begin = time.perf_counter()
    asking = asyncio.ensure_future(ping())
    await asyncio.wait([asking], timeout=timeout_seconds)
    seconds = time.perf_counter() - begin
    if not asking.done():
        asking.cancel()  # and not waited for: what it has borrowed is given back to something that does not answer
        asking.add_done_callback(lambda done: done.cancelled() or done.exception())
        return None
    error = asking.exception()
    if error is not None and not isinstance(error, (OSError, ServiceError)):
        raise error
    return seconds * 1000 if error is None else None
