"""Everything that has to be done from time to time, by one worker of all: housekeeping, checks, reading back.

The turn saves work; nothing depends on it.  Each step is safe beside another one who does the same.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from service import metrics
from service.db import checks, damage
from service.db.pool import Database
from service.db.turns import Turns
from service.domain.clocks import Clocks
from service.domain.consistency import Consistency
from service.domain.housekeeping import Housekeeping
from service.domain.leftovers import Leftovers
from service.domain.pairing import Pairing
from service.domain.scrub import DETAILS, Scrub, Throttle
from service.domain.strays import Strays, TooManyStrays
from service.errors import ServiceError, Unavailable
from service.storage.base import Inspector

log = structlog.get_logger()

TURN = "upkeep"
HOUR_SECONDS = 3600.0
DAY_SECONDS = 86400.0
MOST_LINES = 20  # of the log, for each check; the gauges have the numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Pacing:
    """How often a round begins, in seconds; how many bytes are read back in a second, 0: none."""

    round_seconds: float = 600.0
    scrub_rate: int = 2**25


class Upkeep:
    """One worker's part in it: most of the time to see that another worker does it."""

    def __init__(self, database: Database, inspector: Inspector, turns: Turns, housekeeping: Housekeeping, *,
                 quarantine_days: int, pacing: Pacing = Pacing()) -> None:
        self._database = database
        self._turns = turns
        self._housekeeping = housekeeping
        self._pacing = pacing
        self._clocks = Clocks(database)
        self._pairing = Pairing(database, inspector)
        self._leftovers = Leftovers(inspector)
        self._strays = Strays(database, inspector, quarantine_days=quarantine_days)
        self._scrub = Scrub(database, inspector)
        self._consistency = Consistency(database)
        self._is_held = self._is_older = self._is_timeless = True  # until that was looked at

    async def run(self) -> None:
        """Wait for the turn, do the work while it lasts; returns never."""
        while True:
            await asyncio.sleep(self._pacing.round_seconds)
            try:
                await self.take_turn()
            except ServiceError as error:
                log.warning("upkeep.ended", reason=str(error))
            except Exception as error:  # whatever it was: the log has it, and the next try may go better
                log.error("upkeep.ended", exc_info=error)

    async def take_turn(self) -> None:
        """Return if another worker has the turn; else work until the turn is lost."""
        async with self._turns.take(TURN) as turn:
            if turn is None:
                return
            log.info("upkeep.begun")
            work = [self._repeat(self.round), self._repeat(self.look), turn.until_lost()]
            if self._pacing.scrub_rate:
                work.append(self._read_back())
            tasks = [asyncio.ensure_future(part) for part in work]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        raise Unavailable("The connection that held the turn has ended.")

    async def _repeat(self, work: Callable[[], Awaitable[object]]) -> None:
        while True:
            await work()
            await asyncio.sleep(self._pacing.round_seconds)

    async def _read_back(self) -> None:
        pace = Throttle(self._pacing.scrub_rate)
        count = 0

        async def verify() -> None:
            nonlocal count
            count = await self._scrub.verify_due(pace, may_move=not self._is_held)

        await self._find_objections()  # or nothing that the first batch finds would be set aside
        while True:
            if not await self._step("verify", verify) or not count:
                await asyncio.sleep(self._pacing.round_seconds)

    # --- rounds ---

    async def round(self) -> bool:
        """Remove what has to go, unless there is an objection; whether nothing went wrong."""
        steps = [await self._find_objections()]
        if not self._is_held:
            steps += [await self._step("housekeeping", lambda: self._housekeeping.run(by_age=not self._is_timeless)),
                      await self._if_due("leftovers", HOUR_SECONDS, self._remove_leftovers)]
        metrics.count_sweep("ok" if all(steps) else "failed")
        return all(steps)

    async def look(self) -> bool:
        """Check what is due, which may take long; whether nothing went wrong."""
        return all([
            await self._find_objections(),
            await self._if_due("walk", DAY_SECONDS, self._walk),
            await self._if_due("sizes", DAY_SECONDS, lambda: self._scrub.check_sizes(may_move=not self._is_held)),
            await self._if_due("rows", DAY_SECONDS, self._check_rows),
            await self._step("metrics", self._show_damage)])

    async def _find_objections(self) -> bool:
        """Look whether there is a reason to remove nothing, or nothing by its age; not to know is one.

        Whether nothing went wrong.
        """
        found: dict[str, str | None] = {}

        async def ask(name: str, question: Callable[[], Awaitable[str | None]]) -> None:
            found[name] = await question()

        steps = [await self._step("pairing", lambda: ask("pairing", self._pairing.confirm)),
                 await self._step("strays", lambda: ask("strays", self._strays.find_objection)),
                 await self._step("clocks", lambda: ask("clocks", self._clocks.find_objection))]
        for name in ("pairing", "strays", "clocks"):
            reason = found.get(name, "it could not be found out whether anything may be removed")
            metrics.HELD.labels(name).set(reason is not None)
            if reason is not None:
                log.error("removals.held", reason=reason)
        self._is_older = found.get("pairing", "") is not None
        self._is_held = self._is_older or found.get("strays", "") is not None
        self._is_timeless = found.get("clocks", "") is not None
        return all(steps)

    async def _step(self, name: str, work: Callable[[], Awaitable[object]]) -> bool:
        """Do it; what goes wrong is logged, and does not keep the other steps.  Whether nothing did."""
        try:
            await work()
            return True
        except Exception as error:  # whatever it was: the next round tries again
            log.error("upkeep.failed", step=name, exc_info=error)
            return False

    async def _if_due(self, name: str, every_seconds: float, work: Callable[[], Awaitable[int]]) -> bool:
        async def step() -> None:
            async with self._database.connection() as conn:
                if not await checks.is_due(conn, name, every_seconds=every_seconds):
                    return
            found = await work()
            async with self._database.connection() as conn:
                await checks.set_finished(conn, name, found)
            metrics.LAST_CHECK.labels(name).set_to_current_time()
            log.info("check.finished", check=name, findings=found)

        return await self._step(name, step)

    async def _remove_leftovers(self) -> int:
        return len(await self._leftovers.remove(await self._leftovers.find()))

    async def _walk(self) -> int:
        """Look for files without a row, and deal with those that were seen before."""
        walk = await self._strays.walk()
        await self._strays.note(walk)
        metrics.FINDINGS.labels("stray").set(len(walk.strays))
        metrics.FINDINGS.labels("foreign").set(len(walk.foreign))
        metrics.FINDINGS.labels("quarantine").set(len(walk.quarantined))
        for finding in (await self._strays.describe(walk))[:MOST_LINES]:
            log.warning("check.finding", kind=finding.kind, subject=finding.subject, detail=finding.detail)
        if not self._is_older and not self._is_timeless:
            try:
                metrics.SWEPT.labels("strays").inc(len((await self._strays.treat(walk)).removed))
                metrics.HELD.labels("strays").set(0)
            except TooManyStrays as error:
                self._is_held = True
                metrics.HELD.labels("strays").set(1)
                log.error("removals.held", reason=str(error))
        return len(walk.strays)

    async def _check_rows(self) -> int:
        """Count everything anew; only the sweep's list is made good without being asked."""
        findings = await self._consistency.find()
        for kind in ("usage", "tree", "version", "unmarked"):
            metrics.FINDINGS.labels(kind).set(sum(finding.kind == kind for finding in findings))
        for finding in findings[:MOST_LINES]:
            log.error("check.finding", kind=finding.kind, subject=finding.subject, detail=finding.detail)
        if not self._is_held:
            await self._consistency.repair_marks()
        return len(findings)

    async def _show_damage(self) -> None:
        async with self._database.connection() as conn:
            counts = await damage.count_damage(conn)
        for kind in DETAILS:
            metrics.FINDINGS.labels(kind).set(counts.get(kind, 0))
