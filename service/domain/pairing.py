"""Whether this database may decide what is removed from this data root.

Each has the id of the other (MARKER).  But a dump that is restored has the same id, and everything that was uploaded
after it looks like garbage.  So each removal is preceded by counting up: first in the database, then in the data root,
together with what identifies the database's own tables.  A data root that has counted further than its database, or
with another one, has known a later state than the database does: then nothing is removed, until somebody has looked.
"""

from service.db import instance
from service.db.pool import Connection, Database
from service.storage.base import Inspector

ADVICE = ("if this is the right database, see `service check` for what has no row, then remove the file HIGH_WATER "
          "from the data root")


class Pairing:
    """A database and a data root."""

    def __init__(self, database: Database, inspector: Inspector) -> None:
        self._database = database
        self._inspector = inspector

    async def find_objection(self) -> str | None:
        """Why nothing may be removed; None if all is well.  Changes nothing; raises OSError and Unavailable."""
        written = await self._inspector.read_high_water()  # first: the database is always ahead
        marker = await self._inspector.read_epoch()
        async with self._database.connection() as conn:
            epoch = await instance.get_epoch(conn)
            incarnation, mark = await instance.get_high_water(conn)
        if marker != str(epoch):
            return f"the data root belongs to another database: its MARKER says {marker!r}, the database says {epoch}"
        if written is None:
            return None
        known, _, count = written.partition(" ")
        if not count.isdecimal():
            return f"the file HIGH_WATER cannot be read: {written!r}; {ADVICE}"
        if known != incarnation:
            return f"the tables were made anew, as by restoring a dump (they are {incarnation}, not {known}); {ADVICE}"
        if int(count) > mark:
            return (f"the database is older than the data root: it has counted to {mark}, the data root to "
                    f"{count}; {ADVICE}")
        return None

    async def confirm(self) -> str | None:
        """The same, and if all is well count up: from now on an older state of this database will be noticed."""
        objection = await self.find_objection()
        if objection is not None:
            return objection

        async def count_up(conn: Connection) -> tuple[str, int]:
            await instance.raise_high_water(conn)
            return await instance.get_high_water(conn)

        incarnation, mark = await self._database.in_transaction(count_up)
        await self._inspector.write_high_water(f"{incarnation} {mark}")
        return None
