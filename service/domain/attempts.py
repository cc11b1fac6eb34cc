"""Parts of a round that stand alone: what goes wrong with one of them does not keep the others."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from service.db.pool import Database
from service.errors import Unavailable
from service.model import UserId

T = TypeVar("T")

log = structlog.get_logger()


class Incomplete(Exception):
    """A round went to its end, and not everything in it went well; the log says what."""


class Attempts:
    """Those of one round, and how many of them failed."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.failed = 0
        self._busy: set[UserId] = set()

    async def make(self, work: Callable[[], Awaitable[T]], *, part: str, **words: str) -> T | None:
        """Do it; what goes wrong is logged, with these words, and counted.  None: it went wrong.

        Raises Unavailable if it did since the database is gone: then nothing else can go well either.
        """
        try:
            return await work()
        except Exception as error:  # whatever it was: the next round tries again
            await self._fail(error, part=part, **words)
            return None

    async def make_for(self, user_id: UserId, work: Callable[[], Awaitable[T]], *, part: str, **words: str) -> T | None:
        """The same for something of an account.

        One that is so busy that it was waited for in vain is waited for once: the rest of it is put off to the next
        round, or a round would take as long as one account likes.
        """
        if user_id in self._busy:
            return None
        try:
            return await work()
        except Exception as error:  # whatever it was: the next round tries again
            if isinstance(error, Unavailable) and error.is_busy:
                await self._database.ping()
                log.warning("housekeeping.put_off", part=part, user=str(user_id), reason=str(error))
                self._busy.add(user_id)
            else:
                await self._fail(error, part=part, user=str(user_id), **words)
            return None

    async def _fail(self, error: Exception, **words: str) -> None:
        await self._database.ping()
        log.error("housekeeping.failed", **words, exc_info=error)
        self.failed += 1

    def end(self) -> None:
        """Raise Incomplete if something failed."""
        if self.failed:
            raise Incomplete(f"{self.failed} failed")
