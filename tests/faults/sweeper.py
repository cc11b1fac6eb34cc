"""One sweep with so many seconds of grace, in a process of its own; with STEPS something may happen: see steps.py."""

import asyncio
import os
import sys
from pathlib import Path

from service.db.pool import Database
from service.domain.housekeeping import Housekeeping
from service.storage.local import LocalStore
from tests.faults import steps


async def sweep(dsn: str, root: Path, grace_seconds: float) -> None:
    """What housekeeping does."""
    database, store = await Database.open(dsn, size=2), LocalStore(root)
    try:
        await Housekeeping(database, store).sweep(grace_seconds=grace_seconds)
    finally:
        await database.close()
        store.close()


if __name__ == "__main__":
    if "STEPS" in os.environ:
        steps.install()
    asyncio.run(sweep(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])))
