"""How much of what all accounts use one of them may have at a time, so that none takes it from the others."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.model import UserId


class Shares:
    """So many places for each account; who finds none waits for one, and holds nothing while he waits."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._shares: dict[UserId, asyncio.Semaphore] = {}
        self._interested: dict[UserId, int] = {}

    @asynccontextmanager
    async def place(self, account: UserId) -> AsyncIterator[None]:
        """Have one of the account's places while the context lasts; how long it is waited for, the caller decides."""
        share = self._shares.setdefault(account, asyncio.Semaphore(self._places))
        self._interested[account] = self._interested.get(account, 0) + 1
        try:
            async with share:
                yield
        finally:
            self._interested[account] -= 1
            if not self._interested[account]:
                del self._interested[account], self._shares[account]
