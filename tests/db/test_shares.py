"""How much of the pool is whose: long requests leave half of it to others, and one account two thirds of it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from service.db import pool
from service.db.pool import Connection, Database
from service.errors import Unavailable
from service.model import UserId, new_uuid
from service.run.postgres import EmbeddedPostgres


def new_account() -> UserId:
    """Somebody."""
    return UserId(new_uuid())


@asynccontextmanager
async def opened(server: EmbeddedPostgres, size: int) -> AsyncIterator[Database]:
    """A pool of so many connections, which is closed whatever becomes of the test."""
    database = await Database.open(server.dsn("postgres"), size=size)
    try:
        yield database
    finally:
        await database.close()


async def test_long_requests_leave_half_of_the_connections_to_others(
        postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "ACQUIRE_SECONDS", 1.0)
    async with opened(postgres, size=4) as database:
        begun, go = asyncio.Semaphore(0), asyncio.Event()

        async def take_long() -> None:
            async with database.lane(new_account()), database.connection():
                begun.release()
                await go.wait()

        long = [asyncio.ensure_future(take_long()) for _ in range(2)]
        for _ in long:
            await begun.acquire()
        with pytest.raises(Unavailable) as caught:
            await take_long()
        assert caught.value.retry_after_seconds
        await asyncio.gather(database.ping(), database.ping())
        waiting = asyncio.ensure_future(take_long())
        go.set()
        await asyncio.gather(*long, waiting)


async def test_one_account_has_its_share_of_transactions_and_of_long_requests(
        postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "ACQUIRE_SECONDS", 1.0)
    async with opened(postgres, size=6) as database:
        account, other = new_account(), new_account()
        begun, go = asyncio.Semaphore(0), asyncio.Event()

        async def wait(conn: Connection) -> None:
            begun.release()
            await go.wait()

        async def take_long(account: UserId) -> None:
            async with database.lane(account):
                begun.release()
                await go.wait()

        changes = [asyncio.ensure_future(database.in_transaction(wait, share=account)) for _ in range(2)]
        long = [asyncio.ensure_future(take_long(each)) for each in (account, other)]
        for _ in [*changes, *long]:
            await begun.acquire()
        for one_more, why in ((database.in_transaction(wait, share=account), "of this account"),
                              (take_long(account), "long requests")):
            with pytest.raises(Unavailable, match=why) as caught:
                await one_more
            assert caught.value.retry_after_seconds
        waiting = [asyncio.ensure_future(database.in_transaction(wait, share=other)),
                   asyncio.ensure_future(database.in_transaction(wait))]
        for _ in waiting:
            await begun.acquire()
        assert database.usage()[1] == len(changes) + len(waiting)
        late = asyncio.ensure_future(database.in_transaction(wait, share=account))
        go.set()
        await asyncio.gather(*changes, *long, *waiting, late)
        assert not database._shares._shares and not database._lane_shares._shares  # nobody is remembered for ever
