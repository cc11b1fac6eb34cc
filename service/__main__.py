"""The commands: `python -m service run | serve | worker | migrate | ...`.  The only place that ends the process."""

import argparse
import asyncio
import contextlib
import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from service import metrics
from service.config import Config, ConfigError
from service.errors import ServiceError
from service.run import database
from service.run.migrate import MigrationError
from service.run.checks import check_runtime
from service.run.processes import StartError
from service.run.supervisor import Supervisor
from service.storage.base import StoreError

WRONG_SETTINGS = 2


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError("has to be 1 or more")
    return int(text)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m service", description=f"Settings: environment, {Config.__doc__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("run", help="everything: PostgreSQL, the schema, workers, nginx")
    commands.add_parser("serve", help="the workers, for a container; PostgreSQL and nginx run in others")
    worker = commands.add_parser("worker", help="one worker")
    worker.add_argument("--socket", type=Path, help="listen on this unix socket, behind nginx, instead of on PORT")
    worker.add_argument("--generations", type=Path, metavar="FOLDER",
                        help="what all processes of this machine remember about accounts is marked here")
    worker.add_argument("--shared", type=int, metavar="FD", help="an open file: memory that all workers share")
    worker.add_argument("--number", type=int, help="which of several workers; their metrics are added up")
    schema = commands.add_parser("migrate", help="bring the database to the schema of this version")
    what = schema.add_mutually_exclusive_group()
    what.add_argument("--rollback", type=_count, metavar="N", help="take back the last N migrations and their data")
    what.add_argument("--list", action="store_true", help="show which migrations are applied")
    backup = commands.add_parser("backup", help="save everything in a folder, beside the running service")
    backup.add_argument("folder", type=Path, metavar="DIR", help="holds all backups; each blob is in it once")
    backup.add_argument("--keep", type=_count, metavar="N", help="then remove all backups but the last N whole ones")
    backup.add_argument("--verify", action="store_true", help="read what earlier backups have copied, and mend it")
    backup.add_argument("--new", action="store_true",
                        help="once: another folder of backups was at this place, or another service used it")
    restore = commands.add_parser("restore", help="fill an empty data root and an empty database from a backup")
    restore.add_argument("folder", type=Path, metavar="DIR")
    restore.add_argument("--snapshot", metavar="NAME", help="which one, instead of the last")
    check = commands.add_parser("check", help="look whether everything is as it should be, beside the running service",
                                epilog="Exit codes: 0 all is well, 1 not all is, 2 it could not be found out.")
    check.add_argument("--repair", action="store_true", help="make good what can be without losing anything")
    check.add_argument("--many", action="store_true", help="with --repair: however many files have no row")
    check.add_argument("--quick", action="store_true", help="compare sizes; do not read every byte")
    check.add_argument("--json", action="store_true", help="a report for scripts")
    return parser.parse_args(arguments)


def _run_worker(config: Config, options: argparse.Namespace) -> None:
    if (number := options.number) is not None:
        with contextlib.suppress(OSError):  # a disk without room for them: the service goes on, its metrics do not
            metrics.share(metrics.folder_of(config.data_root), number)
    from service.app import run_worker  # the other commands start faster without it
    _run(run_worker(config, unix_socket=options.socket, generations=options.generations, shared=options.shared))


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run on uvloop if it is there."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(work)
    else:
        uvloop.run(work)


def _dispatch(options: argparse.Namespace, config: Config) -> int:
    """The exit code; what goes wrong is raised."""
    if options.command == "worker":
        _run_worker(config, options)
    elif options.command == "migrate":
        for line in database.migrate(config, rollback=options.rollback, only_list=options.list):
            print(line)
    elif options.command in ("backup", "restore"):
        from service.run import backup
        if options.command == "backup":
            return backup.backup(config, options.folder, keep=options.keep, verify=options.verify,
                                 anew=options.new)
        return backup.restore(config, options.folder, name=options.snapshot)
    elif options.command == "check":
        from service.run.check import check
        return check(config, reads=not options.quick, repairs=options.repair, takes_many=options.many,
                     as_json=options.json)
    else:
        asyncio.run(Supervisor(config, containers=options.command == "serve").run())
    return 0


def main(arguments: list[str]) -> int:
    """Carry out one command; the exit code."""
    options = _parse(arguments)
    if sys.flags.optimize:
        print("run without -O: it switches checks off that keep requests from doing harm", file=sys.stderr)
        return WRONG_SETTINGS
    try:
        check_runtime()
        return _dispatch(options, Config.from_environment(os.environ))
    except ConfigError as error:
        print(*error.problems, sep="\n", file=sys.stderr)
        return WRONG_SETTINGS
    except (StartError, StoreError, MigrationError, ServiceError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ended before it was done", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
