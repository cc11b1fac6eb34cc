"""A cache in the memory of this process: for a service without Redis, and for the time Redis is out of reach."""

import time
from collections import OrderedDict


class LocalCache:
    """Implements `cache.base.Cache`; other workers do not see what this one keeps or forgets.

    Holds `max_entries` values and as many buckets; the least recently used one makes room.
    """

    def __init__(self, max_entries: int = 10_000) -> None:
        self._max_entries = max_entries
        self._values: OrderedDict[str, tuple[bytes, float]] = OrderedDict()
        # Apart from the values, so that a flood of one does not push out the other.
        self._buckets: OrderedDict[str, int] = OrderedDict()

    async def get(self, key: str) -> bytes | None:
        """The value, or None if it is not there or has expired."""
        entry = self._values.get(key)
        if entry is None:
            return None
        value, expires_at = entry
        if time.monotonic() >= expires_at:
            del self._values[key]
            return None
        self._values.move_to_end(key)
        return value

    async def set(self, key: str, value: bytes, *, ttl_seconds: float) -> None:
        """Keep the value for at most that long."""
        self._values[key] = value, time.monotonic() + ttl_seconds
        self._values.move_to_end(key)
        if len(self._values) > self._max_entries:
            self._values.popitem(last=False)

    async def forget(self, key: str) -> None:
        """Drop the value."""
        self._values.pop(key, None)

    async def take(self, key: str, *, per_minute: int, burst: int) -> float:
        """Take one token from the bucket `key`; return 0.0, or the seconds to wait if it is empty (none is taken).

        The bucket is one number, the moment at which it will be full again (GCRA, the generic cell rate algorithm of
        ITU-T I.371); in whole microseconds, because a sum of fractions misses the edge of the burst.
        """
        now = time.monotonic_ns() // 1000
        interval = 60_000_000 // per_minute
        full_at = max(self._buckets.get(key, now), now)
        wait = full_at + interval - (now + interval * burst)
        self._buckets[key] = full_at if wait > 0 else full_at + interval
        self._buckets.move_to_end(key)
        if len(self._buckets) > self._max_entries:
            self._buckets.popitem(last=False)
        return max(wait, 0) / 1_000_000

    async def ping(self) -> None:
        """Return: memory always answers."""

    async def close(self) -> None:
        """Drop everything."""
        self._values.clear()
        self._buckets.clear()
