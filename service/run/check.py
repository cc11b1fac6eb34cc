"""The command `check`: domain/check.py on the data root and database of the settings, for a terminal or a script."""

import asyncio
import os
import sys
from collections.abc import Iterator

import asyncpg
import orjson

from service import logs
from service.config import Config
from service.db.damage import Affected
from service.db.pool import Database
from service.domain.check import Check
from service.domain.findings import Finding, Report
from service.errors import ServiceError
from service.run import database, migrate as migrations
from service.run.migrate import MigrationError
from service.run.processes import StartError
from service.run.progress import Progress, format_bytes, printable
from service.storage.inspection import LocalInspector

HEALTHY, UNHEALTHY, UNKNOWN = 0, 1, 2
# what there is to do about what is not repaired
ADVICE = {
    "missing": "restore the file from a backup to blobs/<last two digits>/<key>, or delete the versions named above",
    "size": "restore the file from a backup to blobs/<last two digits>/<key>; what is wrong is in quarantine/ then",
    "digest": "restore the file from a backup to blobs/<last two digits>/<key>; what is wrong is in quarantine/ then",
    "unreadable": "look at the disk, and at who may read the file",
    "stray": "nothing to do: what is still without a row a day after it was first seen is set aside",
    "foreign": "look what it is, and remove it yourself",
    "leftover": "--repair removes it",
    "quarantine": "--repair puts it back",
    "usage": "--repair counts it anew",
    "unmarked": "--repair puts it right",
    "tree": "look at PostgreSQL's log and disk, and restore the last backup that was well",
    "version": "look at PostgreSQL's log and disk, and restore the last backup that was well",
}


def check(config: Config, *, reads: bool, repairs: bool, takes_many: bool, as_json: bool) -> int:
    """Check everything, tell about it on standard output; the exit code: HEALTHY, UNHEALTHY or UNKNOWN."""
    os.umask(0o077)
    logs.configure(config.log_level)
    try:
        _look_before(config)
        with database.reached(config, gives_way=True) as dsn:
            migrations.check_applied(dsn)
            report = asyncio.run(_run(config, dsn, reads=reads, repairs=repairs, takes_many=takes_many))
    except (StartError, MigrationError, ServiceError, asyncpg.PostgresError, OSError) as error:
        print(f"error: it could not be checked: {error}", file=sys.stderr)
        return UNKNOWN
    print(_to_json(report) if as_json else "\n".join(_to_lines(report)))
    return HEALTHY if report.is_healthy else UNHEALTHY


def _look_before(config: Config) -> None:
    """Nothing is made by a check, so there has to be something."""
    needed = [config.data_root / "blobs", *([] if config.database_url else [config.data_root / "postgres"])]
    for folder in needed:
        if not folder.is_dir():
            raise StartError(f"there is no service in {config.data_root}: it has no folder {folder.name}")


async def _run(config: Config, dsn: str, *, reads: bool, repairs: bool, takes_many: bool) -> Report:
    line = Progress("check:")
    db = await Database.open(dsn, size=2)
    inspector = LocalInspector(config.data_root)
    try:
        return await Check(db, inspector, quarantine_days=config.quarantine_days).run(
            reads=reads, repairs=repairs, takes_many=takes_many,
            progress=lambda *step: line.tell(_describe_step(*step)))
    finally:
        line.clear()
        inspector.close()
        await db.close()


def _describe_step(what: str, done: int, total: int) -> str:
    if not total:
        return what
    if what == "bytes":
        return f"{format_bytes(done)} of {format_bytes(total)} ({100 * done // total} %)"
    return f"{done} of {total} {what}"


# --- the report ---

def _to_lines(report: Report) -> Iterator[str]:
    yield (f"{report.blobs} blobs ({format_bytes(report.bytes_read)} read), {report.files_on_disk} files on the disk, "
           f"{report.in_quarantine} in quarantine")
    open_ones = [finding for finding in report.findings if not finding.is_repaired]
    if not report.findings:
        yield "all is well"
        return
    yield f"{len(report.findings)} findings, {len(report.findings) - len(open_ones)} of them repaired"
    for finding in report.findings:
        yield ""
        yield f"{finding.kind}{' (repaired)' if finding.is_repaired else ''}: {finding.subject}"
        yield f"    {printable(finding.detail)}"
        for affected in finding.affected:
            yield f"    {printable(_describe_affected(affected))}"
    advice = {finding.kind: ADVICE[finding.kind] for finding in open_ones if finding.kind in ADVICE}
    if advice:
        yield ""
    for kind, text in advice.items():
        yield f"{kind}: {text}"


def _describe_affected(affected: Affected) -> str:
    where = "in the trash, was " if affected.is_trashed else ""
    which = "current" if affected.is_current else "former"
    return f"of {affected.username}: {where}{affected.path}, version {affected.version} ({which})"


def _to_json(report: Report) -> str:
    return orjson.dumps({
        "healthy": report.is_healthy, "blobs": report.blobs, "bytes_read": report.bytes_read,
        "files_on_disk": report.files_on_disk, "in_quarantine": report.in_quarantine,
        "findings": [_to_object(finding) for finding in report.findings]}, option=orjson.OPT_INDENT_2).decode()


def _to_object(finding: Finding) -> dict[str, object]:
    return {"kind": finding.kind, "subject": finding.subject, "detail": finding.detail,
            "repaired": finding.is_repaired, "affected": [
                {"user_id": str(affected.user_id), "username": affected.username, "path": affected.path,
                 "version": affected.version, "current": affected.is_current, "trashed": affected.is_trashed}
                for affected in finding.affected]}
