"""SIGTERM: what has been taken is carried out to its end, nothing new is, and all of it ends in good order."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import aiohttp
import asyncpg
import pytest

from service.run.postgres import EmbeddedPostgres
from tests.client import Api, Reply, files_on_disk, new_account, until
from tests.stack import STOP_SECONDS, Stack

LARGE = 500_000
SIZES = (1000, 1000, LARGE, LARGE)
LEAST_WAITING = 3  # transactions: of the small ones together, and of each large one
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
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


@pytest.fixture
async def idle(own_stack: Stack) -> "AsyncIterator[list[Connection]]":
    """Connections that have been used, and wait for what is next."""
    opened = [await asyncio.open_connection("127.0.0.1", own_stack.port) for _ in range(5)]
    for reader, writer in opened:
        writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    yield opened
    for _, writer in opened:
        writer.close()


@asynccontextmanager
async def uploads_under_way(api: Api, stack: Stack) -> "AsyncIterator[list[asyncio.Task[Reply]]]":
    """Two small ones, which may share a transaction, and two large ones, each with one of its own.

    When the context begins, the workers have taken all four: the bytes have their places, and what may be in a
    transaction at once waits for the commits that are held up while it lasts.
    """
    before = len(placed(stack))
    async with commits_held_up(stack) as observer:
        async def all_wait() -> bool:
            return len(placed(stack)) == before + len(SIZES) and await observer.fetchval(WAITING) >= LEAST_WAITING

        uploads = [asyncio.ensure_future(api.put(f"/{number}", b"x" * size, expect=None,
                                                 headers={} if size < LARGE else {"If-None-Match": "*"}))
                   for number, size in enumerate(SIZES)]
        await until(all_wait)
        yield uploads


def placed(stack: Stack) -> list[str]:
    """What has its place among the blobs."""
    return [name for name in files_on_disk(stack) if name.startswith("blobs/")]


async def test_uploads_that_are_about_to_commit_are_answered_and_the_service_ends_well(
        session: aiohttp.ClientSession, own_stack: Stack, idle: list[Connection]) -> None:
    """With idle connections beside them."""
    api = await new_account(session, own_stack)
    assert own_stack.process is not None
    async with uploads_under_way(api, own_stack) as uploads:
        own_stack.process.send_signal(signal.SIGTERM)
        await until(lambda: refuses_connections(own_stack))
        assert own_stack.process.poll() is None
        assert not any(upload.done() for upload in uploads)
    replies = await asyncio.gather(*uploads)
    assert await end(own_stack) == 0
    await asyncio.to_thread(own_stack.start)
    assert [reply.status for reply in replies] == [201] * len(SIZES)
    for number, size in enumerate(SIZES):
        assert (await api.get(f"/{number}")).body == b"x" * size
    assert [file["version"] for file in await api.list()] == [1] * len(SIZES)


async def test_uploads_that_come_too_late_are_refused_and_leave_nothing(
        session: aiohttp.ClientSession, own_stack: Stack, idle: list[Connection]) -> None:
    """While what was taken is carried out: over connections that are open, and over new ones."""
    api = await new_account(session, own_stack)
    late = f"HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.token}\r\nContent-Length: 4\r\n\r\nlate".encode("ascii")
    answers: list[bytes] = []
    assert own_stack.process is not None
    async with uploads_under_way(api, own_stack):
        own_stack.process.send_signal(signal.SIGTERM)
        await until(lambda: refuses_connections(own_stack))
        with pytest.raises(aiohttp.ClientConnectionError):
            await api.put("/late-new", b"late")
        for number, (reader, writer) in enumerate(idle):
            writer.write(b"PUT /file?path=/late-%d " % number + late)
            try:
                answers.append(await asyncio.wait_for(reader.read(), STOP_SECONDS))
            except ConnectionError:
                answers.append(b"")
    assert await end(own_stack) == 0
    await asyncio.to_thread(own_stack.start)
    assert not any(answer.startswith(b"HTTP/1.1 2") for answer in answers), answers
    assert [file["path"] for file in await api.list() if "late" in file["path"]] == []
