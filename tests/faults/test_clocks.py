"""The service's clock is a day before or behind PostgreSQL's (F20): nothing is deleted early, nobody is locked out."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator

import aiohttp
import asyncpg
import pytest

from tests.client import PASSWORD, files_on_disk
from tests.faults.clients import Account
from tests.faults.examine import examine
from tests.faults.faulty_service import clock
from tests.faults.ledger import body_of
from tests.faults.load import under_load
from tests.faults.recorder import Recorder
from tests.faults.sites import FaultyStack

OFFSETS = ("+1d", "-1d")


@pytest.fixture
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyStack]:
    """A service whose clock is right, at first."""
    found = FaultyStack(tmp_path_factory.mktemp("clocks") / "data")
    with found.running():
        yield found


async def is_off(stack: FaultyStack, session: aiohttp.ClientSession) -> float:
    """How many seconds the workers' clock is ahead of PostgreSQL's."""
    account = await Account.open(session, stack)
    made = await account.api.call("POST", "/file/folder", json={"path": "/a"}, expect=201)
    assert made.status == 201
    log = stack.log_text.splitlines()[-1]
    connection = await asyncpg.connect(stack.dsn)
    seconds = await connection.fetchval(
        r"SELECT extract(epoch FROM (substring($1 FROM '\d{4}-\d\d-\d\dT[0-9:.]+') || 'Z')::timestamptz - now())", log)
    await connection.close()
    return float(seconds)


async def log_in(account: Account) -> None:
    """A new session, by the clock that there is."""
    account.api.token = (await account.api.call("POST", "/auth/jwt/login", json={
        "username": account.api.username, "password": PASSWORD}, expect=200)).json["access_token"]


async def token_is_refused(account: Account, token: str) -> None:
    """One that was issued by another clock is nobody's: a clear answer, from nginx's doors and the workers' own."""
    headers = {"Authorization": f"Bearer {token}"}
    for address in ("/auth/me", "/file/list", "/file/download?path=/5"):
        reply = await account.api.call("GET", address, headers=headers, expect=401)
        assert reply.code == "unauthenticated" and reply.headers["WWW-Authenticate"] == "Bearer"
    reply = await account.api.put("/unasked", b"unasked", headers=headers, expect=401)
    assert reply.code == "unauthenticated"


@pytest.mark.parametrize("offset", OFFSETS)
async def test_clock_that_is_off_by_a_day_deletes_nothing_and_locks_nobody_out(
        stack: FaultyStack, session: aiohttp.ClientSession, recorder: Recorder, monkeypatch: pytest.MonkeyPatch,
        offset: str) -> None:
    line = recorder.line(f"F20 clock of the service {offset}")
    account = await Account.open(session, stack)
    for number in range(6):
        await account.put(f"/{number}", body_of(f"{offset}{number}", 1000))
    for number in range(3):
        await account.delete(f"/{number}", permanent=number > 0)
    await asyncio.to_thread(stack.stop)
    monkeypatch.setenv("CLOCK", offset)
    await asyncio.to_thread(stack.start)
    line.injected += 1
    ahead = await is_off(stack, session)
    assert (ahead > 80_000) if offset.startswith("+") else (ahead < -80_000), f"the clock is off by {ahead} s only"
    await token_is_refused(account, account.api.token)  # it has expired, or comes from the future
    account.api.token = ""
    await log_in(account)
    token_of_then = account.api.token
    async with under_load(stack, session, line) as load:
        await load.calm()
        before = {name for name in files_on_disk(stack) if name.startswith("blobs/")}
        command = [*clock(), sys.executable, "-m", "tests.faults.sweeper", stack.dsn, str(stack.root), "3600"]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, env=dict(os.environ))
        assert done.returncode == 0, done.stderr
        assert before <= files_on_disk(stack), "something was removed before its time"
    damage, words = await examine([account], stack.dsn, stack.root)
    line.add(damage)
    assert not damage, words
    await asyncio.to_thread(stack.stop)
    monkeypatch.delenv("CLOCK")
    await asyncio.to_thread(stack.start)
    await token_is_refused(account, token_of_then)
    await log_in(account)
    damage, words = await examine([account], stack.dsn, stack.root)
    line.add(damage)
    assert not damage, words
    line.acknowledged += account.ledger.acknowledged
