"""Everything that can be checked, once, now; and what of it can be made good without losing anything."""

from dataclasses import replace
from uuid import UUID

from service.db import damage
from service.db.pool import Database
from service.domain import leftovers
from service.domain.consistency import Consistency
from service.domain.findings import Finding, Progress, Report, no_progress
from service.domain.leftovers import Leftovers
from service.domain.pairing import Pairing
from service.domain.scrub import Scrub
from service.domain.strays import SETTLE_SECONDS, Strays, TooManyStrays, Walk
from service.model import UserId
from service.storage.base import Inspector

QUARANTINE_DAYS = 7


class Check:
    """Looks at everything; safe beside a service that is running, and beside another check."""

    def __init__(self, database: Database, inspector: Inspector, *, quarantine_days: int = QUARANTINE_DAYS,
                 settle_seconds: float = SETTLE_SECONDS, leftover_seconds: float = leftovers.AGE_SECONDS) -> None:
        self._database = database
        self._inspector = inspector
        self._pairing = Pairing(database, inspector)
        self._consistency = Consistency(database)
        self._leftovers = Leftovers(inspector, age_seconds=leftover_seconds)
        self._scrub = Scrub(database, inspector)
        self._strays = Strays(database, inspector, quarantine_days=quarantine_days, settle_seconds=settle_seconds)

    async def run(self, *, reads: bool = True, repairs: bool = False, takes_many: bool = False,
                  progress: Progress = no_progress) -> Report:
        """Check everything; `reads`: every byte too, `repairs`: make good what can be, `takes_many`: strays as well.

        Without `repairs` nothing is changed.  With it, no row that names lost bytes is touched: such are reported with
        the files concerned.  `progress` is told what is being done, how far, of how much.
        Raises OSError and Unavailable if it could not look everywhere.
        """
        report = Report()
        is_held = await self._check_pairing(report, repairs)
        await self._check_rows(report, repairs, progress)
        await self._check_leftovers(report, repairs and not is_held)
        walk, findings = await self._check_strays(report, progress)
        if repairs:
            repaired = await self._treat(report, walk, takes_many=takes_many, is_held=is_held)
            findings = [replace(finding, is_repaired=finding.subject in repaired) for finding in findings]
        report.findings += findings
        await self._check_blobs(report, reads, repairs, repairs and not is_held, progress)
        return report

    async def _check_pairing(self, report: Report, repairs: bool) -> bool:
        objection = await (self._pairing.confirm() if repairs else self._pairing.find_objection())
        if objection is not None:
            report.findings.append(Finding(kind="held", subject="data root",
                                           detail=f"nothing is removed, since {objection}"))
        return objection is not None

    async def _check_rows(self, report: Report, repairs: bool, progress: Progress) -> None:
        progress("rows", 0, 0)
        for finding in await self._consistency.find():
            if repairs and finding.kind == "usage":
                await self._consistency.repair_usage(UserId(UUID(finding.subject)))
                finding = replace(finding, is_repaired=True)
            elif repairs and finding.kind == "unmarked":
                finding = replace(finding, is_repaired=True)
            report.findings.append(finding)
        if repairs:
            await self._consistency.repair_marks()

    async def _check_leftovers(self, report: Report, may_remove: bool) -> None:
        found = await self._leftovers.find()
        removed = await self._leftovers.remove(found) if may_remove else []
        report.findings += [leftovers.describe(leftover, is_repaired=leftover in removed) for leftover in found]

    async def _check_strays(self, report: Report, progress: Progress) -> tuple[Walk, list[Finding]]:
        walk = await self._strays.walk(progress)
        report.files_on_disk = walk.files
        report.in_quarantine = len(walk.quarantined)
        findings = await self._strays.describe(walk)
        findings += [Finding(kind="quarantine", subject=str(key), detail="it was set aside, and is what a row names")
                     for key in walk.quarantined if await self._strays.belongs_back(key)]
        return walk, findings

    async def _treat(self, report: Report, walk: Walk, *, takes_many: bool, is_held: bool) -> set[str]:
        """What was made good."""
        await self._strays.note(walk)
        if is_held:
            return set()
        try:
            done = await self._strays.treat(walk, takes_many=takes_many)
        except TooManyStrays as error:
            report.findings.append(Finding(kind="held", subject="blobs",
                                           detail=f"nothing is removed: {error}; if they are right, add --many"))
            return set()
        return {str(key) for key in (*done.set_aside, *done.put_back)}

    async def _check_blobs(self, report: Report, reads: bool, may_note: bool, may_move: bool,
                           progress: Progress) -> None:
        async with self._database.connection() as conn:
            count, size_bytes = await damage.count_blobs(conn)

        async def pace(length: int) -> None:
            report.bytes_read += length
            progress("bytes", report.bytes_read, max(size_bytes, report.bytes_read))

        async for page in self._scrub.expected():
            async for blob, kind in self._scrub.look_at(page, pace if reads else None):
                if kind is not None:
                    report.findings.append(await self._scrub.describe(blob, kind))
                if may_note:
                    await self._scrub.note(blob, kind, may_move=may_move)
            report.blobs += len(page)
            if not reads:
                progress("blobs", report.blobs, max(count, report.blobs))
