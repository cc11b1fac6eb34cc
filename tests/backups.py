"""Backups and restores for tests: a world with something of everything in it, and what has to come back of it."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import psycopg

from service.config import Config
from service.domain.backup import Backup, Report
from service.names import split_path
from service.run import backup
from service.run.postgres import EmbeddedPostgres
from service.storage.backup import BackupFolder
from tests.world import World

PER_ROOT = ("instance", "strays", "damaged_blobs", "checks")  # what belongs to one data root and its database
OTHERS = """
INSERT INTO sessions (id, user_id, refresh_sha256, expires_at)
SELECT gen_random_uuid(), id, sha256('x'), now() + interval '1 day' FROM users;
INSERT INTO links (id, user_id, file_id, is_folder, kind, token_sha256)
SELECT gen_random_uuid(), user_id, id, is_folder, 'download', sha256(id::text::bytea) FROM files
WHERE deleted_at IS NULL AND parent_id IS NOT NULL;
INSERT INTO audit (user_id, action, outcome, path, details)
SELECT id, 'upload', 'ok', E'/tab\\there\\\\N and "quotes"', '{"a": [1, null, "é\\n"]}' FROM users;
"""


async def fill(world: World) -> None:
    """Two accounts with files, former versions, trash, links, sessions, a trail, and garbage that waits for a sweep."""
    world.keep_versions(5)
    for number in range(2):
        caller = await world.new_caller(quota_bytes=None if number else 10_000_000)
        await world.put(caller, "/empty")
        await world.put(caller, "/папка/ein Ordner/big.bin", os.urandom(1_500_000), content_type="application/x-b")
        for version in range(3):
            await world.put(caller, "/notes.txt", f"version {version} of {number}".encode(), content_type="text/plain")
        await world.put(caller, "/gone/for a while.txt", b"trash")
        await world.files.delete(caller, split_path("/gone"), permanent=False)
        await world.put(caller, "/gone for good", b"garbage" * number)
        await world.delete(caller, "/gone for good")
    await world.observer.execute(OTHERS)


async def make(
        world: World, path: Path, *, verify: bool = False, keep: int | None = None, anew: bool = False) -> Report:
    """A backup of a world."""
    async with opened(path) as folder:
        report = await Backup(world.dsn, world.root, world.store, folder).run(verify=verify, anew=anew)
        if keep is not None:
            await asyncio.to_thread(folder.prune, keep, made=report.snapshot)
        return report


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[BackupFolder]:
    """A folder of backups, to write."""
    folder = BackupFolder(path)
    await asyncio.to_thread(folder.open_to_write)
    try:
        yield folder
    finally:
        folder.close()


def config(dsn: str, root: Path) -> Config:
    """The settings of a service on an external database."""
    return Config.model_validate({"database_url": dsn, "data_root": root})


async def restore(dsn: str, root: Path, path: Path, name: str | None = None) -> int:
    """The command; its exit code."""
    return await asyncio.to_thread(backup.restore, config(dsn, root), path, name=name)


def new_database(postgres: EmbeddedPostgres) -> str:
    """A database without anything in it; its address."""
    name = f"restored_{uuid4().hex}"
    with psycopg.connect(postgres.dsn("postgres"), autocommit=True) as connection:
        connection.execute(psycopg.sql.SQL("CREATE DATABASE {}").format(psycopg.sql.Identifier(name)))
    return postgres.dsn(name)


async def everything(dsn: str) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of all tables, but for what a restore changes on purpose: see `Restore.load`."""
    connection = await asyncpg.connect(dsn)
    try:
        names = await connection.fetch("SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = "
                                       "'public'::regnamespace AND relname NOT LIKE '%yoyo%' ORDER BY relname")
        found = {}
        for name in (row["relname"] for row in names):
            if name not in PER_ROOT:
                found[name] = [tuple(row.items()) for row in await connection.fetch(f"SELECT * FROM {name}")]
    finally:
        await connection.close()
    found["sessions"] = [tuple(item for item in row if item[0] != "ended_at") for row in found["sessions"]]
    referred = {dict(row)["blob_id"] for row in found["versions"]}
    found["blobs"] = [row for row in found["blobs"] if dict(row)["id"] in referred]
    return {name: sorted(rows, key=repr) for name, rows in found.items()}


def bytes_below(root: Path) -> dict[str, bytes]:
    """Every blob of a data root or of a pool."""
    return {path.name: path.read_bytes() for path in root.glob("blobs/*/*")}
