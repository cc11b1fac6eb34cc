"""Parts of a round that stand alone: what goes wrong with one of them does not keep the others."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from service.db.pool import Database

T = TypeVar("T")

log = structlog.get_logger()


class Incomplete(Exception):
    """A round went to its end, and not everything in it went well; the log says what."""


class Attempts:
    """Those of one round, and how many of them failed."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.failed = 0

    async def make(self, work: Callable[[], Awaitable[T]], *, part: str, **words: str) -> T | None:
        """Do it; what goes wrong is logged, with these words, and counted.  None: it went wrong.

        Raises Unavailable if it did since the database is gone: then nothing else can go well either.
        """
        try:
            return await work()
        except Exception as error:  # whatever it was: the next round tries again
            await self._database.ping()
            log.error("housekeeping.failed", part=part, **words, exc_info=error)
            self.failed += 1
            return None

    def end(self) -> None:
        """Raise Incomplete if something failed."""
        if self.failed:
            raise Incomplete(f"{self.failed} failed")
