"""A connection to a migrated database of the test's own."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from service.db.pool import Connection


@pytest.fixture
async def conn(dsn: str) -> AsyncIterator[Connection]:
    """One connection, as nobody in particular."""
    connection = await asyncpg.connect(dsn)
    yield connection
    await connection.close()
