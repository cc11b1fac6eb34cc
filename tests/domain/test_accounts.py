"""The end of an account: every row goes in one transaction, every blob is released, nobody else is touched."""

import asyncio
import hashlib
from collections.abc import AsyncIterator

import asyncpg
import pytest

from service.cache.local import LocalCache
from service.db import files, users
from service.domain.accounts import Accounts, Limits
from service.domain.audit import Audit
from service.domain.housekeeping import Ages, Housekeeping
from service.domain.moves import Change, Moves
from service.domain.places import Target
from service.errors import InvalidRefreshToken, NotFound, ServiceError, Unauthenticated, WrongPassword
from service.model import Caller, FileId
from service.security.passwords import Passwords
from service.security.tokens import AccessTokens
from tests.invariants import check_all
from tests.world import World

PASSWORD = "correct horse battery staple"
MANY_FILES = 20_000


@pytest.fixture
async def accounts(world: World) -> AsyncIterator[Accounts]:
    cache = LocalCache()
    trail = Audit(world.database, cache)
    passwords = Passwords(4)
    limits = Limits(login_attempts_per_minute=10_000, requests_per_minute=10_000, session_ttl_seconds=3600,
                    access_token_ttl_seconds=900, quota_bytes=None)
    yield Accounts(world.database, cache, passwords, AccessTokens("x" * 32, 900), limits, trail)
    await trail.drain()
    passwords.close()


async def new_account(accounts: Accounts, username: str) -> Caller:
    """An account with a password, logged in."""
    await accounts.register(username, PASSWORD, address="192.0.2.1")
    tokens = await accounts.log_in(username, PASSWORD, address="192.0.2.1")
    return await accounts.authenticate(tokens.access_token)


async def count(world: World, query: str, *values: object) -> int:
    connection = await asyncpg.connect(world.dsn)
    try:
        return int(await connection.fetchval(query, *values))
    finally:
        await connection.close()


async def fill(world: World, caller: Caller) -> None:
    """Folders, versions, copies that share blobs, trash."""
    for version in (b"1", b"22", b"333"):
        await world.put(caller, "/a/b/one", version)
    await world.put(caller, "/a/two", b"4444")
    await Moves(world.database).copy(caller, Change(source=("a",), target=Target(place=("copy",))))
    await world.put(caller, "/trashed/deep/three", b"55555")
    await world.files.delete(caller, ("trashed",))


async def test_nothing_of_a_deleted_account_is_left(world: World, accounts: Accounts) -> None:
    caller, other = await new_account(accounts, "ann"), await new_account(accounts, "bob")
    await fill(world, caller)
    await fill(world, other)
    before = world.blobs()
    await accounts.delete(caller, PASSWORD, address="192.0.2.1")
    with pytest.raises(Unauthenticated):
        await accounts.me(caller)
    for table in ("sessions", "files", "links", "audit"):
        assert await count(world, f"SELECT count(*) FROM {table} WHERE user_id = $1", caller.user_id) == 0
        assert await count(world, f"SELECT count(*) FROM {table} WHERE user_id = $1", other.user_id) > 0 or (
            table == "links")
    assert world.blobs() == before  # downloads under way go on; the sweeper waits for its time
    await check_all(world.dsn, world.root)
    await world.housekeeping.sweep(grace_seconds=0)
    assert len(world.blobs()) == 3  # the other account's current versions
    assert await world.get(other, "/copy/b/one") == b"333"
    await check_all(world.dsn, world.root)


async def test_wrong_password_deletes_nothing(world: World, accounts: Accounts) -> None:
    caller = await new_account(accounts, "ann")
    await fill(world, caller)
    with pytest.raises(WrongPassword) as caught:
        await accounts.delete(caller, "wrong" * 3, address="192.0.2.1")
    assert caught.value.field == "password"
    assert await world.get(caller, "/a/two") == b"4444"
    await check_all(world.dsn, world.root)


async def test_uploads_at_the_same_time_are_whole_or_refused(world: World, accounts: Accounts) -> None:
    caller = await new_account(accounts, "ann")
    uploads = [asyncio.create_task(world.put(caller, f"/{number % 7}/{number}", b"x")) for number in range(40)]
    await uploads[0]
    await accounts.delete(caller, PASSWORD, address="192.0.2.1")
    for outcome in await asyncio.gather(*uploads, return_exceptions=True):
        assert not isinstance(outcome, BaseException) or isinstance(outcome, (NotFound, Unauthenticated)), repr(outcome)
    await check_all(world.dsn, world.root)
    await world.housekeeping.sweep(grace_seconds=0)
    assert world.blobs() == set()


async def test_changes_of_the_account_at_the_same_time_end_in_one_of_their_orders(
        world: World, accounts: Accounts) -> None:
    for number in range(5):
        caller = await new_account(accounts, f"user-{number}")
        outcomes = await asyncio.gather(
            accounts.delete(caller, PASSWORD, address="192.0.2.1"),
            accounts.delete(caller, PASSWORD, address="192.0.2.1"),
            accounts.change_password(caller, PASSWORD, PASSWORD * 2, address="192.0.2.1"),
            *(accounts.log_in(f"user-{number}", PASSWORD, address="192.0.2.1") for _ in range(4)),
            return_exceptions=True)
        assert all(not isinstance(outcome, BaseException) or isinstance(outcome, ServiceError) for outcome in outcomes)
        is_there = await count(world, "SELECT count(*) FROM users WHERE id = $1", caller.user_id)
        open_sessions = await count(
            world, "SELECT count(*) FROM sessions WHERE user_id = $1 AND ended_at IS NULL", caller.user_id)
        assert open_sessions <= is_there  # none but the one that changed the password
    await check_all(world.dsn, world.root)


