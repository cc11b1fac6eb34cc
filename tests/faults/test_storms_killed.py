"""Storms with a fault in their middle (F16 with F1, F6 and F7): all answers still fit one order.

What had no clear answer may have happened at any later time, or not at all.  The seed that a failure names replays
what the clients ask for: STORM_SEED=.  `make test-faults T=tests/faults/test_storms_killed.py MINUTES=10` goes on for
so long with each of the two tests, all faults by turns.
"""

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from service.run import processes
from tests.client import until
from tests.domain.commit_proxy import CommitProxy, open_proxy
from tests.faults.clients import client_session
from tests.faults.examine import check_invariants
from tests.faults.linearizability import Operation, is_linearizable
from tests.faults.machine import descendants, kill
from tests.faults.recorder import Line, Recorder
from tests.faults.sites import FaultyStack, own_postgres
from tests.faults.storm import EMPTY, PATIENCE_SECONDS, TURNS, Storm

SETTINGS = {"ACCESS_TOKEN_TTL": "86400"}
OBJECTS, CLIENTS = 4, 5  # pairs of paths, each in an account of its own; what is in doubt makes the judge's work longer
MOMENTS = (0.3, 0.6)  # the faults come when so much of the turns is done
SEED = int(os.environ.get("STORM_SEED") or random.SystemRandom().randrange(10**6))


@dataclass
class Site:
    """A running service, with a proxy in front of its PostgreSQL or without."""

    stack: FaultyStack
    proxy: CommitProxy | None = None

    async def start(self) -> None:
        """Again, after it was killed."""
        await asyncio.to_thread(self.stack.start)

    def is_well(self) -> bool:
        """Whether all of it is there."""
        return self.stack.is_ready() and self.stack.all_workers_listen()


def _postgres(stack: FaultyStack) -> int:
    return int((stack.root / "postgres" / "postmaster.pid").read_text(encoding="utf-8").split()[0])


async def worker_killed(site: Site) -> None:
    """One that answers; the next one takes its place."""
    await kill(site.stack.workers()[:1])


async def service_killed(site: Site) -> None:
    """Everything is gone at once, and is started again."""
    await asyncio.to_thread(site.stack.kill)
    await site.start()


async def nginx_worker_killed(site: Site) -> None:
    """One that moves bytes."""
    await kill(site.stack.nginx()[1:2])


async def backend_killed(site: Site) -> None:
    """One connection's process; PostgreSQL then ends all others and recovers."""
    await kill(descendants(_postgres(site.stack))[-1:])


async def postgres_restarted(site: Site) -> None:
    """Stopped with -m immediate; the supervisor starts it again."""
    await kill([_postgres(site.stack)], signal.SIGQUIT)


async def _cut(site: Site, moment: str) -> None:
    assert site.proxy is not None
    lost = site.proxy.lost
    site.proxy.arm(moment)  # type: ignore[arg-type]
    await until(lambda: site.proxy is None or site.proxy.lost > lost)


async def cut_before_commit(site: Site) -> None:
    """A COMMIT never reaches PostgreSQL."""
    await _cut(site, "before")


async def cut_after_commit(site: Site) -> None:
    """The answer to a COMMIT never reaches the service."""
    await _cut(site, "after")


Fault = Callable[[Site], Awaitable[None]]
OWN: list[Fault] = [worker_killed, service_killed, nginx_worker_killed, backend_killed, postgres_restarted]
PROXIED: list[Fault] = [cut_before_commit, cut_after_commit]


@pytest.fixture(scope="module")
def own_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """As `make run` starts it."""
    stack = FaultyStack(tmp_path_factory.mktemp("killed") / "data", dict(SETTINGS))
    with stack.running():
        yield Site(stack)


@pytest.fixture
async def proxied_site(tmp_path: Path) -> AsyncIterator[Site]:
    """With a PostgreSQL of its own, behind a proxy."""
    with own_postgres(tmp_path) as postgres:
        async with open_proxy(postgres.server.dsn()) as (proxy, dsn):
            stack = FaultyStack(tmp_path / "data", SETTINGS | {"DATABASE_URL": dsn})
            try:
                await asyncio.to_thread(stack.start)
                yield Site(stack, proxy)
            finally:
                if stack.process is not None:
                    await asyncio.to_thread(stack.stop)


