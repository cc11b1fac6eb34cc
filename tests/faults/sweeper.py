"""Housekeeping in a process of its own; with STEPS something may happen (steps.py), with FAULTS a mistake is made
(mistakes.py).

`python -m tests.faults.sweeper DSN ROOT GRACE_SECONDS`: one sweep; with `--all` everything that a day has made old;
with `--upkeep` what one worker of all does, once: exit code 1 if any of it went wrong.
"""

import asyncio
import os
import sys
from pathlib import Path

from service.db.pool import Database
from service.db.turns import Turns
from service.domain.housekeeping import Ages, Housekeeping
from service.domain.scrub import Scrub, unpaced
from service.domain.upkeep import Upkeep
from service.storage.inspection import LocalInspector
from service.storage.local import LocalStore
from tests.faults import mistakes, steps


async def sweep(dsn: str, root: Path, grace_seconds: float, is_all: bool) -> None:
    """What housekeeping does."""
    database, store = await Database.open(dsn, size=2), LocalStore(root)
    try:
        housekeeping = Housekeeping(database, store, Ages(trash_days=1, versions_days=1, audit_days=1))
        if is_all:
            await housekeeping.run()
        await housekeeping.sweep(grace_seconds=grace_seconds)
    finally:
        await database.close()
        store.close()


async def keep_up(dsn: str, root: Path) -> bool:
    """What is due; whether nothing went wrong."""
    database, store, inspector = await Database.open(dsn, size=4), LocalStore(root), LocalInspector(root)
    try:
        return await all_of_upkeep(database, store, inspector, dsn)
    finally:
        await database.close()
        inspector.close()
        store.close()


async def all_of_upkeep(database: Database, store: LocalStore, inspector: LocalInspector, dsn: str) -> bool:
    """A round of everything, then all bytes that are due are read back."""
    upkeep = Upkeep(database, inspector, Turns(dsn), Housekeeping(database, store, Ages()), quarantine_days=7)
    is_well = all([await upkeep.round(), await upkeep.look()])
    scrub = Scrub(database, inspector)
    while await scrub.verify_due(unpaced, may_move=True):
        pass
    return is_well


if __name__ == "__main__":
    if "STEPS" in os.environ:
        steps.install()
    for word in os.environ.get("FAULTS", "").split():
        mistakes.OF_SWEEP[word]()
    if "--upkeep" in sys.argv:
        sys.exit(0 if asyncio.run(keep_up(sys.argv[1], Path(sys.argv[2]))) else 1)
    asyncio.run(sweep(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), "--all" in sys.argv))
