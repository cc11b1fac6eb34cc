"""Bodies that an upload has left behind because its worker, or a process of nginx, was killed.

Whoever starts nginx removes the folders of its earlier starts; here it is about the time between two starts.
"""

import structlog

from service import metrics
from service.domain.findings import Finding
from service.storage.base import Inspector, Leftover

log = structlog.get_logger()

# Nobody who works on a body leaves it untouched for so long: nginx gives up a client who is silent for a minute, and a
# worker after an hour; and as long as it waits for one the body has two names, which the inspector leaves alone.
AGE_SECONDS = 86400.0


class Leftovers:
    """Finds and removes them; no row ever named them."""

    def __init__(self, inspector: Inspector, *, age_seconds: float = AGE_SECONDS) -> None:
        self._inspector = inspector
        self._age_seconds = age_seconds

    async def find(self) -> list[Leftover]:
        """What nobody works on any more; raises OSError."""
        return await self._inspector.list_leftovers(self._age_seconds)

    async def remove(self, found: list[Leftover]) -> list[Leftover]:
        """Remove them; which could be."""
        removed = []
        for leftover in found:
            log.warning("leftover.removed", file=leftover.name, size=leftover.size_bytes,
                        reason=f"untouched for {leftover.age_seconds:.0f} s", count=len(found))
            try:
                await self._inspector.remove_leftover(leftover.name)
            except OSError as error:
                log.error("leftover.stuck", file=leftover.name, error=str(error))
            else:
                removed.append(leftover)
        metrics.SWEPT.labels("leftovers").inc(len(removed))
        return removed


def describe(leftover: Leftover, *, is_repaired: bool) -> Finding:
    """A leftover, for people."""
    return Finding(kind="leftover", subject=leftover.name, is_repaired=is_repaired,
                   detail=f"{leftover.size_bytes} bytes, untouched for {leftover.age_seconds / 3600:.0f} hours")
