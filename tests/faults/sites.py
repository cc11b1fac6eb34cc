"""The real service on disks whose power can be cut: all on one, the bytes alone, or PostgreSQL's alone."""

import os
import re
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from service.run import folders, processes
from service.run.postgres import EmbeddedPostgres
from tests.faults.machine import LoopDisk, kill_tree, loop_disk
from tests.stack import Stack

Layout = Literal["bytes", "all", "postgres"]
LAYOUTS: tuple[Layout, ...] = ("bytes", "all", "postgres")
LISTENING = re.compile(r":PORT 00000000:0000 0A ")
SETTINGS = {"ACCESS_TOKEN_TTL": "86400"}
# the words of FAULTS that make an exception of what a service without them has an answer for
MISTAKEN = frozenset({"steps", "m3", "leaked_connection", "strict_cache", "surprised_by_limits", "collected_bodies"})


@dataclass
class FaultyStack(Stack):
    """A service that does as told (faulty_service.py), with a database of its own or another's."""

    faults: str = ""
    variables: dict[str, str] = field(default_factory=dict)
    module: str = "tests.faults.faulty_service"

    @property
    def is_mistaken(self) -> bool:
        """Whether one of its faults explains a 500 and an exception in its log."""
        return not MISTAKEN.isdisjoint(self.faults.split())

    @property
    def dsn(self) -> str:
        """The database's address."""
        return self.settings.get("DATABASE_URL") or super().dsn

    def environment(self) -> dict[str, str]:
        """With the faults that are built in."""
        return super().environment() | {"FAULTS": self.faults} | self.variables

    def workers(self) -> list[int]:
        """The processes that answer."""
        return processes.find_working_in(self.root / "run", processes.own_program())

    def all_workers_listen(self) -> bool:
        """Whether each of them takes connections; without nginx they share a port, each with a socket of its own."""
        count = int(self.environment()["FILE_STORAGE_WORKERS"])
        if not self.is_behind_nginx:
            return len(LISTENING.findall(Path("/proc/net/tcp").read_text("ascii").replace(
                f":{self.port:04X} ", ":PORT "))) == count
        sockets = folders.find_sockets(self.root)
        for number in range(count):
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(str(sockets / f"worker-{number}.sock"))
                except OSError:
                    return False
        return True

    def nginx(self) -> list[int]:
        """nginx: the master, which is the first, and its workers."""
        found = []
        for prefix in (self.root / "spool").iterdir():
            found += processes.find_working_in(prefix, "nginx")
        return sorted(found, key=lambda pid: (_parent(pid) in found, pid))

    def kill(self) -> None:
        """End everything that was started, at once."""
        assert self.process is not None
        kill_tree(self.process)
        self.process = None


def _parent(pid: int) -> int:
    stat = (processes.PROC / str(pid) / "stat").read_bytes()
    return int(stat.rpartition(b")")[2].split()[1])


class OwnPostgres:
    """A PostgreSQL beside the service, as an operator would run it."""

    def __init__(self, folder: Path, sockets: Path) -> None:
        self.server = EmbeddedPostgres(folder / "postgres", sockets, max_connections=60)

    @property
    def processes(self) -> list[int]:
        """The postmaster and all others of the cluster."""
        return processes.find_working_in(self.server.data, "postgres")

    def kill(self) -> None:
        """All of it is gone at once."""
        processes.send(self.processes, signal.SIGKILL)
        assert processes.wait_until(lambda: not self.processes, 30), "PostgreSQL does not end"
        self.server.stop()  # waits for what is dead


@contextmanager
def own_postgres(folder: Path) -> Iterator[OwnPostgres]:
    """A running one with the service's database, which is empty."""
    with tempfile.TemporaryDirectory(prefix="pg-") as sockets:
        postgres = OwnPostgres(folder, Path(sockets))
        with postgres.server:
            postgres.server.ensure_database()
            yield postgres


@dataclass
class Site:
    """A service, the disk whose power can be cut, and the PostgreSQL that it may have beside it."""

    layout: Layout
    disk: LoopDisk
    stack: FaultyStack
    postgres: OwnPostgres | None

    def cut(self) -> None:
        """The power fails, now."""
        self.disk.cut()

    def end(self) -> None:
        """What ran on the machine that lost its power is gone, and its disk is unmounted."""
        if self.layout == "postgres":
            assert self.postgres is not None
            self.postgres.kill()
        else:
            self.stack.kill()
        self.disk.umount()

    def power_on(self) -> None:
        """The disk is there again, with what was forced to it; nothing runs yet."""
        self.disk.mount()

    def start(self, *, faults: str = "") -> float:
        """Start what is not running; how many seconds it took until the service was ready."""
        began = time.monotonic()
        if self.postgres is not None and self.postgres.server.pid is None:
            self.postgres.server.start()
        if self.stack.process is None:
            self.stack.faults = faults
            self.stack.start()
        else:
            assert processes.wait_until(self.stack.is_ready, 60), "the service does not recover by itself"
        return time.monotonic() - began


@contextmanager
def open_site(folder: Path, kind: str, layout: Layout, **settings: str) -> Iterator[Site]:
    """A running service on such a disk."""
    with loop_disk(folder, kind) as disk:
        if layout == "all":
            stack = FaultyStack(disk.mount_point / "data", SETTINGS | settings)
            yield from _running(Site(layout, disk, stack, None))
            return
        with own_postgres(disk.mount_point if layout == "postgres" else folder) as postgres:
            os.sync()  # what comes before the test, such as the cluster's files, is not what it asks about
            root = folder / "data" if layout == "postgres" else disk.mount_point / "data"
            stack = FaultyStack(root, SETTINGS | settings | {"DATABASE_URL": postgres.server.dsn()})
            yield from _running(Site(layout, disk, stack, postgres))


def _running(site: Site) -> Iterator[Site]:
    try:
        site.stack.start()
        yield site
    finally:
        if site.stack.process is not None:
            site.stack.kill()
    site.stack.check_log()
