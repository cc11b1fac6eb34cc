"""After load nothing is left (I18): no open file of somebody's bytes, no transaction, nothing staged or spooled."""

import asyncio
import os
from collections.abc import Iterator

import aiohttp
import asyncpg
import pytest

from tests.client import until
from tests.faults.clients import Account
from tests.faults.examine import everything_holds, leftovers
from tests.faults.ledger import body_of, digest_of
from tests.faults.load import under_load
from tests.faults.recorder import Recorder
from tests.faults.sites import FaultyStack
from tests.open_files import open_files

CHANGES = 150
CALLS_OFF, HANG_UP_SECONDS = 20, 0.004
BODY_BYTES = 5_000_000


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyStack]:
    """A service to which nothing happens but requests."""
    stack = FaultyStack(tmp_path_factory.mktemp("leaks") / "data", {"ACCESS_TOKEN_TTL": "86400"})
    with stack.running():
        yield stack


async def busy_connections(dsn: str) -> int:
    """How many connections are in a transaction, ours aside."""
    connection = await asyncpg.connect(dsn)
    try:
        return int(await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state <> 'idle' "
            "AND pid <> pg_backend_pid() AND backend_type = 'client backend'"))
    finally:
        await connection.close()


async def nothing_is_left(stack: FaultyStack) -> None:
    """Soon; AssertionError if it never comes true."""
    await until(lambda: open_files(stack.workers(), stack.root) == [])
    await until(lambda: leftovers(stack.root) == (0, 0))

    async def is_quiet() -> bool:
        return await busy_connections(stack.dsn) == 0

    await until(is_quiet)


async def test_nothing_is_left_after_load(
        stack: FaultyStack, session: aiohttp.ClientSession, recorder: Recorder) -> None:
    line = recorder.line("I18 load, and clients that hang up")
    account = await Account.open(session, stack)
    body = body_of(account.api.username, BODY_BYTES)
    await account.put("/large", body)
    async with under_load(stack, session, line) as load:
        for number in range(CALLS_OFF):
            account.ledger.begin({f"/off-{number}": digest_of(body)})  # whoever hangs up is not told what became of it
            for method, address in (("PUT", f"/file?path=/off-{number}"), ("GET", "/file/archive?path=/"),
                                    ("GET", "/file/download?path=/large")):
                task = asyncio.create_task(account.api.call(method, address, data=body if method == "PUT" else None))
                await asyncio.sleep(HANG_UP_SECONDS * number)  # at another moment each time
                task.cancel()
                await asyncio.wait([task])
        async with asyncio.timeout(120):
            while load.acknowledged < CHANGES:
                await asyncio.sleep(0.05)
    await nothing_is_left(stack)
    line.acknowledged += account.ledger.acknowledged
    line.in_doubt += account.ledger.in_doubt
    await everything_holds(line, [account], stack.dsn, stack.root)
    line.note = "no open file, no transaction, nothing staged or spooled"


async def test_file_that_stays_open_would_be_noticed(stack: FaultyStack) -> None:
    """Our own process holds one: the look finds it."""
    blob = next((stack.root / "blobs").glob("*/*"))
    with blob.open("rb"):
        assert open_files([os.getpid()], stack.root) == [str(blob)]
