"""Migrations: up, down, up; side by side; interrupted."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import psycopg
import pytest

from service.run import migrate
from service.run.migrate import MigrationError
from service.run.postgres import EmbeddedPostgres
from tests.run.conftest import PROJECT, wait_for

FILES = sorted(path for path in migrate.FOLDER.glob("*.sql") if not path.name.endswith(".rollback.sql"))
MakeDatabase = Callable[[], str]


@pytest.fixture
def make_database(server: EmbeddedPostgres) -> MakeDatabase:
    def make() -> str:
        name = f"db_{uuid4().hex}"
        server.ensure_database(name)
        return server.dsn(name)
    return make


def describe(dsn: str) -> list[tuple[object, ...]]:
    """Every column, constraint and index of the public schema, without yoyo's own.

    Of the indexes that begin with the folder also which is the newest: the planner prefers it where all cost the same.
    """
    with psycopg.connect(dsn) as connection:
        return connection.execute("""
            SELECT 'column', table_name::text, column_name::text, data_type::text, is_nullable::text,
                   column_default::text
            FROM information_schema.columns WHERE table_schema = 'public' AND table_name NOT LIKE '%yoyo%'
            UNION ALL SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid), '', ''
            FROM pg_constraint
            WHERE connamespace = 'public'::regnamespace AND conrelid::regclass::text NOT LIKE '%yoyo%'
            UNION ALL SELECT 'index', tablename, indexname, indexdef, '', ''
            FROM pg_indexes WHERE schemaname = 'public' AND tablename NOT LIKE '%yoyo%'
            UNION ALL SELECT 'newest index', 'files', attname, max(indexrelid)::regclass::text, '', ''
            FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0]
            WHERE indrelid = to_regclass('files') AND attname = 'parent_id' GROUP BY attname
            ORDER BY 1, 2, 3, 4""").fetchall()


def test_each_migration_can_be_taken_back(make_database: MakeDatabase, tmp_path: Path) -> None:
    dsn = make_database()
    for number, file in enumerate(FILES, start=1):
        for name in (file.name, file.with_suffix(".rollback.sql").name):
            (tmp_path / name).write_bytes((migrate.FOLDER / name).read_bytes())
        before = describe(dsn)
        assert migrate.apply(dsn, tmp_path) == 1
        after = describe(dsn)
        assert migrate.rollback(dsn, 1, tmp_path) == 1
        assert describe(dsn) == before
        assert migrate.apply(dsn, tmp_path) == 1
        assert describe(dsn) == after != before
        assert [is_applied for _, is_applied in migrate.status(dsn, tmp_path)] == [True] * number


def test_all_together_and_again(make_database: MakeDatabase) -> None:
    dsn = make_database()
    assert migrate.status(dsn) == [(file.stem, False) for file in FILES]
    assert migrate.apply(dsn) == len(FILES)
    assert migrate.apply(dsn) == 0
    assert migrate.rollback(dsn, 99) == len(FILES)
    assert describe(dsn) == []


def test_names_and_dependencies_follow_the_rule() -> None:
    earlier: list[str] = []
    for file in FILES:
        assert re.fullmatch(r"[0-9]{4}_[a-z0-9_]+", file.stem)
        assert file.stem[:4] not in [name[:4] for name in earlier]
        assert file.with_suffix(".rollback.sql").is_file()
        depends = re.search(r"^-- depends:(.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
        assert depends and set(depends[1].split()) <= set(earlier)
        assert bool(depends[1].split()) == bool(earlier)
        earlier.append(file.stem)
    assert len(list(migrate.FOLDER.glob("*.sql"))) == 2 * len(FILES)


def test_several_at_once_apply_each_once(make_database: MakeDatabase) -> None:
    dsn = make_database()
    counts: list[int] = []
    threads = [threading.Thread(target=lambda: counts.append(migrate.apply(dsn))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(counts) == [0, 0, 0, len(FILES)]


def test_newer_database_is_refused(make_database: MakeDatabase, tmp_path: Path) -> None:
    dsn = make_database()
    (tmp_path / "0001_future.sql").write_text("CREATE TABLE future ();")
    migrate.apply(dsn, tmp_path)
    with pytest.raises(MigrationError, match="newer than this version .* 0001_future"):
        migrate.apply(dsn)
    with pytest.raises(MigrationError, match="newer than this version .* 0001_future"):
        migrate.rollback(dsn, 1)


def test_failed_migration_leaves_nothing(make_database: MakeDatabase, tmp_path: Path) -> None:
    dsn = make_database()
    (tmp_path / "0001_a.sql").write_text("CREATE TABLE a ();\nCREATE TABLE b ();\nSELECT 1 / 0;")
    with pytest.raises(MigrationError, match="division by zero"):
        migrate.apply(dsn, tmp_path)
    assert describe(dsn) == []
    (tmp_path / "0001_a.sql").write_text("CREATE TABLE a ();")
    assert migrate.apply(dsn, tmp_path) == 1


def test_migration_outside_of_a_transaction(make_database: MakeDatabase, tmp_path: Path) -> None:
    dsn = make_database()
    (tmp_path / "0001_a.sql").write_text("CREATE TABLE a (x int);")
    (tmp_path / "0002_b.sql").write_text("-- transactional: false\n-- depends: 0001_a\n"
                                         "CREATE INDEX CONCURRENTLY a_x_idx ON a (x);")
    (tmp_path / "0002_b.rollback.sql").write_text("DROP INDEX CONCURRENTLY a_x_idx;")
    counts: list[int] = []
    # the second waits for the lock, which must not be what CREATE INDEX CONCURRENTLY waits for
    threads = [threading.Thread(target=lambda: counts.append(migrate.apply(dsn, tmp_path))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(counts) == [0, 2]
    assert migrate.rollback(dsn, 1, tmp_path) == 1


def test_killed_migration_leaves_no_lock(make_database: MakeDatabase, tmp_path: Path) -> None:
    dsn = make_database()
    (tmp_path / "0001_slow.sql").write_text("CREATE TABLE slow ();\nSELECT pg_sleep(2);")
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; from pathlib import Path; from service.run import migrate; "
         "migrate.apply(sys.argv[1], Path(sys.argv[2]))", dsn, str(tmp_path)], cwd=PROJECT)

    def is_sleeping() -> bool:
        with psycopg.connect(dsn) as connection:
            return connection.execute("SELECT FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'"
                                      "AND datname = current_database()").fetchone() is not None

    wait_for(is_sleeping, "the migration is under way")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (tmp_path / "0001_slow.sql").write_text("CREATE TABLE slow ();")
    assert migrate.apply(dsn, tmp_path) == 1


def test_user_with_an_odd_name_and_password(server: EmbeddedPostgres, make_database: MakeDatabase) -> None:
    dsn = make_database()
    user, password = "ann o'x", "p@ss:w/rd?#% ü\""
    with psycopg.connect(dsn) as connection:
        connection.execute(psycopg.sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}; GRANT ALL ON SCHEMA public TO {}").format(
            psycopg.sql.Identifier(user), password, psycopg.sql.Identifier(user)))
    dsn = dsn.replace("postgres@", f"{quote(user, safe='')}:{quote(password, safe='')}@")
    assert migrate.apply(dsn) == len(FILES)
    with psycopg.connect(dsn) as connection:
        assert connection.info.user == user
        assert connection.execute("SELECT tableowner FROM pg_tables WHERE tablename = 'users'").fetchone() == (user,)


def test_database_that_cannot_be_reached_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(MigrationError, match="cannot be migrated: .*No such file"):
        migrate.apply(f"postgresql://postgres@/x?host={tmp_path}")


def test_folder_without_migrations_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MigrationError, match="there are no migrations"):
        migrate.apply("postgresql://unused", tmp_path)