async def test_refresh_token_of_a_deleted_account_is_unknown(world: World, accounts: Accounts) -> None:
    caller = await new_account(accounts, "ann")
    tokens = await accounts.log_in("ann", PASSWORD, address="192.0.2.1")
    await accounts.delete(caller, PASSWORD, address="192.0.2.1")
    with pytest.raises(InvalidRefreshToken):
        await accounts.refresh(tokens.refresh_token, address="192.0.2.1")


async def make_files(world: World, caller: Caller, files: int) -> None:
    """Rows as uploads make them, a hundred in a folder; without bytes on the disk."""
    connection = await asyncpg.connect(world.dsn)
    digest = hashlib.sha256(b"").digest()
    async with connection.transaction():
        await connection.execute("""
            CREATE TEMP TABLE made ON COMMIT DROP AS
            SELECT gen_random_uuid() AS id, gen_random_uuid() AS version_id, gen_random_uuid() AS blob_id, number
            FROM generate_series(0, $1 - 1) AS number""", files)
        await connection.execute("""
            CREATE TEMP TABLE made_folders ON COMMIT DROP AS
            SELECT gen_random_uuid() AS id, number FROM generate_series(0, $1 / 100) AS number""", files)
        await connection.execute("""
            INSERT INTO files (id, user_id, parent_id, name, is_folder)
            SELECT id, $1, $1, 'folder-' || number, true FROM made_folders""", caller.user_id)
        await connection.execute("INSERT INTO blobs (id, size_bytes, sha256) SELECT blob_id, 0, $1 FROM made", digest)
        await connection.execute("""
            INSERT INTO files (id, user_id, parent_id, name, is_folder, head_id, head_bytes)
            SELECT made.id, $1, made_folders.id, 'file-' || made.number, false, version_id, 0
            FROM made JOIN made_folders ON made_folders.number = made.number / 100""", caller.user_id)
        await connection.execute("""
            INSERT INTO versions (id, file_id, number, blob_id, blob_bytes, content_type)
            SELECT version_id, id, 1, blob_id, 0, 'text/plain' FROM made""")
        await connection.execute("UPDATE users SET file_count = file_count + $2 WHERE id = $1", caller.user_id, files)
    await connection.execute("ANALYZE")
    await connection.close()


async def test_large_account_is_deleted_by_few_statements(world: World, accounts: Accounts) -> None:
    caller, other = await new_account(accounts, "ann"), await new_account(accounts, "bob")
    await world.put(other, "/kept", b"x")
    await make_files(world, caller, MANY_FILES)
    begin = asyncio.get_running_loop().time()
    await accounts.delete(caller, PASSWORD, address="192.0.2.1")
    seconds = asyncio.get_running_loop().time() - begin
    print(f"{MANY_FILES} files: {seconds:.2f} s")
    assert seconds < MANY_FILES / 1000  # some 0.1 ms a file; quadratic work would take hours
    assert await count(world, "SELECT count(*) FROM blobs WHERE unref_since IS NOT NULL") == MANY_FILES
    assert await world.get(other, "/kept") == b"x"


async def test_old_lines_of_the_trail_are_forgotten(world: World, accounts: Accounts) -> None:
    caller = await new_account(accounts, "ann")
    connection = await asyncpg.connect(world.dsn)
    await connection.execute("UPDATE audit SET at = now() - interval '91 days' WHERE action = 'register'")
    await connection.close()
    await Housekeeping(world.database, world.store, Ages(audit_days=90)).run()
    assert await count(world, "SELECT count(*) FROM audit WHERE user_id = $1", caller.user_id) == 1
    await Housekeeping(world.database, world.store, Ages()).run()
    assert await count(world, "SELECT count(*) FROM audit WHERE user_id = $1", caller.user_id) == 1


@pytest.mark.parametrize("what", ["account", "folder"])
async def test_deletion_reads_each_row_a_few_times_whatever_the_statistics_say(world: World, what: str) -> None:
    """PostgreSQL's own check of the foreign key read the whole account for each row of an account made lately."""
    count, other = 600, await world.new_caller()
    folders = """WITH top AS (INSERT INTO files (id, user_id, parent_id, name, is_folder)
                              SELECT gen_random_uuid(), $1, $1, 'top ' || i, true FROM generate_series(1, 20) AS i
                              RETURNING id)
                 INSERT INTO files (id, user_id, parent_id, name, is_folder)
                 SELECT gen_random_uuid(), $1, id, 'f' || i, true FROM top, generate_series(1, $2::int / 20) AS i"""
    await world.observer.execute(folders, other.user_id, count)
    await world.observer.execute("ANALYZE files")
    caller = await world.new_caller()
    await world.observer.execute(folders, caller.user_id, count)
    async with world.database.connection() as conn:
        transaction = conn.transaction()
        await transaction.start()
        if what == "account":
            await users.delete_user(conn, caller.user_id)
        else:
            top = await conn.fetch("SELECT id FROM files WHERE parent_id = $1", caller.user_id)
            for row in top:
                await files.delete_tree(conn, FileId(row["id"]))
        read = await conn.fetchval("""SELECT sum(pg_stat_get_xact_tuples_returned(indexrelid)) FROM pg_index
                                      WHERE indrelid = 'files'::regclass""")
        await transaction.rollback()
    assert read < 20 * count
