"""A world for each test of the domain, and a way to stop it at any step.

The database and the data root are the same for all of them, and emptied before each.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.run.postgres import EmbeddedPostgres
from tests import databases
from tests.domain.failpoints import Failpoints
from tests.world import World, open_world


@pytest.fixture(scope="session")
def shared_dsn(postgres: EmbeddedPostgres) -> str:
    """The database of the tests of the domain."""
    return databases.make_shared(postgres, "shared_by_domain")


@pytest.fixture(scope="session")
def shared_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their data root."""
    return tmp_path_factory.mktemp("domain") / "data"


@pytest.fixture
async def dsn(shared_dsn: str) -> str:
    """An empty database."""
    await databases.empty(shared_dsn)
    return shared_dsn


@pytest.fixture
async def world(dsn: str, shared_root: Path) -> AsyncIterator[World]:
    """The domain on real PostgreSQL and a real disk; nothing that was removed had lacked its fence."""
    for pattern in ("blobs/*/*", "staging/*", "quarantine/*", "HIGH_WATER"):
        for file in shared_root.glob(pattern):
            file.unlink()
    async with open_world(dsn, shared_root) as opened:
        yield opened
    assert opened.store.violations == []


@pytest.fixture
def failpoints(monkeypatch: pytest.MonkeyPatch, world: World) -> Failpoints:
    """Steps of the domain at which something may happen."""
    return Failpoints(monkeypatch, world)
