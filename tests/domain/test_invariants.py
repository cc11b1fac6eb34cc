"""The checks of the invariants are checked: each finds the damage that it is there for."""

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import asyncpg
import psycopg
import pytest

from service.model import BlobKey
from service.run.postgres import EmbeddedPostgres
from tests import databases
from tests.invariants import check_all
from tests.world import World, open_world


@pytest.fixture
async def world(own_dsn: str, tmp_path: Path) -> AsyncIterator[World]:
    """A world of its own, since it will be damaged."""
    async with open_world(own_dsn, tmp_path / "data") as opened:
        yield opened


@pytest.fixture
async def own_dsn(postgres: EmbeddedPostgres) -> AsyncIterator[str]:
    """A database that nobody will use again."""
    name = f"damaged_{uuid4().hex}"
    yield databases.make_shared(postgres, name)
    with psycopg.connect(postgres.dsn("postgres"), autocommit=True) as connection:
        connection.execute(psycopg.sql.SQL("DROP DATABASE {} WITH (FORCE)").format(psycopg.sql.Identifier(name)))


@pytest.fixture
async def healthy(world: World) -> World:
    """Two accounts with folders, files and an overwritten one."""
    for _ in range(2):
        caller = await world.new_caller(quota_bytes=1000)
        await world.put(caller, "/a/b/one", b"11")
        await world.put(caller, "/a/two", b"2")
        await world.put(caller, "/a/two", b"222")
        await world.put(caller, "/empty", b"")
    await check_all(world.dsn, world.root)
    return world


async def test_healthy_world_passes_again_and_again(healthy: World) -> None:
    await check_all(healthy.dsn, healthy.root)
    await healthy.new_caller()
    await check_all(healthy.dsn, healthy.root)


def some_blob(world: World) -> Path:
    """A file of bytes with something in it."""
    return next(file for file in sorted((world.root / "blobs").glob("*/*")) if file.stat().st_size)


@pytest.mark.parametrize(("damage", "found"), [
    ("flip", "other bytes"), ("cut", "another size"), ("grow", "another size"), ("remove", "are gone"),
    ("stray", "have no row"), ("staged", "left in staging"), ("spooled", "left in spool"), ("aside", "in quarantine")])
async def test_damage_to_the_disk_is_found(healthy: World, damage: str, found: str) -> None:
    file = some_blob(healthy)
    data = file.read_bytes()
    match damage:
        case "flip":
            file.write_bytes(bytes([data[0] ^ 1]) + data[1:])
        case "cut":
            file.write_bytes(data[:-1])
        case "grow":
            file.write_bytes(data + b"\0")
        case "remove":
            file.unlink()
        case "stray":
            (file.parent / "01a00000-0000-7000-8000-000000000000").write_bytes(b"")
        case "staged":
            (healthy.root / "staging" / "x").write_bytes(b"")
        case "spooled":
            (healthy.root / "spool" / "start").mkdir()
            (healthy.root / "spool" / "start" / "x").write_bytes(b"")
        case "aside":
            (healthy.root / "quarantine").mkdir(exist_ok=True)
            (healthy.root / "quarantine" / file.name).write_bytes(data)
    with pytest.raises(AssertionError, match=found):
        await check_all(healthy.dsn, healthy.root)


@pytest.mark.parametrize(("statement", "found"), [
    ("UPDATE users SET files_bytes = files_bytes + 1", "files_bytes says 6, counted 5"),
    ("UPDATE users SET trash_bytes = 1", "trash_bytes says 1, counted 0"),
    ("UPDATE users SET file_count = 2", "file_count says 2, counted 3"),
    ("UPDATE users SET quota_bytes = 4", "beyond the quota"),
    ("UPDATE blobs SET unref_since = NULL, referable = false, fenced_at = now()", "fenced blob"),
    ("INSERT INTO blobs (id, size_bytes, sha256) VALUES (gen_random_uuid(), 0, sha256(''))", "without a fence"),
    ("UPDATE files SET parent_id = id WHERE name = 'b'", "in a circle"),
    ("UPDATE files SET parent_id = (SELECT max(id::text) FROM users)::uuid WHERE name = 'a'", "in a wrong place"),
    ("UPDATE files SET name = 'two' WHERE name = 'b'", "two files"),
    ("UPDATE files SET name = U&'e\\0301' WHERE name = 'b'", "not as it should be"),
    ("UPDATE files SET head_id = gen_random_uuid() WHERE name = 'two'", "no current version"),
    ("DELETE FROM files WHERE parent_id IS NULL", "its own root"),
])
async def test_damage_to_the_database_is_found(healthy: World, statement: str, found: str) -> None:
    connection = await asyncpg.connect(healthy.dsn)
    await connection.execute("SET session_replication_role = replica")  # no foreign key may come to the rescue
    await connection.execute("ALTER TABLE files DROP CONSTRAINT files_parent_id_check, "
                             "DROP CONSTRAINT files_name_check")
    await connection.execute("DROP INDEX files_parent_id_name_key")
    await connection.execute(statement)
    await connection.close()
    with pytest.raises(AssertionError, match=found):
        await check_all(healthy.dsn, healthy.root)


async def test_deletion_before_the_fence_is_noted(healthy: World) -> None:
    key = next(iter(healthy.blobs()))
    await healthy.store.delete(BlobKey(key))
    assert healthy.store.violations == [key]
    healthy.store.violations.clear()
