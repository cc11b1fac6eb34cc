"""What the tests of power cuts are worth: a service with a known mistake does not pass them (M1, M2, M3, M14).

Each scenario is run with the service as it is, and with the mistake.  PostgreSQL lies on another disk than the bytes:
on the same one its own fsync would carry the service's forgotten ones along.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import asyncpg
import pytest

from tests.faults.clients import Account
from tests.faults.examine import examine
from tests.faults.ledger import body_of
from tests.faults.machine import MKFS
from tests.faults.recorder import Damage, Recorder
from tests.faults.sites import Layout, Site, open_site

Scenario = Callable[[Site, Account], Awaitable[None]]
TRIES = 5  # the kernel or PostgreSQL may happen to write by itself in that very moment
BODY_BYTES = 20_000


async def cut_after_the_answer(site: Site, account: Account) -> None:
    """The power fails in the moment that an upload is answered."""
    account.ledger.on_acknowledged = site.cut
    await account.put("/file", body_of(account.api.username, BODY_BYTES))
    assert account.ledger.acknowledged == 1
    await asyncio.to_thread(site.end)


async def cut_when_the_row_is_there(site: Site, account: Account) -> None:
    """The power fails in the moment that others can see a row; the disk is slow to give bytes their place."""
    connection = await asyncpg.connect(site.stack.dsn)
    count = "SELECT count(*) FROM versions"
    before = await connection.fetchval(count)
    upload = asyncio.create_task(account.put("/file", body_of(account.api.username, BODY_BYTES)))
    async with asyncio.timeout(60):
        while await connection.fetchval(count) == before:
            await asyncio.sleep(0.005)
    site.cut()
    await connection.close()
    await asyncio.to_thread(site.end)
    await upload


CASES: list[tuple[str, Layout, Scenario, str, str]] = [
    ("m1", "bytes", cut_after_the_answer, "", "torn"), ("m2", "bytes", cut_after_the_answer, "", "dangling"),
    ("m3", "bytes", cut_when_the_row_is_there, "slow_place", "dangling"),
    ("m14", "postgres", cut_after_the_answer, "", "lost")]
cases = pytest.mark.parametrize(("mutant", "layout", "scenario", "more", "harm"), [
    pytest.param(*case, id=case[0], marks=pytest.mark.mutant(case[0].upper(), what))
    for case, what in zip(CASES, ("no fsync of files", "no fsync of folders", "commit before placement",
                                  "synchronous_commit off"), strict=True)])


async def damage_of(site: Site, session: aiohttp.ClientSession, scenario: Scenario, faults: str) -> Damage:
    """What one cut does to a service with these faults."""
    if site.stack.process is not None:
        await asyncio.to_thread(site.stack.stop)
    await asyncio.to_thread(site.start, faults=faults)
    account = await Account.open(session, site.stack)
    await scenario(site, account)
    await asyncio.to_thread(site.power_on)
    if site.stack.process is not None:
        await asyncio.to_thread(site.stack.kill)
    await asyncio.to_thread(site.start)
    damage, _ = await examine([account], site.stack.dsn, site.stack.root)
    return damage


@pytest.mark.parametrize("kind", sorted(MKFS))
@cases
async def test_mistake_is_caught_by_a_power_cut(
        tmp_path: Path, session: aiohttp.ClientSession, recorder: Recorder, kind: str, mutant: str, layout: Layout,
        scenario: Scenario, more: str, harm: str) -> None:
    with open_site(tmp_path, kind, layout) as site:
        assert not await damage_of(site, session, scenario, more), "the service as it is does not pass"
        for number in range(TRIES):
            # in this order: M3 then has what is slow
            damage = await damage_of(site, session, scenario, f"{more} {mutant}")
            if damage:
                break
    assert getattr(damage, harm), f"{mutant} was not caught by what it does: {damage}"
    recorder.line(f"mutant {mutant.upper()}", f"{kind}, {layout}", note=f"caught in round {number + 1}: {damage}")
