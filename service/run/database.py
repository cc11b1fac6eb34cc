"""The database of DATABASE_URL, or else the embedded one, for commands other than `run`; the command `migrate`."""

from collections.abc import Iterator
from contextlib import contextmanager

from service.config import Config
from service.run import folders, migrate as migrations, postgres
from service.run.postgres import EmbeddedPostgres


@contextmanager
def reached(config: Config, *, gives_way: bool = False) -> Iterator[str]:
    """The address of the database; the embedded one is started if it does not run.

    `gives_way`: a service that starts meanwhile ends this process, by a KeyboardInterrupt, and does not refuse.
    """
    if config.database_url:
        yield config.database_url.get_secret_value()
        return
    try:
        with folders.locked(config.data_root, gives_way=gives_way) as places:
            with EmbeddedPostgres(places.postgres, places.sockets) as server:
                server.ensure_database()
                yield server.dsn()
    except folders.InUse:  # the service runs, and its PostgreSQL with it
        yield postgres.address(folders.find_sockets(config.data_root))


def migrate(config: Config, *, rollback: int | None = None, only_list: bool = False) -> list[str]:
    """Apply what is missing, or take back so many, or only look; return what to tell."""
    with reached(config) as dsn:
        if only_list:
            return [f"{'applied' if is_applied else 'missing'}  {name}" for name, is_applied in migrations.status(dsn)]
        postgres.check_server(dsn)
        if rollback is not None:
            return [f"{migrations.rollback(dsn, rollback)} migrations taken back"]
        return [f"{migrations.apply(dsn)} migrations applied"]
