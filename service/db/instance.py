"""Which database this is, how far it has counted, and what time it is there."""

from datetime import datetime
from uuid import UUID

from service.db.pool import Connection

GET_EPOCH = """
-- compared with the marker of the data root
SELECT epoch FROM instance
"""


async def get_epoch(conn: Connection) -> UUID:
    """The id that the data root's marker has to carry."""
    return UUID(str(await conn.fetchval(GET_EPOCH)))


GET_HIGH_WATER = """
-- a dump that is restored has the same epoch, but its tables are other ones; a copied cluster has counted less far
SELECT system_identifier::text || '.' || pg_database.oid || '.' || 'instance'::regclass::oid AS incarnation, high_water
FROM instance, pg_control_system(), pg_database WHERE datname = current_database()
"""


async def get_high_water(conn: Connection) -> tuple[str, int]:
    """Which incarnation of the database this is (cluster, database and table), and how far it has counted."""
    row = await conn.fetchrow(GET_HIGH_WATER)
    assert row is not None
    return row["incarnation"], row["high_water"]


RAISE_HIGH_WATER = """
-- before anything is removed
UPDATE instance SET high_water = high_water + 1 RETURNING high_water
"""


async def raise_high_water(conn: Connection) -> int:
    """Count up."""
    return int(await conn.fetchval(RAISE_HIGH_WATER))


HAS_BLOBS = """
-- whether there is anything on the disk that this database knows of
SELECT EXISTS (SELECT FROM blobs)
"""


async def has_blobs(conn: Connection) -> bool:
    """Whether there are blobs, those that are about to be removed too."""
    return bool(await conn.fetchval(HAS_BLOBS))


GET_TIME = """
-- of the clock by which all ages are
SELECT clock_timestamp()
"""


async def get_time(conn: Connection) -> datetime:
    """What time it is."""
    found: datetime = await conn.fetchval(GET_TIME)
    return found
