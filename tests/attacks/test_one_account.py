"""Attack 20: one account that keeps many of its own changes waiting for each other, to use up what all others need."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from uuid import UUID

import asyncpg
import pytest

from service.config import Config
from service.db.files import lock_tree
from service.model import UserId
from tests.client import Api, until
from tests.stack import Stack

SIZE, WORKERS = int(Config.model_fields["database_pool_size"].default), 2
CONNECTIONS, MAX_WAITING = WORKERS * SIZE, WORKERS * (SIZE // 3)
LARGE = bytes(70_000)  # a transaction by itself
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND wait_event = 'advisory'"


@pytest.fixture
def stack(nginx_stack: Stack) -> Stack:
    """With nginx, and as many workers as usual."""
    return nginx_stack


@asynccontextmanager
async def locked_tree(api: Api) -> AsyncIterator[Callable[[], Awaitable[int]]]:
    """A change of the account's tree that takes as long as the context; how many wait for it."""
    user_id = UserId(UUID((await api.call("GET", "/auth/me", expect=200)).json["id"]))
    holder, observer = [await asyncpg.connect(api.stack.dsn) for _ in range(2)]
    transaction = holder.transaction()
    await transaction.start()
    await lock_tree(holder, user_id)

    async def count() -> int:
        return int(await observer.fetchval(WAITING))

    try:
        yield count
    finally:
        await transaction.rollback()
        await holder.close()
        await observer.close()


async def test_changes_of_one_account_that_wait_leave_connections_to_everybody(
        api: Api, other_account: Callable[[], Awaitable[Api]]) -> None:
    other = await other_account()
    await other.put("/here", b"here", expect=201)
    async with locked_tree(api) as count:
        moves = [asyncio.ensure_future(api.call("POST", "/file/move", json={"from": f"/{n}", "to": f"/x/{n}"}))
                 for n in range(2 * CONNECTIONS)]

        async def is_full() -> bool:
            return await count() == MAX_WAITING

        await until(is_full)
        for number in range(CONNECTIONS):
            assert (await other.get("/here")).body == b"here"
            await other.put(f"/{number}", LARGE, expect=201)
            await other.call("POST", "/file/move", json={"from": f"/{number}", "to": f"/moved/{number}"}, expect=200)
        assert await count() == MAX_WAITING
        # what only reads is not kept waiting by the account's own changes either
        await api.call("GET", "/file/usage_memory", expect=200)
        replies = asyncio.gather(*moves)
    for reply in await replies:
        assert reply.status == 404 or (reply.status == 503 and int(reply.headers["Retry-After"]) > 0)
    listed = {file["path"]: file["sha256"] for file in await other.list()}
    assert listed == {"/here": hashlib.sha256(b"here").hexdigest()} | {
        f"/moved/{number}": hashlib.sha256(LARGE).hexdigest() for number in range(CONNECTIONS)}