async def rage(site: Site, fault: Fault, seed: int, line: Line) -> list[Operation]:
    """Storms with the fault in their middle; their histories, the first of which without an order is returned."""
    async with client_session() as session:
        storms = [await Storm.prepare(session, site.stack, seed * 10 + each, CLIENTS)
                  for each in range(OBJECTS)]
        raging, before = asyncio.gather(*(each.rage() for each in storms)), line.injected
        for moment in MOMENTS:
            goal = moment * OBJECTS * CLIENTS * TURNS
            await until(lambda: raging.done() or sum(each.turns for each in storms) >= goal, seconds=PATIENCE_SECONDS)
            if raging.done():  # while the fault before was mended: there is one at least
                break
            began = time.monotonic()
            await fault(site)
            line.injected += 1
            assert await asyncio.to_thread(processes.wait_until, site.is_well, PATIENCE_SECONDS)
            line.recovered(time.monotonic() - began)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await raging
    assert line.injected > before, "the storm was over before its fault came"
    for each in storms:
        assert (each.wrong, each.unavailable) == ([], 0)
        line.acknowledged += sum(operation.is_certain and operation.kind in ("put", "delete", "move")
                                 for operation in each.history)
        line.in_doubt += sum(not operation.is_certain for operation in each.history)
        if not await asyncio.to_thread(is_linearizable, each.history, EMPTY):
            line.lost += 1
            return each.history
    return []


async def repeat(site: Site, faults: list[Fault], recorder: Recorder, rounds: int, minutes: float) -> None:
    """Each fault so many rounds; with minutes, all by turns until they are over."""
    lines = {fault: recorder.line(f"F16 storm, {fault.__name__.replace('_', ' ')}", note=f"seed {SEED}")
             for fault in faults}
    end, number = time.monotonic() + 60 * minutes, 0
    while time.monotonic() < end if minutes else number < rounds * len(faults):
        fault, seed = faults[number % len(faults)], SEED + number // len(faults)
        history = await rage(site, fault, seed, lines[fault])
        assert not history, f"no legal order; STORM_SEED={seed}, {fault.__name__}: {history}"
        number += 1
    in_doubt = sum(line.in_doubt for line in lines.values())
    if site.proxy is None:  # a start removes what killed workers had in staging
        await asyncio.to_thread(site.stack.stop)
        await asyncio.to_thread(site.stack.start)
    await check_invariants(site.stack.dsn, site.stack.root, max_strays=in_doubt)


@pytest.fixture
def minutes() -> float:
    """How long the storms of a kind go on: MINUTES= of `make test-faults`; 0: so many rounds."""
    return float(os.environ.get("MINUTES") or 0)


async def test_storms_with_kills_have_an_order(
        own_site: Site, recorder: Recorder, rounds: int, minutes: float) -> None:
    await repeat(own_site, OWN, recorder, rounds, minutes)


async def test_storms_with_lost_commits_have_an_order(
        proxied_site: Site, recorder: Recorder, rounds: int, minutes: float) -> None:
    await repeat(proxied_site, PROXIED, recorder, rounds, minutes)


# --- mistakes of the service that the storms are there to find ---

@pytest.mark.mutant("M14", "COMMIT that does not wait for the disk")
async def test_commits_that_do_not_wait_for_the_disk_are_caught(tmp_path: Path) -> None:
    await _catch(tmp_path, "m14", postgres_restarted)


MUTANT_ROUNDS = 15


async def _catch(folder: Path, word: str, fault: Fault) -> None:
    stack = FaultyStack(folder / "data", dict(SETTINGS), faults=word)
    await asyncio.to_thread(stack.start)
    try:
        for number in range(MUTANT_ROUNDS):
            if await rage(Site(stack), fault, number, Line(word, "")):
                return
    finally:
        await asyncio.to_thread(stack.stop)
    raise AssertionError(f"{MUTANT_ROUNDS} storms of a service with {word} have an order")
