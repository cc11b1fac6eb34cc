"""Loads an account with a large tree, rows only: names can be listed, moved, copied and deleted, no bytes be read.

    python -m tests.bench.load_tree <dsn> <username> [folders] [files per folder] [files in one folder]
"""

import asyncio
import sys

import asyncpg

LOAD_FOLDERS = """
INSERT INTO files (id, user_id, parent_id, name, is_folder)
SELECT md5($2 || number)::uuid, $1, CASE WHEN number < 10 THEN $3 ELSE md5($2 || number / 10)::uuid END,
       'folder ' || number, true
FROM generate_series(1, $4::int) AS number
"""
LOAD_FILES = """
WITH made AS MATERIALIZED (
    SELECT gen_random_uuid() AS id, gen_random_uuid() AS head_id, gen_random_uuid() AS blob_id, parent_id,
           (hashint8(number) & 65535)::bigint AS size_bytes,
           CASE number % 3 WHEN 0 THEN 'Отчёт ' WHEN 1 THEN 'photo ' ELSE 'notes ' END || number || '.txt' AS name,
           now() - make_interval(secs => hashint8(number) & 16777215) AS moment
    FROM (SELECT $3::uuid AS parent_id, number FROM generate_series(1, $5::int) AS number
          UNION ALL
          SELECT md5($2 || folder)::uuid, folder * 1000 + number
          FROM generate_series(1, $4::int) AS folder, generate_series(1, $6::int) AS number) AS places
), blobs AS (
    INSERT INTO blobs (id, size_bytes, sha256) SELECT blob_id, size_bytes, sha256(blob_id::text::bytea) FROM made
), versions AS (
    INSERT INTO versions (id, file_id, number, blob_id, blob_bytes, content_type)
    SELECT head_id, id, 1, blob_id, size_bytes, 'text/plain' FROM made
), files AS (
    INSERT INTO files (id, user_id, parent_id, name, is_folder, head_id, head_bytes, created_at, updated_at)
    SELECT id, $1, parent_id, name, false, head_id, size_bytes, moment, moment FROM made
)
UPDATE users SET files_bytes = files_bytes + (SELECT coalesce(sum(size_bytes), 0) FROM made),
                 file_count = file_count + (SELECT count(*) FROM made)
WHERE id = $1
"""


async def load(dsn: str, username: str, folders: int = 5000, files: int = 20, flat: int = 100_000) -> None:
    """`/tree` with folders (ten in each, five levels deep) and files in each, and `/flat` with many files."""
    conn = await asyncpg.connect(dsn)
    async with conn.transaction():
        user_id = await conn.fetchval("SELECT id FROM users WHERE username = $1", username)
        tree_id, flat_id = [await conn.fetchval(
            "INSERT INTO files (id, user_id, parent_id, name, is_folder) VALUES (gen_random_uuid(), $1, $1, $2, true) "
            "RETURNING id", user_id, name) for name in ("tree", "flat")]
        seed = str(user_id)
        await conn.execute(LOAD_FOLDERS, user_id, seed, tree_id, folders)
        await conn.execute(LOAD_FILES, user_id, seed, flat_id, folders, flat, files, timeout=600)
    for table in ("files", "versions", "blobs"):
        await conn.execute(f"VACUUM ANALYZE {table}")
    await conn.close()


if __name__ == "__main__":
    asyncio.run(load(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])))
