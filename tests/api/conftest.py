"""What several of these tests share."""

from collections.abc import Iterator

import pytest

from tests.stack import Stack


@pytest.fixture(scope="session")
def tight_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A service with small limits: three guesses of a password, 1000 bytes an account, 600 a file."""
    stack = Stack(tmp_path_factory.mktemp("tight") / "data", {
        "WORKERS": "1", "LOGIN_ATTEMPTS_PER_MINUTE": "3", "QUOTA": "1000", "MAX_UPLOAD_SIZE": "600"}).start()
    yield stack
    stack.stop()
