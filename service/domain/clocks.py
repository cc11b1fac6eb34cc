"""Whether PostgreSQL's clock, by which everything has its age, may be believed.

A clock that jumps ahead makes everything old at once, and what is deleted then does not come back with the right time.
There is no third clock to ask: while PostgreSQL's and this process's differ by so much, one of them is wrong, and
somebody has to look which.
"""

from datetime import UTC, datetime

from service.db import instance
from service.db.pool import Database

MAX_SECONDS = 86400.0  # the least age by which anything of somebody's is deleted


class Clocks:
    """PostgreSQL's, and this process's own."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find_objection(self) -> str | None:
        """Why nothing may go by its age; None if all is well.  Raises Unavailable."""
        async with self._database.connection() as conn:
            ahead = (await instance.get_time(conn) - own_time()).total_seconds()
        if abs(ahead) <= MAX_SECONDS:
            return None
        return (f"the clocks disagree: PostgreSQL's is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this "
                "process's, so nothing goes by its age; set right the one that is wrong")


def own_time() -> datetime:
    """What time this process takes it to be."""
    return datetime.now(UTC)
