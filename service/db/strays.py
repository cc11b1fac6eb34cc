"""Strays: files among the blobs that have no row."""

from dataclasses import dataclass
from datetime import datetime

from service.db.pool import Connection
from service.model import BlobKey

LIST_UNKNOWN = """
-- which of these keys have no row at all, not even a fenced one
SELECT key FROM unnest($1::uuid[]) AS key WHERE NOT EXISTS (SELECT FROM blobs WHERE id = key)
"""


async def list_unknown(conn: Connection, keys: list[BlobKey]) -> list[BlobKey]:
    """Those of the keys that name no blob."""
    return [BlobKey(row["key"]) for row in await conn.fetch(LIST_UNKNOWN, keys)]


INSERT_SIGHTINGS = """
-- seen again, or for the first time; a first time that is still to come was one of a clock that was ahead
INSERT INTO strays (blob_id, size_bytes) SELECT * FROM unnest($1::uuid[], $2::bigint[])
ON CONFLICT (blob_id) DO UPDATE SET first_seen_at = least(strays.first_seen_at, now()), last_seen_at = now(),
                                    size_bytes = excluded.size_bytes
"""


async def insert_sightings(conn: Connection, sizes: dict[BlobKey, int]) -> None:
    """Write down which files without a row were seen, with their sizes in bytes."""
    await conn.execute(INSERT_SIGHTINGS, list(sizes), list(sizes.values()))


DELETE_OTHER_SIGHTINGS = """
-- what a whole walk did not meet any more is gone, or has its row by now
DELETE FROM strays WHERE quarantined_at IS NULL AND blob_id <> ALL($1::uuid[])
"""


async def delete_other_sightings(conn: Connection, seen: list[BlobKey]) -> None:
    """Forget the sightings of all files but these; what is in quarantine stays on the list."""
    await conn.execute(DELETE_OTHER_SIGHTINGS, seen)


LIST_RIPE = """
-- seen now, and for the first time long ago
SELECT blob_id, size_bytes FROM strays
WHERE quarantined_at IS NULL AND blob_id = ANY($1::uuid[]) AND first_seen_at <= now() - make_interval(secs => $2)
ORDER BY blob_id
"""


async def list_ripe(conn: Connection, seen: list[BlobKey], *, grace_seconds: float) -> list[tuple[BlobKey, int]]:
    """Which of these have been without a row for the grace time; keys and sizes in bytes."""
    return [(BlobKey(row["blob_id"]), row["size_bytes"]) for row in await conn.fetch(LIST_RIPE, seen, grace_seconds)]


INSERT_FENCE = """
-- whoever inserts the key first has it: this row, or the one of an upload that is late
INSERT INTO blobs (id, size_bytes, referable, fenced_at) VALUES ($1, $2, false, now())
ON CONFLICT (id) DO NOTHING RETURNING true
"""


async def insert_fence(conn: Connection, key: BlobKey, size_bytes: int) -> bool:
    """Take a key that has no row, so that no upload can; False if it has one."""
    return await conn.fetchval(INSERT_FENCE, key, size_bytes) is not None


SET_QUARANTINED = """
-- its days in quarantine begin
INSERT INTO strays (blob_id, size_bytes, quarantined_at) VALUES ($1, $2, now())
ON CONFLICT (blob_id) DO UPDATE SET quarantined_at = now()
"""


async def set_quarantined(conn: Connection, key: BlobKey, size_bytes: int) -> None:
    """Note that the file is set aside; in the transaction of its fence."""
    await conn.execute(SET_QUARANTINED, key, size_bytes)


DELETE_STRAY = """
-- it has a row after all, or is gone
DELETE FROM strays WHERE blob_id = $1
"""


async def delete_stray(conn: Connection, key: BlobKey) -> None:
    """Strike a file off the list."""
    await conn.execute(DELETE_STRAY, key)


DELETE_FENCE = """
-- only that of a file that is on the list; a fence of the sweep is the sweep's
DELETE FROM blobs WHERE id = $1 AND NOT referable AND EXISTS (SELECT FROM strays WHERE blob_id = id)
"""


async def delete_fence(conn: Connection, key: BlobKey) -> None:
    """Forget the key of a file that was removed for good; before `delete_stray`, in the same transaction."""
    await conn.execute(DELETE_FENCE, key)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stray:
    """A file on the list; `is_fenced`: its key is taken, and by nothing that refers to it."""

    key: BlobKey
    size_bytes: int
    first_seen_at: datetime
    quarantined_at: datetime | None
    is_fenced: bool


LIST_STRAYS = """
-- all that is known of files without a row
SELECT blob_id, strays.size_bytes, first_seen_at, quarantined_at,
       coalesce(NOT blobs.referable, false) AS is_fenced
FROM strays LEFT JOIN blobs ON blobs.id = blob_id ORDER BY blob_id
"""


async def list_strays(conn: Connection) -> dict[BlobKey, Stray]:
    """The whole list."""
    return {BlobKey(row["blob_id"]): Stray(
        key=BlobKey(row["blob_id"]), size_bytes=row["size_bytes"], first_seen_at=row["first_seen_at"],
        quarantined_at=row["quarantined_at"], is_fenced=row["is_fenced"]) for row in await conn.fetch(LIST_STRAYS)}


COUNT_SUSPECTS = """
-- files without a row that were not set aside
SELECT count(*) FROM strays WHERE quarantined_at IS NULL
"""


async def count_suspects(conn: Connection) -> int:
    """How many files had no row when the last walk saw them, and are still in their places."""
    return int(await conn.fetchval(COUNT_SUSPECTS))


LIST_EXPIRED_STRAYS = """
-- what has been in quarantine for its time, behind its fence
SELECT blob_id, strays.size_bytes FROM strays JOIN blobs ON blobs.id = blob_id AND NOT referable
WHERE quarantined_at <= now() - make_interval(secs => $1) ORDER BY blob_id
"""


async def list_expired_strays(conn: Connection, *, age_seconds: float) -> list[tuple[BlobKey, int]]:
    """Files whose time in quarantine is over; keys and sizes in bytes."""
    return [(BlobKey(row["blob_id"]), row["size_bytes"]) for row in await conn.fetch(LIST_EXPIRED_STRAYS, age_seconds)]
