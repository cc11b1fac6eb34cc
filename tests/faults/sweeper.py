"""Housekeeping in a process of its own; with STEPS something may happen (steps.py), with FAULTS a mistake is made
(mistakes.py).

`python -m tests.faults.sweeper DSN ROOT GRACE_SECONDS`: one sweep; with `--all` everything that a day has made old.
"""

import asyncio
import os
import sys
from pathlib import Path

from service.db.pool import Database
from service.domain.housekeeping import Ages, Housekeeping
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


if __name__ == "__main__":
    if "STEPS" in os.environ:
        steps.install()
    for word in os.environ.get("FAULTS", "").split():
        mistakes.OF_SWEEP[word]()
    asyncio.run(sweep(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), "--all" in sys.argv))
