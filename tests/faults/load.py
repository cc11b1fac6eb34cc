"""Writers and readers on a running service, while a test does something to it; afterwards all books are compared."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp

from service.run import processes
from tests.faults.clients import Account, Writer
from tests.faults.examine import examine
from tests.faults.ledger import body_of
from tests.faults.readers import Reader
from tests.faults.recorder import Line
from tests.faults.sites import FaultyStack

ACCOUNTS, WRITERS, READERS = 2, 2, 1
AT_ONCE = ACCOUNTS * WRITERS + 1  # changes that may be under way, the probe's among them
CALM_CHANGES = 12  # so many are acknowledged between two faults
PATIENCE_SECONDS = 90.0
PROBE_SECONDS = 0.05
PAUSE_SECONDS = 0.05
IN_A_ROW = 8


@dataclass
class Load:
    """What is going on."""

    stack: FaultyStack
    line: Line
    accounts: list[Account]
    readers: list[Reader]
    probe: Account
    _probes: int = 0

    @property
    def acknowledged(self) -> int:
        """Changes of all writers."""
        return sum(account.ledger.acknowledged for account in self.accounts)

    @property
    def in_doubt(self) -> int:
        """Changes that had no clear answer, and tries of those that were sent again."""
        return sum(account.ledger.in_doubt + account.ledger.tries_in_doubt for account in (*self.accounts, self.probe))

    @property
    def unanswered(self) -> int:
        """Looks that had none."""
        return sum(reader.unanswered for reader in self.readers)

    async def calm(self) -> None:
        """Until all workers are there and some more changes have been acknowledged."""
        assert await asyncio.to_thread(processes.wait_until, self.stack.all_workers_listen, PATIENCE_SECONDS)
        goal = self.acknowledged + CALM_CHANGES
        async with asyncio.timeout(PATIENCE_SECONDS):
            while self.acknowledged < goal:
                await asyncio.sleep(PROBE_SECONDS)

    async def try_change(self) -> int:
        """One small upload of our own; its status, 0 without an answer."""
        self._probes += 1
        reply = await self.probe.put(f"/{self._probes}", body_of(f"{self.probe.api.username}{self._probes}", 100))
        return reply.status if reply is not None else 0

    async def inject(self, fault: Callable[[], Awaitable[object]]) -> None:
        """Do it once, amid the load, and wait until changes are acknowledged again, several in a row."""
        await self.calm()
        await fault()
        self.line.injected += 1
        began = again = time.monotonic()
        in_a_row = 0
        async with asyncio.timeout(PATIENCE_SECONDS):
            while in_a_row < IN_A_ROW:
                in_a_row = in_a_row + 1 if await self.try_change() == 201 else 0
                if in_a_row == 0:
                    again = time.monotonic()
                await asyncio.sleep(PROBE_SECONDS)
        self.line.recovered(again - began)


@asynccontextmanager
async def under_load(stack: FaultyStack, session: aiohttp.ClientSession, line: Line,
                     *, allowed: tuple[str, ...] = ()) -> AsyncIterator[Load]:
    """Load while the context lasts, then the comparison; the figures go to the line.

    `allowed` are statuses that clients may be refused with meanwhile.
    """
    accounts = [await Account.open(session, stack) for _ in range(ACCOUNTS)]
    load = Load(stack, line, accounts, [Reader(account, 1) for account in accounts * READERS],
                await Account.open(session, stack))
    stop = asyncio.Event()
    tasks = [asyncio.create_task(Writer(account, f"/w{number}", number).run(stop, pause_seconds=PAUSE_SECONDS))
             for account in accounts for number in range(WRITERS)]
    tasks += [asyncio.create_task(reader.run(stop, pause_seconds=PAUSE_SECONDS)) for reader in load.readers]
    try:
        yield load
        await load.calm()
    finally:
        stop.set()
        await asyncio.gather(*tasks)
        line.acknowledged += load.acknowledged + load.probe.ledger.acknowledged
        line.in_doubt += load.in_doubt
    wrong = [words for reader in load.readers for words in reader.wrong]
    line.lost += len(wrong)
    damage, words = await examine([*accounts, load.probe], stack.dsn, stack.root)
    line.add(damage)
    assert not wrong and not damage, wrong + words
    refused = [words for account in (*accounts, load.probe) for words in account.ledger.refused]
    refused = [words for words in refused if not any(f": {status} " in words for status in allowed)]
    assert not refused, refused
