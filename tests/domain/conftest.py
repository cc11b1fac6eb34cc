"""A world for each test of the domain, and a way to stop it at any step."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.domain.failpoints import Failpoints
from tests.world import World, open_world


@pytest.fixture
async def world(dsn: str, tmp_path: Path) -> AsyncIterator[World]:
    """The domain on real PostgreSQL and a real disk; nothing that was removed had lacked its fence."""
    async with open_world(dsn, tmp_path / "data") as opened:
        yield opened
    assert opened.store.violations == []


@pytest.fixture
def failpoints(monkeypatch: pytest.MonkeyPatch, world: World) -> Failpoints:
    """Steps of the domain at which something may happen."""
    return Failpoints(monkeypatch, world)
