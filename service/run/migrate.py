"""Brings a database to the schema of this version: sql/migrations, applied with yoyo.

yoyo's own way has two holes which are closed here.  Its lock is a row that a killed migration leaves behind: ours is an
advisory lock of PostgreSQL, gone with its connection.  It marks a migration as applied in a second transaction, so that
one killed in between can neither be repeated nor skipped: ours is marked in the same transaction.
"""

import os
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from yoyo import read_migrations
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
from yoyo.connections import DatabaseURI
from yoyo.migrations import Migration, default_migration_table, topological_sort

from service.run.postgres import CONNECT_SECONDS, in_one_line

FOLDER = Path(__file__).parents[2] / "sql" / "migrations"
LOCK_KEY = 0x66696C6573746F72  # "filestor"
LOCK_SECONDS = 600
LOCK_POLL_SECONDS = 0.1


class MigrationError(Exception):
    """The database cannot be brought to the schema of this version; the message is a sentence for the operator."""


# yoyo comes without types
class Backend(PostgresqlPsycopgBackend):  # type: ignore[misc]
    """yoyo's driver on any address that libpq understands, without its lock table."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        # yoyo would take the address apart itself and trip over sockets, several hosts and odd characters
        super().__init__(DatabaseURI("postgresql+psycopg", None, None, None, None, "", {}), default_migration_table)

    def connect(self, dburi: DatabaseURI) -> "psycopg.Connection[Any]":
        """Open a connection; yoyo sends BEGIN and COMMIT itself."""
        return psycopg.connect(self._dsn, autocommit=True, connect_timeout=CONNECT_SECONDS,
                               application_name="file-storage migrate")

    @contextmanager
    def lock(self, timeout: float = LOCK_SECONDS) -> Iterator[None]:
        """Nothing: `exclusive` is held already."""
        yield

    @contextmanager
    def exclusive(self, timeout_seconds: float = LOCK_SECONDS) -> Iterator[None]:
        """Hold the lock of all migrations of this database, on the connection that does the work.

        The server keeps it until the work has ended, also that of a killed client.  It is asked for again and again
        since one long wait would be a transaction that CREATE INDEX CONCURRENTLY waits for.
        """
        deadline = time.monotonic() + timeout_seconds
        while not self.execute("SELECT pg_try_advisory_lock(:key)", {"key": LOCK_KEY}).fetchone()[0]:
            if time.monotonic() > deadline:
                raise MigrationError(f"another process has been migrating this database for {timeout_seconds:.0f} s")
            time.sleep(LOCK_POLL_SECONDS)
        try:
            yield
        finally:
            self.execute("SELECT pg_advisory_unlock(:key)", {"key": LOCK_KEY})

    def get_log_data(self, migration: Migration | None = None, operation: str = "apply") -> dict[str, object]:
        """What goes into yoyo's log table; its own version fails for a uid without a name and may wait for DNS."""
        return {"id": str(uuid.uuid1()), "migration_id": migration.id if migration else None,
                "migration_hash": migration.hash if migration else None, "username": str(os.geteuid()),
                "hostname": socket.gethostname(), "operation": operation,
                "created_at_utc": datetime.now(UTC).replace(tzinfo=None)}

    def list_applied(self) -> list[str]:
        """The ids of what is applied, oldest first; makes yoyo's tables if need be."""
        self.ensure_internal_schema_updated()
        rows = self.execute(self.format_sql(
            "SELECT {quoted.migration_id} FROM {0.migration_table_quoted} ORDER BY {quoted.migration_id}")).fetchall()
        return [row[0] for row in rows]

    def apply_one(self, migration: Migration, force: bool = False, mark: bool = True) -> None:
        """Apply and mark, both or neither (unless the file says `-- transactional: false`)."""
        migration.load()
        if not migration.use_transactions:
            migration.process_steps(self, "apply")
        with self.transaction():
            if migration.use_transactions:
                migration.process_steps(self, "apply")
            self.mark_one(migration, log=False)
            self.log_migration(migration, "apply")

    def rollback_one(self, migration: Migration, force: bool = False) -> None:
        """Take back and unmark, both or neither."""
        migration.load()
        if not migration.use_transactions:
            migration.process_steps(self, "rollback")
        with self.transaction():
            if migration.use_transactions:
                migration.process_steps(self, "rollback")
            self.unmark_one(migration, log=False)
            self.log_migration(migration, "rollback")


