"""Mistakes that the tests of faults are there to find: words for FAULTS (faulty_service.py, sweeper.py).

Those that power cuts find are in faulty_service.py.  test_mistakes.py shows that each is found.
"""

import os
import sys
import types
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from service.api import body
from service.api.rest import decide
from service.cache import redis
from service.cache.redis import RedisCache
from service.db import blobs
from service.db.pool import Connection, Database
from service.domain.content import Content
from service.domain.housekeeping import Housekeeping
from service.domain.places import Target
from service.model import BlobKey
from service.run import folders, nginx
from service.storage import base


def leaked_connection() -> None:
    """A connection is given back only if all went well on it."""
    release = Database._release

    async def keep(self: Database, connection: Any) -> None:
        if sys.exc_info()[0] is None:
            await release(self, connection)

    Database._release = keep  # type: ignore[method-assign]


def long_decisions() -> None:
    """nginx may remember a decision for an hour."""
    decide.GOOD_SECONDS = 3600


def strict_cache() -> None:
    """Errors of Redis are the requests'."""
    async def send(self: RedisCache, *command: str | bytes | int) -> object:
        return await self._send(*command)

    RedisCache._try = send  # type: ignore[method-assign]


def patient_cache() -> None:
    """A question to Redis may take a second."""
    assert RedisCache.__init__.__kwdefaults__
    RedisCache.__init__.__kwdefaults__["timeout_seconds"] = 1.0


def persistent_cache() -> None:
    """Redis is asked again at once, whatever came of it."""
    redis.BREAK_SECONDS = 0.0


def surprised_by_limits() -> None:
    """No room, or no descriptors, is an internal error."""
    base._NO_ROOM = base._NO_FILES = frozenset()


def named_files() -> None:
    """An upload looks whether there is a file of its name."""
    store = Content.store

    async def look_first(self: Content, caller: Any, target: Target, staged: Any, **more: Any) -> Any:
        os.path.exists(f"/srv/{'/'.join(target.place) if isinstance(target.place, tuple) else target.place}")
        return await store(self, caller, target, staged, **more)

    Content.store = look_first  # type: ignore[method-assign]


def collected_bodies() -> None:
    """A body is collected in memory, then it is written."""
    pieces_of = body.pieces_of

    async def one_piece(request: Any) -> AsyncIterator[bytes]:
        yield b"".join([piece async for piece in pieces_of(request)])

    body.pieces_of = one_piece


def own_clock() -> None:
    """The sweep asks its own clock how long nothing has referred to a blob."""
    query = blobs.LOCK_UNREFERENCED.replace("now() - make_interval(secs => $1)", "$1")
    assert query != blobs.LOCK_UNREFERENCED

    async def lock(conn: Connection, *, grace_seconds: float, limit: int) -> list[BlobKey]:
        before = datetime.now(UTC) - timedelta(seconds=grace_seconds)
        return [BlobKey(row["id"]) for row in await conn.fetch(query, before, limit)]

    blobs.lock_unreferenced = lock


def forgotten_first() -> None:
    """The sweep forgets a row before it removes the bytes."""
    async def sweep(self: Housekeeping, *, grace_seconds: float = 0) -> int:
        async def fence(conn: Connection) -> list[BlobKey]:
            keys = await blobs.lock_unreferenced(conn, grace_seconds=grace_seconds, limit=200)
            await blobs.fence_blobs(conn, keys)
            return keys

        keys = await self._database.in_transaction(fence)
        async with self._database.connection() as conn:
            await blobs.delete_fenced(conn, keys)
        for key in keys:
            await self._store.delete(key)
        return len(keys)

    Housekeeping.sweep = sweep  # type: ignore[method-assign]


def kept_spool() -> None:
    """A start leaves what an earlier nginx has spooled."""
    vars(nginx)["shutil"] = types.SimpleNamespace(rmtree=lambda *args, **kwargs: None)


def kept_staging() -> None:
    """A start leaves what killed workers had in staging."""
    folders.empty_staging = lambda folders: None


def kept_bodies() -> None:
    """nginx leaves every body that it has spooled."""
    render = nginx.render

    def render_differently(*args: Any, **kwargs: Any) -> str:
        text = render(*args, **kwargs)
        assert "client_body_in_file_only clean;" in text
        return text.replace("client_body_in_file_only clean;", "client_body_in_file_only on;")

    nginx.render = render_differently


OF_WORKERS: dict[str, Callable[[], None]] = {
    mistake.__name__: mistake
    for mistake in (leaked_connection, long_decisions, strict_cache, patient_cache, persistent_cache,
                    surprised_by_limits, named_files, collected_bodies)}
OF_SUPERVISOR: dict[str, Callable[[], None]] = {
    mistake.__name__: mistake for mistake in (kept_spool, kept_staging, kept_bodies)}
OF_SWEEP: dict[str, Callable[[], None]] = {mistake.__name__: mistake for mistake in (own_clock, forgotten_first)}
