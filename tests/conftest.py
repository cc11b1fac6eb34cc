"""Real things, started once: PostgreSQL for tests of a layer, the whole service for tests from outside."""

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import aiohttp
import asyncpg
import pytest

from service.run import migrate
from service.run.postgres import EmbeddedPostgres
from tests.client import Api, new_account
from tests.stack import Stack


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A cluster with a migrated database `template_migrated`."""
    with EmbeddedPostgres.temporary(tmp_path_factory.mktemp("postgres")) as server:
        server.ensure_database("template_migrated")
        migrate.apply(server.dsn("template_migrated"))
        yield server


@pytest.fixture
async def dsn(postgres: EmbeddedPostgres) -> AsyncIterator[str]:
    """A migrated database of this test's own."""
    name = f"test_{uuid.uuid4().hex}"
    admin = await asyncpg.connect(postgres.dsn("postgres"))
    await admin.execute(f'CREATE DATABASE "{name}" TEMPLATE template_migrated')
    yield postgres.dsn(name)
    await admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    await admin.close()


def _run(root: Path, **settings: str) -> Iterator[Stack]:
    stack = Stack(root, settings).start()
    yield stack
    if stack.process is not None:
        stack.stop()


@pytest.fixture(scope="session")
def nginx_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The service behind nginx; shared, so tests use accounts of their own."""
    yield from _run(tmp_path_factory.mktemp("nginx") / "data")


@pytest.fixture(scope="session")
def direct_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The service without nginx."""
    yield from _run(tmp_path_factory.mktemp("direct") / "data", NGINX="off")


@pytest.fixture(params=["nginx", "direct"])
def stack(request: pytest.FixtureRequest) -> Stack:
    """Both, one after the other: what a client sees is the same."""
    found = request.getfixturevalue(f"{request.param}_stack")
    assert isinstance(found, Stack)
    return found


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """Connections of a client."""
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False) as opened:
        yield opened


@pytest.fixture
async def anonymous(session: aiohttp.ClientSession, stack: Stack) -> Api:
    """A client without an account."""
    return Api(session, stack)


@pytest.fixture
async def api(session: aiohttp.ClientSession, stack: Stack) -> Api:
    """A client with a fresh account."""
    return await new_account(session, stack)


@pytest.fixture
def other_account(session: aiohttp.ClientSession, stack: Stack) -> Callable[[], Awaitable[Api]]:
    """Makes further accounts."""
    return lambda: new_account(session, stack)
