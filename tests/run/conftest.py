"""What the tests of processes share: real programs, and waiting for a condition instead of for a time."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from service.run import nginx, processes, programs
from service.run.postgres import EmbeddedPostgres

PROJECT = Path(__file__).parents[2]
PATIENCE_SECONDS = 90  # a machine may be busy with other things


@pytest.fixture(scope="session")
def nginx_program() -> programs.Program:
    """A real nginx, installed if need be."""
    program = nginx.find_or_install()
    assert program, "there is no nginx to be had"
    return program


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL for tests that make databases of their own in it."""
    with EmbeddedPostgres.temporary(tmp_path_factory.mktemp("server")) as postgres:
        yield postgres


def is_alive(pid: int) -> bool:
    """Whether there is such a process; a zombie is none."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


def wait_for(is_so: Callable[[], object], what: str) -> None:
    """Poll until it is so; fail after a while."""
    assert processes.wait_until(lambda: bool(is_so()), PATIENCE_SECONDS), f"in vain: {what}"


async def wait_for_async(is_so: Callable[[], Awaitable[object]], what: str) -> None:
    """The same, for conditions that have to be awaited."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not await is_so():
        assert time.monotonic() < deadline, f"in vain: {what}"
        await asyncio.sleep(0.02)


def working_in(folder: Path) -> list[int]:
    """All processes whose current folder is this one or below it."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            where = os.readlink(entry / "cwd") if entry.name.isdigit() else ""
        except OSError:
            continue
        if (where == str(folder) or where.startswith(f"{folder}/")) and is_alive(int(entry.name)):
            found.append(int(entry.name))
    return found
