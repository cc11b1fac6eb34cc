"""A real Redis of its own for each test that asks for one."""

from collections.abc import Iterator

import pytest

from tests.redis_server import RedisServer


@pytest.fixture
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A running, empty Redis; see RedisServer for what can be done to it."""
    # Not tmp_path: that has the test's name in it, and the path of a socket may have 107 bytes only (unix(7)).
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()
