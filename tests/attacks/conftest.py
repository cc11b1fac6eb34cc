"""Services to attack, and a watch over their logs."""

from collections.abc import Iterator

import pytest

from tests.attacks import disk
from tests.attacks.logs import Mark
from tests.stack import Stack

SMALL = {"MAX_UPLOAD_SIZE": "200000", "QUOTA": "300000", "LOGIN_ATTEMPTS_PER_MINUTE": "6"}


def _run(root: pytest.TempPathFactory, name: str, settings: dict[str, str]) -> Iterator[Stack]:
    stack = Stack(root.mktemp(name) / "data", settings).start()
    mark = Mark.now(stack)
    yield stack
    trouble = mark.trouble()
    stack.stop()
    assert not trouble, trouble[:5]


@pytest.fixture(scope="session")
def small_nginx_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Behind nginx, with a small quota, small files and few tries for a password."""
    yield from _run(tmp_path_factory, "small-nginx", SMALL)


@pytest.fixture(scope="session")
def small_direct_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The same without nginx."""
    yield from _run(tmp_path_factory, "small-direct", SMALL | {"NGINX": "off"})


@pytest.fixture(params=["small_nginx", "small_direct"])
def small(request: pytest.FixtureRequest) -> Stack:
    """Both, one after the other."""
    found = request.getfixturevalue(f"{request.param}_stack")
    assert isinstance(found, Stack)
    return found


@pytest.fixture(scope="module", autouse=True)
def quiet_logs(nginx_stack: Stack, direct_stack: Stack) -> Iterator[None]:
    """However it is attacked: at the end of each module no error is in a log, and nothing is left on its way in."""
    marks = [Mark.now(nginx_stack), Mark.now(direct_stack)]
    yield
    for mark in marks:
        disk.settle(mark.stack)
        disk.assert_confined(mark.stack)
        trouble = mark.trouble()
        assert not trouble, trouble[:5]
