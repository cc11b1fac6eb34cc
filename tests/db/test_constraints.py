"""Every constraint of the schema is violated here, and it alone: what the service forgets, the database refuses."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from service.db.pool import Connection
from service.run.postgres import EmbeddedPostgres

# Two accounts, Alice and Bob.  Alice has /folder, /file with two versions, and one more file in the trash; nothing
# refers to the blobs 3 (free) and 4 (fenced).
ALICE, BOB, NOBODY = ("a0000000-0000-7000-8000-000000000000", "b0000000-0000-7000-8000-000000000000",
                      "c0000000-0000-7000-8000-000000000000")
FOLDER, FILE, TRASHED, BOBS = (f"f0000000-0000-7000-8000-00000000000{n}" for n in range(1, 5))
OLD, HEAD, OF_TRASHED, OF_BOB = (f"e0000000-0000-7000-8000-00000000000{n}" for n in range(1, 5))
BLOB_1, BLOB_2, FREE, FENCED = (f"d0000000-0000-7000-8000-00000000000{n}" for n in range(1, 5))
NEW = "90000000-0000-7000-8000-000000000000"

BASE = f"""
INSERT INTO users (id, username, password_hash) VALUES ('{ALICE}', 'alice', 'x'), ('{BOB}', 'bob', 'x');
INSERT INTO files (id, user_id, name, is_folder) VALUES ('{ALICE}', '{ALICE}', '', true), ('{BOB}', '{BOB}', '', true);
INSERT INTO files (id, user_id, parent_id, name, is_folder) VALUES ('{FOLDER}', '{ALICE}', '{ALICE}', 'folder', true);
INSERT INTO blobs (id, size_bytes, sha256) VALUES
    ('{BLOB_1}', 1, sha256('1')), ('{BLOB_2}', 2, sha256('2')), ('{FREE}', 3, sha256('3'));
INSERT INTO blobs (id, size_bytes, referable, fenced_at) VALUES ('{FENCED}', 4, false, now());
BEGIN;
INSERT INTO files (id, user_id, parent_id, name, is_folder, head_id, head_bytes) VALUES
    ('{FILE}', '{ALICE}', '{ALICE}', 'file', false, '{HEAD}', 2),
    ('{BOBS}', '{BOB}', '{BOB}', 'file', false, '{OF_BOB}', 1);
INSERT INTO files (id, user_id, parent_id, name, is_folder, head_id, head_bytes, deleted_at, trashed_from,
                   trashed_parent_id)
VALUES ('{TRASHED}', '{ALICE}', '{ALICE}', 'file', false, '{OF_TRASHED}', 1, now(), '/file', '{ALICE}');
INSERT INTO versions (id, file_id, number, blob_id, blob_bytes, content_type, replaced_at) VALUES
    ('{OLD}', '{FILE}', 1, '{BLOB_1}', 1, 'text/plain', now());
INSERT INTO versions (id, file_id, number, blob_id, blob_bytes, content_type) VALUES
    ('{HEAD}', '{FILE}', 2, '{BLOB_2}', 2, 'text/plain'), ('{OF_TRASHED}', '{TRASHED}', 1, '{BLOB_1}', 1, 'text/plain'),
    ('{OF_BOB}', '{BOBS}', 1, '{BLOB_1}', 1, 'text/plain');
COMMIT;
INSERT INTO sessions (id, user_id, refresh_sha256, expires_at) VALUES ('{OLD}', '{ALICE}', sha256('x'), now());
INSERT INTO links (id, user_id, file_id, is_folder, kind, token_sha256, max_downloads) VALUES
    ('{OLD}', '{ALICE}', '{FILE}', false, 'download', sha256('x'), 2);
