"""SIGTERM: what has been taken is carried out to its end, nothing new is, and all of it ends in good order."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import aiohttp
import asyncpg
import pytest

from service.run.postgres import EmbeddedPostgres
from tests.client import Reply, new_account, until
from tests.stack import STOP_SECONDS, Stack

SIZES = (1000, 1000, 500_000, 500_000)
WAITING = """
SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A database that does not end with the service."""
    with EmbeddedPostgres.temporary(tmp_path_factory.mktemp("outlives")) as postgres:
        postgres.ensure_database("files")
        yield postgres


@pytest.fixture(scope="module", params=["auto", "off"])
def own_stack(request: pytest.FixtureRequest, server: EmbeddedPostgres,
              tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A service to be stopped; every test leaves it running."""
    name = f"files_{request.param}"
    server.ensure_database(name)
    stack = Stack(tmp_path_factory.mktemp("stop") / "data", {
        "NGINX": request.param, "DATABASE_URL": server.dsn(name)}).start()
    yield stack
    if stack.process is not None:
        stack.stop()


@asynccontextmanager
async def commits_held_up(stack: Stack) -> "AsyncIterator[asyncpg.Connection[asyncpg.Record]]":
    """No version can be written while the context lasts; the connection is for looking on."""
    holder, observer = [await asyncpg.connect(stack.settings["DATABASE_URL"]) for _ in range(2)]
    transaction = holder.transaction()
    await transaction.start()
    await holder.execute("LOCK TABLE versions IN EXCLUSIVE MODE")
    try:
        yield observer
    finally:
        await transaction.rollback()
        await holder.close()
        await observer.close()


async def refuses_connections(stack: Stack) -> bool:
    """Whether nothing new is taken."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", stack.port)
    except ConnectionError:
        return True
    writer.close()
    return False


async def end(stack: Stack) -> int:
    """The exit code of a service that was asked to end."""
    assert stack.process is not None
    code = await asyncio.to_thread(stack.process.wait, STOP_SECONDS)
    stack.process = None
    return code


async def test_uploads_that_are_about_to_commit_are_answered_and_the_service_ends_well(
        session: aiohttp.ClientSession, own_stack: Stack) -> None:
    """Small ones, which share a transaction, and large ones, with idle connections beside them."""
    api = await new_account(session, own_stack)
    idle = [await asyncio.open_connection("127.0.0.1", own_stack.port) for _ in range(5)]
    for reader, writer in idle:
        writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    assert own_stack.process is not None
    async with commits_held_up(own_stack) as observer:
        uploads = [asyncio.ensure_future(api.put(f"/{number}", b"x" * SIZES[number], expect=None))
                   for number in range(len(SIZES))]

        async def is_waiting() -> bool:
            return bool(await observer.fetchval(WAITING))

        await until(is_waiting)
        own_stack.process.send_signal(signal.SIGTERM)
        await until(lambda: refuses_connections(own_stack))
        assert own_stack.process.poll() is None
        assert not any(upload.done() and upload.exception() for upload in uploads)
    replies: list[Reply | BaseException] = await asyncio.gather(*uploads, return_exceptions=True)
    assert await end(own_stack) == 0
    await asyncio.to_thread(own_stack.start)
    for _, writer in idle:
        writer.close()
    stored = {f"/{number}": SIZES[number] for number, reply in enumerate(replies)
              if isinstance(reply, Reply) and reply.status == 201}
    # whatever had reached a worker was committed and answered; what had not was refused, never half done
    assert stored and all(reply.status in (201, 503) if isinstance(reply, Reply)
                          else isinstance(reply, aiohttp.ClientConnectionError) for reply in replies)
    for path, size in stored.items():
        assert (await api.get(path)).body == b"x" * size
    assert all(file["version"] == 1 for file in await api.list())
