"""Which database this is."""

from uuid import UUID

from service.db.pool import Connection

GET_EPOCH = """
-- compared with the marker of the data root
SELECT epoch FROM instance
"""


async def get_epoch(conn: Connection) -> UUID:
    """The id that the data root's marker has to carry."""
    return UUID(str(await conn.fetchval(GET_EPOCH)))
