"""What a backup asks of the database: nothing is fenced while blobs are copied, every table of one moment, back again.

Tables, columns and sequences are taken from the catalogue, so that a table that is added later is not forgotten.
"""

from service.db.pool import Connection

HOLD_KEY = 0x66696C656261636B  # "fileback": shared by all backups, taken alone by each transaction that fences

HOLD_FENCES = """
-- as long as this connection lasts, or until it lets go; a transaction that is fencing is waited for
SELECT pg_advisory_lock_shared($1)
"""


async def hold_fences(conn: Connection) -> None:
    """Keep every sweep from fencing blobs, so that what a later snapshot refers to stays on the disk."""
    await conn.execute(HOLD_FENCES, HOLD_KEY)


RELEASE_FENCES = """
-- false (with a warning) if this connection did not hold them
SELECT pg_advisory_unlock_shared($1)
"""


async def release_fences(conn: Connection) -> bool:
    """Let sweeps go on; whether they were held off until now."""
    return bool(await conn.fetchval(RELEASE_FENCES, HOLD_KEY))


MAY_FENCE = """
-- alone, until this transaction ends; never waits, since a backup may take hours
SELECT pg_try_advisory_xact_lock($1)
"""


async def may_fence(conn: Connection) -> bool:
    """Whether this transaction may fence blobs: no backup copies any, and no other transaction is fencing.

    Has to be asked in every transaction that fences what a version referred to.
    """
    return bool(await conn.fetchval(MAY_FENCE, HOLD_KEY))
