"""Databases that a command cannot use: one sentence, the exit code of the documents, and nothing is made in them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import psycopg
import pytest

from service.__main__ import main
from service.run import migrate
from service.run.postgres import EmbeddedPostgres
from service.storage.local import MARKER
from tests.run.conftest import PROJECT

ROLE, PASSWORD = "somebody", "right"
OBJECTS = "SELECT nspname, relname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace ORDER BY 1, 2"
# what is asked of each command, and its exit code when the database cannot be used
COMMANDS = {"migrate": 1, "migrate --list": 1, "check": 2, "backup": 1}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A server that asks one of its roles for a password."""
    with EmbeddedPostgres.temporary(tmp_path_factory.mktemp("troubles")) as postgres:
        hba = postgres.data / "pg_hba.conf"
        hba.write_text(f"local all {ROLE} scram-sha-256\n" + hba.read_text(encoding="utf-8"), encoding="utf-8")
        with psycopg.connect(postgres.dsn("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE ROLE {ROLE} LOGIN PASSWORD '{PASSWORD}'")
            connection.execute("SELECT pg_reload_conf()")
        yield postgres


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root as a service leaves it."""
    root = tmp_path / "data"
    for folder in ("blobs", "staging", "spool", "quarantine"):
        (root / folder).mkdir(parents=True, mode=0o700)
    (root / MARKER).write_text(str(uuid4()), encoding="ascii")
    return root


def make(server: EmbeddedPostgres, *, schema: str) -> str:
    """A database that is empty, older than this version, or newer."""
    server.ensure_database(name := f"db_{uuid4().hex}")
    dsn = server.dsn(name)
    if schema != "empty":
        migrate.apply(dsn)
    if schema == "older":
        migrate.rollback(dsn, 1)
    if schema == "newer":
        with psycopg.connect(dsn) as connection:
            connection.execute("INSERT INTO _yoyo_migration (migration_hash, migration_id, applied_at_utc) "
                               "VALUES ('-', '9999_of_the_future', now())")
    return dsn


def objects(dsn: str) -> list[tuple[str, str]]:
    """Everything in the database that has a name and rows or columns."""
    with psycopg.connect(dsn) as connection:
        return connection.execute(OBJECTS).fetchall()


def run(root: Path, dsn: str, command: str) -> "subprocess.CompletedProcess[str]":
    """A real command, with the settings of such a service."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FILE_STORAGE_")}
    arguments = [*command.split(), *([str(root.parent / "backups")] if command == "backup" else [])]
    return subprocess.run(
        [sys.executable, "-m", "service", *arguments], cwd=PROJECT, capture_output=True, text=True, timeout=120,
        env=clean | {"FILE_STORAGE_DATA_ROOT": str(root), "FILE_STORAGE_DATABASE_URL": dsn})


def is_refused(done: "subprocess.CompletedProcess[str]", command: str, *words: str) -> None:
    """With the exit code of the command and one sentence, in which the words are."""
    assert (done.returncode, done.stdout) == (COMMANDS[command], ""), done.stdout + done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert PASSWORD not in done.stderr and "wrong-one" not in done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_database_that_cannot_be_reached_is_one_sentence(
        server: EmbeddedPostgres, root: Path, command: str) -> None:
    nowhere = f"postgresql://postgres@/x?host={quote(str(root.parent), safe='')}"
    is_refused(run(root, nowhere, command), command, "the database cannot be reached: ", "No such file")


@pytest.mark.parametrize(("address", "words"), [
    (f"{ROLE}:wrong-one@/postgres", ("password authentication failed",)),
    (f"postgres@/{'nothing'}", ('database "nothing" does not exist',)),
    (f"{ROLE}@/postgres", ("no password supplied",)),
], ids=["wrong password", "wrong name", "no password"])
def test_database_that_refuses_us_is_one_sentence(
        server: EmbeddedPostgres, root: Path, address: str, words: tuple[str, ...]) -> None:
    dsn = f"postgresql://{address}?host={quote(str(server.sockets), safe='')}&port=5432"
    for command in ("migrate", "check"):
        is_refused(run(root, dsn, command), command, *words)


@pytest.mark.parametrize(("schema", "word"), [
    ("empty", "has no schema"), ("older", "is older than this version"), ("newer", "9999_of_the_future")])
def test_other_schema_is_one_sentence_and_nothing_is_made(
        server: EmbeddedPostgres, root: Path, schema: str, word: str) -> None:
    dsn = make(server, schema=schema)
    before = objects(dsn)
    for command in ("check", "backup"):
        is_refused(run(root, dsn, command), command, word)
        assert objects(dsn) == before
    assert not list((root.parent / "backups").glob("[0-9]*"))


@pytest.mark.parametrize("schema", ["empty", "older", "newer"])
def test_list_of_migrations_makes_nothing(
        server: EmbeddedPostgres, root: Path, schema: str, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    dsn = make(server, schema=schema)
    before = objects(dsn)
    monkeypatch.setenv("FILE_STORAGE_DATA_ROOT", str(root))
    monkeypatch.setenv("FILE_STORAGE_DATABASE_URL", dsn)
    assert main(["migrate", "--list"]) == (1 if schema == "newer" else 0)
    said = capsys.readouterr()
    words = [line.split()[0] for line in said.out.splitlines()]
    if schema == "newer":
        assert words == [] and "9999_of_the_future" in said.err
    else:
        count = len(migrate.read())
        assert words == (["missing"] * count if schema == "empty" else ["applied"] * (count - 1) + ["missing"])
    assert objects(dsn) == before


def test_migrate_of_a_newer_database_changes_nothing(server: EmbeddedPostgres, root: Path) -> None:
    dsn = make(server, schema="newer")
    before = objects(dsn)
    is_refused(run(root, dsn, "migrate"), "migrate", "is newer than this version", "9999_of_the_future")
    assert objects(dsn) == before
