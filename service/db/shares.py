"""How much of what all accounts use one of them may have at a time, so that none takes it from the others."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.errors import Unavailable
from service.model import UserId


class Shares:
    """So many places for each account; who finds none waits for one, and holds nothing while he waits."""

    def __init__(self, places: int, *, wait_seconds: float) -> None:
        self._places = places
        self._wait_seconds = wait_seconds
        self._shares: dict[UserId, asyncio.Semaphore] = {}
        self._interested: dict[UserId, int] = {}

    @asynccontextmanager
    async def place(self, account: UserId) -> AsyncIterator[None]:
        """Have one of the account's places while the context lasts; raise Unavailable if there is none in time."""
        share = self._shares.setdefault(account, asyncio.Semaphore(self._places))
        self._interested[account] = self._interested.get(account, 0) + 1
        try:
            try:
                async with asyncio.timeout(self._wait_seconds):
                    await share.acquire()
            except TimeoutError as error:
                raise Unavailable("Too many requests of this account at once; try again.",
                                  retry_after_seconds=2) from error
            try:
                yield
            finally:
                share.release()
        finally:
            self._interested[account] -= 1
            if not self._interested[account]:
                del self._interested[account], self._shares[account]
