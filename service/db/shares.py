"""How much of what all use one of them may have at a time, so that none takes it from the others."""

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager


class Shares:
    """So many places for each share (`Caller.share`); who finds none waits, and holds nothing while he does."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._shares: dict[Hashable, asyncio.Semaphore] = {}
        self._interested: dict[Hashable, int] = {}

    @asynccontextmanager
    async def place(self, whose: Hashable) -> AsyncIterator[None]:
        """Have one of its places while the context lasts; how long to wait for it, the caller decides."""
        share = self._shares.setdefault(whose, asyncio.Semaphore(self._places))
        self._interested[whose] = self._interested.get(whose, 0) + 1
        try:
            async with share:
                yield
        finally:
            self._interested[whose] -= 1
            if not self._interested[whose]:
                del self._interested[whose], self._shares[whose]
