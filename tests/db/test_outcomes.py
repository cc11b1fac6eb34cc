"""What became of a transaction whose COMMIT was not answered: asked of a server, also of one that crashed since."""

import asyncio
import dataclasses
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import asyncpg
import pytest

from service.db import outcomes
from service.db.outcomes import Commit, Session, about_to_commit, find_outcome, get_status
from service.run.postgres import EmbeddedPostgres
from tests.client import until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A server of this file's own, since it crashes."""
    with EmbeddedPostgres.temporary(tmp_path_factory.mktemp("crashing")) as opened:
        opened.ensure_database("outcomes")
        yield opened


class Client:
    """A connection as the pool has it, and new ones to ask on."""

    def __init__(self, dsn: str, session: Any) -> None:
        self._dsn = dsn
        self.session = session

    async def connect(self) -> Any:
        """A new connection."""
        return await asyncpg.connect(self._dsn, timeout=10)

    async def begin(self) -> Commit:
        """A transaction that is under way."""
        await self.session.transaction().start()
        return about_to_commit(self.session)

    async def outcome(self, commit: Commit) -> outcomes.Outcome:
        """What a worker would find out."""
        return await find_outcome(self.connect, commit)


@asynccontextmanager
async def open_client(dsn: str) -> AsyncIterator[Client]:
    """A client of the server."""
    session = await asyncpg.connect(dsn, connection_class=Session, server_settings={"application_name": "file-storage"})
    await outcomes.prepare(session)
    try:
        yield Client(dsn, session)
    finally:
        session.terminate()


@pytest.fixture
async def client(server: EmbeddedPostgres) -> AsyncIterator[Client]:
    """A client of the server of this file."""
    async with open_client(server.dsn("outcomes")) as opened:
        yield opened


async def test_ids_come_with_begin_and_are_those_of_the_transaction(client: Client) -> None:
    ids = set()
    for _ in range(3):
        async with client.session.transaction():
            commit = about_to_commit(client.session)
            assert commit.xact_id == await client.session.fetchval("SELECT pg_current_xact_id()::text")
            assert commit.backend_pid == client.session.get_server_pid()
            ids.add(commit.xact_id)
    assert len(ids) == 3
    assert await client.session.fetchval("SHOW application_name") == "file-storage"


async def test_committed_and_aborted_are_told_apart(client: Client) -> None:
    committed = await client.begin()
    await client.session.execute("COMMIT;")
    client.session._top_xact = None
    assert await client.outcome(committed) == "committed"
    aborted = await client.begin()
    await client.session.execute("ROLLBACK;")
    client.session._top_xact = None
    assert await client.outcome(aborted) == "aborted"


async def test_transaction_of_a_client_that_is_gone_is_ended_and_aborted(client: Client) -> None:
    """Its backend may not know yet that nobody will ever commit: it is not waited for."""
    commit = await client.begin()
    assert await client.outcome(commit) == "aborted"
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
        await client.session.execute("COMMIT;")


async def test_backend_that_is_in_another_transaction_by_now_is_left_alone(client: Client) -> None:
    commit = await client.begin()
    await client.session.execute("COMMIT;")
    client.session._top_xact = None
    await client.begin()
    assert await client.outcome(commit) == "committed"
    assert await client.session.execute("COMMIT;") == "COMMIT"


async def test_commit_that_becomes_a_rollback_is_an_error(client: Client) -> None:
    with pytest.raises(asyncpg.InFailedSQLTransactionError):
        async with client.session.transaction():
            with pytest.raises(asyncpg.DivisionByZeroError):
                await client.session.execute("SELECT 1 / 0")


async def test_server_that_cannot_be_asked_is_asked_three_times(client: Client) -> None:
    commit = await client.begin()
    asked = 0

    async def fail() -> None:
        nonlocal asked
        asked += 1
        raise ConnectionRefusedError

    assert await find_outcome(fail, commit) == "unknown"
    assert asked == 3


async def test_word_of_a_server_that_follows_another_is_not_taken(
        client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has not heard yet of a transaction says that it lies in the future, or is in progress."""
    commit = await client.begin()
    future = dataclasses.replace(commit, xact_id=str(int(commit.xact_id) + 1000))
    assert await client.outcome(future) == "aborted"

    async def follows(conn: object) -> bool:
        return True

    monkeypatch.setattr(outcomes, "is_standby", follows)
    assert await client.outcome(future) == "unknown"


async def test_server_that_hangs_is_not_waited_for(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "ANSWER_SECONDS", 0.05)
    asked = 0

    async def hang() -> None:
        nonlocal asked
        asked += 1
        await asyncio.Event().wait()

    assert await find_outcome(hang, await client.begin()) == "unknown"
    assert asked == 1


# --- a crash, after which the server gives ids again that it had given before ---

async def crash(server: EmbeddedPostgres, client: Client) -> None:
    """One process of the server dies; it starts anew from what was on its disk."""
    victim = await client.connect()
    os.kill(victim.get_server_pid(), signal.SIGKILL)

    async def is_up_again() -> bool:
        try:
            connection = await client.connect()
        except (asyncpg.PostgresError, OSError):
            return False
        connection.terminate()
        return True

    await until(client.session.is_closed)
    await until(is_up_again)
    victim.terminate()


async def commit_as(client: Client, xact_id: str) -> None:
    """Commit transactions until one of them had this id."""
    connection = await client.connect()
    while int(await connection.fetchval("SELECT pg_current_xact_id()::text")) < int(xact_id):
        pass
    await connection.close()


async def test_transaction_that_crashed_with_its_server_is_aborted(
        server: EmbeddedPostgres, client: Client) -> None:
    commit = await client.begin()
    await crash(server, client)
    assert await client.outcome(commit) == "aborted"


async def id_given_again(server: EmbeddedPostgres, client: Client) -> None:
    """Another transaction got the id and was committed: that says nothing about the one that asks."""
    commit = await client.begin()
    await crash(server, client)
    await commit_as(client, commit.xact_id)
    connection = await client.connect()
    assert await get_status(connection, commit) == "committed"  # of the other one
    connection.terminate()
    assert await client.outcome(commit) == "unknown", "an id was taken for that of another transaction"


async def test_id_that_was_given_again_after_a_crash_is_not_believed(
        server: EmbeddedPostgres, client: Client) -> None:
    await id_given_again(server, client)


@pytest.mark.mutant("M17", "an id believed that the server gave again after a crash")
async def test_m17_id_given_again_and_believed_is_caught(
        server: EmbeddedPostgres, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    async def get_the_same(conn: Any) -> datetime:
        return client.session.counted_since  # type: ignore[no-any-return]

    monkeypatch.setattr(outcomes, "get_counted_since", get_the_same)
    with pytest.raises(AssertionError, match="an id was taken for that of another transaction"):
        await id_given_again(server, client)
