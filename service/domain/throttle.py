"""How often something may be tried, counted for what one attacker usually has."""

import contextlib
import functools
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from ipaddress import IPv6Address, ip_address, ip_network

from service.cache.base import Cache
from service.errors import TooManyRequests
from service.model import Caller

BUSY_SECONDS = 60  # until somebody may try again whose own requests are in the way; nginx says the same


async def throttle(cache: Cache, buckets: Sequence[tuple[str, int]]) -> None:
    """Take one from each bucket (its key, and how many a minute it gives), the narrowest first.

    Raises TooManyRequests at the first that is empty, and takes nothing from those after it: or whoever is refused here
    could go on and empty what others have a share in.
    """
    for key, limit in buckets:
        if (wait := await cache.take(key, per_minute=limit, burst=limit)) > 0:
            raise TooManyRequests(retry_after_seconds=int(wait) + 1)


class Slots:
    """How many of something there may be at the same time, in this process."""

    def __init__(self) -> None:
        self._taken: Counter[Hashable] = Counter()

    @contextlib.contextmanager
    def take(self, limits: Sequence[tuple[Hashable, int]]) -> Iterator[None]:
        """Have one of each key, of which there are so many; raise TooManyRequests if one has none left."""
        if any(self._taken[key] >= limit for key, limit in limits):
            raise TooManyRequests(retry_after_seconds=BUSY_SECONDS)
        keys = [key for key, _ in limits]
        self._taken.update(keys)
        try:
            yield
        finally:
            self._taken.subtract(keys)
            self._taken = +self._taken  # without those at 0


class Throttles:
    """How many requests that cost much more than they bring somebody may make a minute; 0: any number."""

    def __init__(self, cache: Cache, costly_per_minute: int) -> None:
        self._cache = cache
        self._costly_per_minute = costly_per_minute

    async def spend(self, caller: Caller) -> None:
        """Count one of an account; raise TooManyRequests."""
        await self._take(f"costly:{caller.user_id}")

    async def spend_visit(self, address: str) -> None:
        """Count one of somebody without an account; raise TooManyRequests."""
        await self._take(f"costly:{network(address)}")

    async def _take(self, key: str) -> None:
        if self._costly_per_minute:
            await throttle(self._cache, [(key, self._costly_per_minute)])


@functools.lru_cache(maxsize=4096)
def network(address: str) -> str:
    """What one attacker usually has, an IPv4 /24 or an IPv6 /64, as `192.0.2.0/24`; "unknown" for no address."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    return str(ip_network((parsed, 64 if parsed.version == 6 else 24), strict=False))
