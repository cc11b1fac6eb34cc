"""Versions: what a file held and holds."""

from dataclasses import dataclass

from service.db.pool import Connection
from service.model import BlobKey, FileId, VersionId

GET_VERSION = """
-- the version that is about to be replaced
SELECT number, blob_id, size_bytes FROM versions JOIN blobs ON blobs.id = blob_id WHERE versions.id = $1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """What an overwrite has to know of the version before it."""

    number: int
    blob_key: BlobKey
    size_bytes: int


async def get_version(conn: Connection, version_id: VersionId) -> Version:
    """A version that is there, since its file's row is locked."""
    row = await conn.fetchrow(GET_VERSION, version_id)
    assert row is not None
    return Version(number=row["number"], blob_key=BlobKey(row["blob_id"]), size_bytes=row["size_bytes"])


INSERT_VERSION = """
-- the new content of a file
INSERT INTO versions (id, file_id, number, blob_id, blob_bytes, content_type)
VALUES ($1, $2, $3, $4, (SELECT size_bytes FROM blobs WHERE id = $4), $5)
"""


async def insert_version(conn: Connection, *, version_id: VersionId, file_id: FileId, number: int, blob_key: BlobKey,
                         content_type: str) -> None:
    """Add a version; the blob's row has to be there."""
    await conn.execute(INSERT_VERSION, version_id, file_id, number, blob_key, content_type)


DELETE_VERSION = """
-- an overwritten version
DELETE FROM versions WHERE id = $1
"""


async def delete_version(conn: Connection, version_id: VersionId) -> None:
    """Forget a version; `blobs.release_blobs` has to follow."""
    await conn.execute(DELETE_VERSION, version_id)
