"""A cache in Redis (5 or later), shared by all workers; the service goes on without it."""

import asyncio
import math
import struct
import time
from collections.abc import Awaitable, Callable

import structlog
from redis import asyncio as aioredis
from redis.exceptions import ResponseError

from service.cache.local import LocalCache

PREFIX = "fs:"
TIMEOUT_SECONDS = 0.05
BREAK_SECONDS = 1.0
WARN_EVERY_SECONDS = 60.0
MAX_CONNECTIONS = 16

# The same bucket as LocalCache.take, by the clock of the server; ARGV: microseconds of one token and of a whole burst.
# A clock that was set back must not lock a bucket for as long: it is never further from full than one burst.
# EVAL and not EVALSHA: it costs a few hundred bytes, and there is no script to lose with a restart.
TAKE = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local interval, room = tonumber(ARGV[1]), tonumber(ARGV[2])
local full_at = math.min(math.max(tonumber(redis.call('GET', KEYS[1]) or now), now), now + room)
local wait = full_at + interval - (now + room)
if wait > 0 then
    return wait
end
full_at = full_at + interval
redis.call('SET', KEYS[1], full_at, 'PX', math.ceil((full_at - now) / 1000))
return 0
"""

# Before each value: when it expires, in seconds of the epoch by the clock of the worker that set it.
_EXPIRES_AT = struct.Struct(">d")

logger = structlog.get_logger()


class RedisCache:
    """Implements `cache.base.Cache`.

    A call ends within `timeout_seconds`, connecting included.  After one that failed, Redis is left alone for a second;
    then one call tries again while the others still do without.
    """

    def __init__(self, url: str, *, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        """Sends nothing yet; raises ValueError for a URL that the driver cannot read."""
        self._timeout_seconds = timeout_seconds
        # One deadline around each call, not one for each step in the driver: in Python 3.11 the wait_for of those can
        # swallow a cancellation.  RESP2 without CLIENT SETINFO needs no round trip to connect.
        pool = aioredis.ConnectionPool.from_url(
            url, protocol=2, driver_info=None, socket_timeout=None, socket_connect_timeout=timeout_seconds,
            max_connections=MAX_CONNECTIONS,
        )
        self._redis = aioredis.Redis.from_pool(pool)
        self._execute: Callable[..., Awaitable[object]] = self._redis.execute_command
        # The pool raises when it is empty; here a call waits for its turn, within its deadline.
        self._turns = asyncio.Semaphore(pool.max_connections)
        self._local = LocalCache()
        self._retry_at = 0.0
        self._warn_at = 0.0

    async def get(self, key: str) -> bytes | None:
        """The value, or None if it is not there, has expired or cannot be had now."""
        stored = await self._try("GET", _name("value", key))
        if not isinstance(stored, bytes) or len(stored) < _EXPIRES_AT.size:
            return None
        is_alive = time.time() < _EXPIRES_AT.unpack_from(stored)[0]  # in this order: foreign bytes may be a NaN
        return stored[_EXPIRES_AT.size:] if is_alive else None

    async def set(self, key: str, value: bytes, *, ttl_seconds: float) -> None:
        """Keep the value for at most that long, counted from now.

        Redis counts from when it gets round to it: a server that was stopped carries out what waits in its socket,
        long after the caller gave up, and would bring back what had to be forgotten meanwhile.  Hence the moment of
        expiry inside the value.
        """
        stored = _EXPIRES_AT.pack(time.time() + ttl_seconds) + value
        await self._try("SET", _name("value", key), stored, "PX", max(1, math.ceil(ttl_seconds * 1000)))

    async def forget(self, key: str) -> None:
        """Drop the value; out of reach, it stays until it expires."""
        await self._try("DEL", _name("value", key))

    async def take(self, key: str, *, per_minute: int, burst: int) -> float:
        """Take one token from the bucket `key`; return 0.0, or the seconds to wait if it is empty (none is taken).

        While Redis is out of reach or full, this process counts by itself, from a full bucket.
        """
        interval = 60_000_000 // per_minute
        wait = await self._try("EVAL", TAKE, 1, _name("bucket", key), interval, interval * burst)
        if not isinstance(wait, int):
            return await self._local.take(key, per_minute=per_minute, burst=burst)
        return wait / 1_000_000

    async def ping(self) -> None:
        """Return when Redis has answered, whatever happened before; raise ConnectionError or TimeoutError."""
        try:
            await self._send("PING")
        except TimeoutError:
            raise
        except Exception as error:  # no common base, see `_try`
            raise ConnectionError(str(error)) from error
        self._retry_at = 0.0

    async def close(self) -> None:
        """Give up the connections."""
        try:
            await self._redis.aclose()
        except Exception as error:  # at the end nothing depends on it any more
            self._warn(error)

    async def _try(self, *command: str | bytes | int) -> object:
        """The reply; None if there is none to be had."""
        now = time.monotonic()
        if now < self._retry_at:
            return None
        if self._retry_at:
            self._retry_at = now + BREAK_SECONDS  # this call finds out; a cancelled one leaves it to the next
        try:
            reply = await self._send(*command)
        except Exception as error:  # no common base: RedisError, OSError, AttributeError of a socket just lost
            # An error as a reply (full, read-only) is a server that answers: the next command may fare better.
            self._retry_at = 0.0 if isinstance(error, ResponseError) else time.monotonic() + BREAK_SECONDS
            self._warn(error)
            return None
        self._retry_at = 0.0
        return reply

    async def _send(self, *command: str | bytes | int) -> object:
        # Cancelled or out of time in the middle of a reply, the driver closes that connection: no reply goes astray.
        async with asyncio.timeout(self._timeout_seconds), self._turns:
            return await self._execute(*command)

    def _warn(self, error: Exception) -> None:
        now = time.monotonic()
        if now >= self._warn_at:
            self._warn_at = now + WARN_EVERY_SECONDS
            logger.warning("cache_unavailable", error=type(error).__name__, reason=str(error))


def _name(kind: str, key: str) -> bytes:
    # Keys may hold what a client sent; a lone surrogate must not count as a failure of Redis.
    return f"{PREFIX}{kind}:{key}".encode("utf-8", "surrogatepass")
