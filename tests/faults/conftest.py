"""Tests of faults: they need root, or time, or both, and run by `make test-faults`.

What cannot be done here is an error, not a skip: a run that says nothing went wrong has done everything.
"""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from tests import packages
from tests.faults.clients import client_session
from tests.faults.recorder import Recorder
from tests.faults.sites import OwnPostgres, own_postgres

REPORT = Path(__file__).parents[2] / "build" / "faults.json"
RECORDER = Recorder()
PROGRAMS = {"mkfs.ext4": "e2fsprogs", "mkfs.xfs": "xfsprogs", "mount": "mount", "strace": "strace",
            "faketime": "faketime", "prlimit": "util-linux"}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Bring what is missing, or say so at the beginning."""
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    if here and os.geteuid() != 0:
        raise pytest.UsageError("tests of faults mount file systems and stop processes: they need root")
    if here and (missing := packages.install(PROGRAMS)):
        raise pytest.UsageError(f"tests of faults need these packages: {' '.join(missing)}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table, and its sums."""
    if RECORDER.lines:
        terminalreporter.section("faults")
        terminalreporter.write_line(f"{RECORDER.markdown()}\n\n{RECORDER.summary()}\n\n{RECORDER.slow()}")
        RECORDER.write(REPORT)


@pytest.fixture(scope="session")
def recorder() -> Recorder:
    """Where each test says what it found."""
    return RECORDER


@pytest.fixture
def rounds() -> int:
    """How often a fault is to be injected: ROUNDS= of `make test-faults`."""
    return int(os.environ.get("ROUNDS", "3"))


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """Connections of a client that sends nothing twice."""
    async with client_session() as opened:
        yield opened


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnPostgres]:
    """A PostgreSQL that may be stopped and killed, on the ordinary disk."""
    with own_postgres(tmp_path_factory.mktemp("postgres")) as found:
        yield found


@pytest.fixture(params=["auto", "off"])
def nginx(request: pytest.FixtureRequest) -> str:
    """With nginx and without."""
    return str(request.param)