"""


def user(**columns: object) -> str:
    """INSERT of an account."""
    return insert("users", {"id": NEW, "username": "new", "password_hash": "x"} | columns)


def session(**columns: object) -> str:
    """INSERT of a session."""
    return insert("sessions", {"id": NEW, "user_id": ALICE, "expires_at": "now", "refresh_sha256": DIGEST} | columns)


def blob(**columns: object) -> str:
    """INSERT of a blob."""
    return insert("blobs", {"id": NEW, "size_bytes": 0, "sha256": DIGEST} | columns)


def folder(**columns: object) -> str:
    """INSERT of a folder."""
    base = {"id": NEW, "user_id": ALICE, "parent_id": ALICE, "name": "new", "is_folder": True}
    return insert("files", base | columns)


def file(**columns: object) -> str:
    """INSERT of a file, whose head may be missing until the end of the transaction."""
    return folder(**{"is_folder": False, "head_id": HEAD, "head_bytes": 2, **columns})


def version(**columns: object) -> str:
    """INSERT of a version."""
    return insert("versions", {"id": NEW, "file_id": FILE, "number": 3, "blob_id": FREE, "blob_bytes": 3,
                               "content_type": "text/plain"} | columns)


def link(**columns: object) -> str:
    """INSERT of a link."""
    return insert("links", {"id": NEW, "user_id": ALICE, "file_id": FILE, "is_folder": False, "kind": "download",
                            "token_sha256": DIGEST} | columns)


def stray(**columns: object) -> str:
    """INSERT of a file without a row."""
    return insert("strays", {"blob_id": NEW, "size_bytes": 0} | columns) + ";"


def damage(**columns: object) -> str:
    """INSERT of what is wrong with a blob."""
    return insert("damaged_blobs", {"blob_id": FREE, "kind": "missing"} | columns) + ";"


def done(**columns: object) -> str:
    """INSERT of a check that was done."""
    return insert("checks", {"name": "walk", "finished_at": "now", "findings": 0} | columns) + ";"


def audit(**columns: object) -> str:
    """INSERT into the trail."""
    return insert("audit", {"user_id": ALICE, "action": "log_in", "outcome": "ok"} | columns)


def keyed(**columns: object) -> str:
    """INSERT of a request with a key."""
    return insert("requests", {"user_id": ALICE, "key": "key", "fingerprint": DIGEST} | columns)


DIGEST = bytes(32)
TWICE = f"INSERT INTO audit (id, user_id, action, outcome) OVERRIDING SYSTEM VALUE VALUES (1, '{ALICE}', 'x', 'ok')"


def insert(table: str, columns: dict[str, Any]) -> str:
    """The statement with its values in it."""
    values = ", ".join(as_sql(value) for value in columns.values())
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({values})"


def as_sql(value: object) -> str:
    """A literal."""
    if isinstance(value, bytes):
        return f"'\\x{value.hex()}'"
    return f"'{value}'" if isinstance(value, str) else "NULL" if value is None else str(value)


# Some keys contain another one, so that cannot be there; whether they hold is seen without it.
NO_BLOBS_PKEY = "ALTER TABLE blobs DROP CONSTRAINT blobs_pkey CASCADE; "
NO_FILES_PKEY = "ALTER TABLE files DROP CONSTRAINT files_pkey CASCADE; "
NO_VERSIONS_PKEY = "ALTER TABLE versions DROP CONSTRAINT versions_pkey CASCADE; "
NO_LINKS_FILE_FKEY = "ALTER TABLE links DROP CONSTRAINT links_file_id_fkey; "

VIOLATIONS = {
    # accounts and sessions
    "users_pkey": [user(id=ALICE)],
    "users_username_key": [user(username="alice")],
    "users_username_check": [user(username=""), user(username="x" * 256), user(username="я" * 128),
                             user(username="e\u0301")],
    "users_quota_bytes_check": [user(quota_bytes=-1)],
    "users_files_bytes_check": ["UPDATE users SET files_bytes = -1"],
    "users_trash_bytes_check": ["UPDATE users SET trash_bytes = -1"],
    "users_versions_bytes_check": ["UPDATE users SET versions_bytes = -1"],
    "users_file_count_check": ["UPDATE users SET file_count = file_count - 1"],
    "sessions_pkey": [session(id=OLD)],
    "sessions_user_id_fkey": [session(user_id=NOBODY)],
    "sessions_refresh_sha256_check": [session(refresh_sha256=bytes(31)), session(refresh_sha256=b"")],
    "sessions_user_agent_check": [session(user_agent="x" * 513)],
    "sessions_network_check": [session(network="x" * 65)],
    "audit_pkey": [f"{TWICE}; {TWICE}"],
    "audit_user_id_fkey": [audit(user_id=NOBODY)],
    "audit_action_check": [audit(action=""), audit(action="x" * 65)],
    "audit_outcome_check": [audit(outcome="perhaps")],
    "audit_details_check": [audit(details=f'"{"x" * 16384}"')],
    # blobs
    "blobs_pkey": [blob(id=FREE), blob(id=FENCED)],  # the second: an upload that was taken for garbage
    "blobs_size_bytes_check": [blob(size_bytes=-1)],
    "blobs_sha256_check": [blob(sha256=bytes(20))],
    "blobs_referable_sha256_check": [blob(sha256=None), f"UPDATE blobs SET sha256 = NULL WHERE id = '{FREE}'"],
    "blobs_fenced_at_check": [f"UPDATE blobs SET referable = false WHERE id = '{FREE}'", blob(fenced_at="now"),
                              f"UPDATE blobs SET fenced_at = NULL WHERE id = '{FENCED}'"],
    "blobs_crc32_check": [blob(crc32=-1), blob(crc32=2**32)],
    "blobs_id_referable_size_bytes_key": [NO_BLOBS_PKEY + blob(id=FREE, size_bytes=3)],
    # the tree
    "files_pkey": [folder(id=FOLDER), insert("files", {"id": ALICE, "user_id": ALICE, "name": "", "is_folder": True})],
    "files_user_id_fkey": [insert("files", {"id": NOBODY, "user_id": NOBODY, "name": "", "is_folder": True})],
    "files_name_check": [
        *(folder(name=name) for name in ("", ".", "..", "/", "a/b", "x" * 256, "写" * 86, "e\u0301")),
        folder(parent_id=None), folder(parent_id=None, name=""),  # a second root
        insert("files", {"id": NEW, "user_id": NEW, "name": "root", "is_folder": True}),
        f"UPDATE files SET parent_id = NULL WHERE id = '{FOLDER}'",
        f"UPDATE files SET name = '..' WHERE id = '{FOLDER}'", f"UPDATE files SET name = 'root' WHERE id = '{ALICE}'",
        f"UPDATE files SET deleted_at = now(), trashed_from = '/' WHERE id = '{ALICE}'"],
    "files_parent_id_check": [folder(parent_id=NEW), f"UPDATE files SET parent_id = id WHERE id = '{FOLDER}'"],
    "files_parent_id_fkey": [
        folder(parent_id=NOBODY), folder(user_id=BOB),  # another account's folder
        file(parent_id=FILE), folder(parent_id=FILE),  # a file is no folder
        f"UPDATE files SET parent_id = '{BOB}' WHERE id = '{FOLDER}'",
        f"UPDATE files SET user_id = '{BOB}' WHERE id = '{FOLDER}'",
        folder(parent_id=FOLDER) + f"; DELETE FROM files WHERE id = '{FOLDER}'",
        folder(parent_id=FOLDER) + f"; UPDATE files SET is_folder = false, head_id = '{HEAD}', head_bytes = 2 "
                                   f"WHERE id = '{FOLDER}'"],
    "files_parent_id_name_key": [folder(name="folder"), file(name="folder"), folder(name="file"),
                                 f"UPDATE files SET name = 'file' WHERE id = '{FOLDER}'"],
    "files_user_id_id_is_folder_key": [NO_FILES_PKEY + folder(id=FOLDER, parent_id=ALICE)],
    "files_head_id_check": [folder(head_id=HEAD), file(head_id=None)],
    "files_head_bytes_check": [folder(head_bytes=0), file(head_bytes=None)],
    "files_head_id_fkey": [
        file(), file(head_id=NOBODY),  # the head of another file, or of none
        f"UPDATE files SET head_id = '{OF_BOB}', head_bytes = 1 WHERE id = '{FILE}'",
        f"UPDATE files SET head_bytes = 3 WHERE id = '{FILE}'", f"DELETE FROM versions WHERE id = '{HEAD}'",
        f"UPDATE versions SET file_id = '{BOBS}' WHERE id = '{HEAD}'"],
    "files_deleted_at_check": [folder(parent_id=FOLDER, deleted_at="now", trashed_from="/x"),
                               f"UPDATE files SET parent_id = '{FOLDER}' WHERE id = '{TRASHED}'"],
    "files_trashed_from_check": [folder(deleted_at="now"), folder(trashed_from="/x")],
    "files_trashed_parent_id_check": [folder(trashed_parent_id=FOLDER)],
    # versions
    "versions_pkey": [version(id=OLD)],
    "versions_file_id_fkey": [version(file_id=NOBODY)],
    "versions_number_check": [version(number=0), version(number=-1)],
    "versions_content_type_check": [version(content_type=""), version(content_type="x" * 256)],
    "versions_file_id_id_blob_bytes_key": [NO_VERSIONS_PKEY + version(id=OLD, blob_id=BLOB_1, blob_bytes=1)],
    "versions_file_id_number_key": [version(number=1), version(number=2)],
    "versions_blob_id_fkey": [
        version(blob_id=NOBODY), version(blob_id=FENCED, blob_bytes=4), version(blob_bytes=2),
        f"UPDATE blobs SET referable = false, fenced_at = now() WHERE id = '{BLOB_1}'",  # fenced under a reference
        f"UPDATE blobs SET size_bytes = 9 WHERE id = '{BLOB_1}'", f"DELETE FROM blobs WHERE id = '{BLOB_1}'",
        f"UPDATE versions SET blob_id = '{FENCED}', blob_bytes = 4 WHERE id = '{OLD}'"],
    # links
    "links_pkey": [link(id=OLD)],
    "links_user_id_fkey": [NO_LINKS_FILE_FKEY + link(user_id=NOBODY)],
    "links_file_id_fkey": [link(file_id=BOBS), link(file_id=FOLDER), link(file_id=NOBODY)],
    "links_kind_check": [link(kind="delete", is_folder=True, file_id=FOLDER)],
    "links_is_folder_check": [link(kind="upload")],
    "links_token_sha256_key": ["UPDATE links SET token_sha256 = sha256('y'); " + link() + "; " + link(id=FREE)],
    "links_token_sha256_check": [link(token_sha256=bytes(16))],
    "links_max_downloads_check": [link(max_downloads=0)],
    "links_downloads_check": ["UPDATE links SET downloads = 3", "UPDATE links SET downloads = -1"],
    # files without a row, damaged blobs, checks
    "strays_pkey": [2 * stray()],
    "strays_size_bytes_check": [stray(size_bytes=-1)],
    "strays_last_seen_at_check": [stray(last_seen_at="2000-01-01")],
    "damaged_blobs_pkey": [2 * damage()],
    "damaged_blobs_blob_id_fkey": [damage(blob_id=NEW)],
    "damaged_blobs_kind_check": [damage(kind="lost")],
    "checks_pkey": [2 * done()],
    "checks_name_check": [done(name=""), done(name="x" * 65)],
    "checks_findings_check": [done(findings=-1)],
    # requests with a key
    "requests_pkey": [keyed() + "; " + keyed()],
    "requests_user_id_fkey": [keyed(user_id=NOBODY)],
    "requests_key_check": [keyed(key=""), keyed(key="x" * 256)],
    "requests_fingerprint_check": [keyed(fingerprint=b""), keyed(fingerprint=bytes(31))],
    # which database this is
    "instance_high_water_check": ["UPDATE instance SET high_water = -1"],
    "instance_pkey": ["INSERT INTO instance (epoch) SELECT gen_random_uuid()"],
    "instance_only_row_check": ["INSERT INTO instance (only_row, epoch) VALUES (false, gen_random_uuid())"],
}

CATALOGUE = """
SELECT conname FROM pg_constraint JOIN pg_class ON pg_class.oid = conrelid
WHERE connamespace = 'public'::regnamespace AND contype IN ('c', 'f', 'p', 'u', 'x') AND relname NOT LIKE '%yoyo%'
UNION
SELECT index.relname FROM pg_index
JOIN pg_class AS index ON index.oid = indexrelid JOIN pg_class AS owner ON owner.oid = indrelid
WHERE indisunique AND owner.relnamespace = 'public'::regnamespace AND owner.relname NOT LIKE '%yoyo%'
"""


@pytest.fixture
async def filled(postgres: EmbeddedPostgres, dsn: str) -> AsyncIterator[Connection]:
    """A connection to a database with the base in it."""
    connection = await asyncpg.connect(dsn)
    await connection.execute(BASE)
    yield connection
    await connection.close()


async def test_every_constraint_of_the_schema_is_violated_here(filled: Connection) -> None:
    assert {row["conname"] for row in await filled.fetch(CATALOGUE)} == set(VIOLATIONS)


async def violated(conn: Connection, statement: str) -> str | None:
    """The constraint that refuses the statement, if any; nothing stays of it."""
    transaction = conn.transaction()
    await transaction.start()
    try:
        await conn.execute(statement)
        await conn.execute("SET CONSTRAINTS ALL IMMEDIATE")  # what would be found at the commit
    except asyncpg.IntegrityConstraintViolationError as error:
        return str(error.constraint_name)
    finally:
        await transaction.rollback()
    return None


async def test_each_violation_is_refused_by_its_constraint(filled: Connection) -> None:
    wrong = [(name, statement, found) for name, statements in VIOLATIONS.items() for statement in statements
             if (found := await violated(filled, statement)) != name]
    assert wrong == []


async def test_what_looks_similar_but_is_right_is_taken(filled: Connection) -> None:
    for statement in [
            folder(name="x" * 255), folder(name="..."), folder(name="a\\b"), folder(name="Folder"), folder(name="é"),
            folder(name="file", parent_id=FOLDER), folder(name="file", deleted_at="now", trashed_from="/file"),
            user(username="Alice"), user(username="я" * 127), user(quota_bytes=0), session(), version(), link(),
            link(file_id=FOLDER, is_folder=True, kind="upload"), blob(), keyed(key="x" * 255),
            blob(sha256=None, referable=False, fenced_at="now"), blob(crc32=2**32 - 1), audit(details='{"a": 1}'),
            file() + "; " + version(file_id=NEW, number=1, id=NOBODY) + f"; UPDATE files SET head_id = '{NOBODY}', "
                                                                        f"head_bytes = 3 WHERE id = '{NEW}'",
            f"DELETE FROM versions WHERE id = '{OLD}'", f"DELETE FROM blobs WHERE id IN ('{FREE}', '{FENCED}')",
            f"UPDATE blobs SET referable = false, fenced_at = now() WHERE id = '{FREE}'",
            f"UPDATE files SET name = 'renamed', parent_id = '{FOLDER}' WHERE id = '{FILE}'",
            f"DELETE FROM files WHERE id = '{FILE}'", "UPDATE links SET downloads = 2"]:
        assert await violated(filled, statement) is None, statement


async def test_deleted_account_takes_all_of_its_own_and_leaves_the_blobs(filled: Connection) -> None:
    await filled.execute(f"DELETE FROM users WHERE id = '{ALICE}'")
    for table in ("files", "sessions", "links"):
        assert await filled.fetchval(f"SELECT count(*) FROM {table} WHERE user_id = '{ALICE}'") == 0
    assert await filled.fetchval("SELECT array_agg(id) FROM versions") == [UUID(OF_BOB)]
    assert await filled.fetchval("SELECT count(*) FROM blobs") == 4


# --- the fence, between two connections ---

REFER = version(blob_id=FREE)
FENCE = f"UPDATE blobs SET referable = false, fenced_at = now() WHERE id = '{FREE}'"


async def wait_until_blocked(watcher: Connection, blocked: Connection) -> None:
    """Return when a statement of the connection waits for a lock."""
    pid = blocked.get_server_pid()
    while not await watcher.fetchval("SELECT cardinality(pg_blocking_pids($1)) > 0", pid):
        pass


@pytest.mark.parametrize(("first", "second"), [(REFER, FENCE), (FENCE, REFER)], ids=["refer first", "fence first"])
async def test_reference_and_fence_at_the_same_time_exclude_each_other(
        dsn: str, filled: Connection, first: str, second: str) -> None:
    one, other = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
    transaction = one.transaction()
    await transaction.start()
    await one.execute(first)
    waiting = asyncio.create_task(other.execute(second))
    await wait_until_blocked(filled, other)
    await transaction.commit()
    with pytest.raises(asyncpg.ForeignKeyViolationError) as caught:
        await waiting
    assert caught.value.constraint_name == "versions_blob_id_fkey"
    await one.close()
    await other.close()
