"""What a cache can do.  Two implementations ship: Redis, and memory of this process."""

from typing import Protocol


class Cache(Protocol):
    """Small values with a lifetime, and token buckets.

    No method raises when the cache cannot be reached: `get` finds nothing, `set` and `forget` do nothing, `take` counts
    in this process instead.  The service has to be right without a cache.
    """

    async def get(self, key: str) -> bytes | None:
        """The value, or None if it is not there, has expired or cannot be had now."""

    async def set(self, key: str, value: bytes, *, ttl_seconds: float) -> None:
        """Keep the value for at most that long."""

    async def forget(self, key: str) -> None:
        """Drop the value."""

    async def take(self, key: str, *, per_minute: int, burst: int) -> float:
        """Take one token from the bucket `key`; return 0.0, or the seconds to wait if it is empty (none is taken)."""

    async def ping(self) -> None:
        """Return when the cache has answered; raise OSError (ConnectionError, TimeoutError) if it does not."""

    async def close(self) -> None:
        """Give up the connections."""