def read(folder: Path = FOLDER) -> list[Migration]:
    """All migrations of this version, each after those that it depends on."""
    migrations = read_migrations(str(folder).replace("[", "[[]"))  # a glob pattern
    if not migrations:
        raise MigrationError(f"there are no migrations in {folder}")
    return list(topological_sort(migrations))


def _refuse_newer(applied: list[str], known: list[Migration]) -> None:
    if unknown := sorted(set(applied) - {migration.id for migration in known}):
        raise MigrationError(f"the database is newer than this version of the service, which does not know "
                             f"{', '.join(unknown)}; start the newer version, or roll back with it first")


@contextmanager
def _opened(dsn: str) -> Iterator[Backend]:
    """A backend with the lock; what PostgreSQL complains about becomes a MigrationError."""
    try:
        with Backend(dsn) as backend, backend.exclusive():
            yield backend
    except psycopg.Error as error:
        raise MigrationError(f"the database cannot be migrated: {in_one_line(error)}") from error


def apply(dsn: str, folder: Path = FOLDER, *, only: Iterable[str] | None = None) -> int:
    """Apply what is missing, in order; return how many that were.  Safe to call from several processes at once.

    `only`: these and no others, for the schema of an earlier version.
    """
    known = read(folder)
    with _opened(dsn) as backend:
        return _apply(backend, known, only)


def _apply(backend: Backend, known: list[Migration], only: Iterable[str] | None) -> int:
    applied = backend.list_applied()
    _refuse_newer(applied, known)
    wanted = set(only) if only is not None else {migration.id for migration in known}
    missing = [migration for migration in known if migration.id in wanted and migration.id not in applied]
    for migration in missing:
        backend.apply_one(migration)
    return len(missing)


def rollback(dsn: str, count: int, folder: Path = FOLDER) -> int:
    """Take back the last `count` migrations, newest first, with all data that they brought; return how many."""
    known = read(folder)
    with _opened(dsn) as backend:
        return _roll_back(backend, known, count)


def _roll_back(backend: Backend, known: list[Migration], count: int) -> int:
    applied = backend.list_applied()
    _refuse_newer(applied, known)
    undone = [migration for migration in reversed(known) if migration.id in applied][:count]
    for migration in undone:
        backend.rollback_one(migration)
    return len(undone)


def renew(dsn: str, schema: Iterable[str], confirm: Callable[[], None], folder: Path = FOLDER) -> None:
    """Take everything back, with all data, and make another schema.

    `confirm` looks whether that may be done, and raises if not, under the lock that each service waits for that starts.
    """
    known = read(folder)
    with _opened(dsn) as backend:
        confirm()
        _roll_back(backend, known, len(known))
        _apply(backend, known, schema)


def status(dsn: str, folder: Path = FOLDER) -> list[tuple[str, bool]]:
    """Each known migration and whether it is applied, in order; nothing is made, not even yoyo's tables.

    Raises MigrationError if the database cannot be reached, or is newer than this version.
    """
    known = read(folder)
    try:
        with psycopg.connect(dsn, connect_timeout=CONNECT_SECONDS) as connection:
            connection.read_only = True
            found = connection.execute("SELECT to_regclass(%s)", (default_migration_table,)).fetchone()
            rows = [] if found in (None, (None,)) else connection.execute(
                psycopg.sql.SQL("SELECT migration_id FROM {}").format(
                    psycopg.sql.Identifier(default_migration_table))).fetchall()
    except psycopg.Error as error:
        raise MigrationError(f"the database cannot be reached: {in_one_line(error)}") from error
    applied = [str(migration_id) for migration_id, in rows]
    _refuse_newer(applied, known)
    return [(migration.id, migration.id in applied) for migration in known]


def check_applied(dsn: str) -> None:
    """Raise MigrationError unless the database has the schema of this version; nothing is made."""
    found = status(dsn)
    missing = [name for name, is_applied in found if not is_applied]
    if len(missing) == len(found):
        raise MigrationError("the database has no schema: no service has used it, or it is not the one that is meant")
    if missing:
        raise MigrationError(f"the database is older than this version of the service ({', '.join(missing)} missing); "
                             "migrate it first")
