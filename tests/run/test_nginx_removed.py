"""What nginx keeps open of blobs that are gone: nothing large, or the disk would not get its room back."""

from pathlib import Path

import pytest

from service.run import processes
from tests.client import Api
from tests.invariants import sweep
from tests.open_files import removed_but_open
from tests.stack import Stack

LARGE_BYTES = 200_000
ROUNDS = 8  # for both of nginx's processes


@pytest.fixture
def stack(nginx_stack: Stack) -> Stack:
    """The bytes are nginx's."""
    return nginx_stack


def _nginx(root: Path) -> list[int]:
    return [pid for prefix in (root / "spool").iterdir() for pid in processes.find_working_in(prefix, "nginx")]


@pytest.mark.parametrize("content_type", ["application/octet-stream", "image/png"])
async def test_large_blob_that_was_sent_by_every_door_is_not_kept_open(api: Api, content_type: str) -> None:
    content = bytes(LARGE_BYTES)
    await api.put("/large", content, expect=201, headers={"Content-Type": content_type})
    signed = (await api.call("POST", "/file/sign", json={"path": "/large", "expires_in": 600}, expect=201)).json["url"]
    for _ in range(ROUNDS):
        assert (await api.get("/large")).body == content  # decided; from the second time on remembered
        assert (await api.get("/large", headers={"Range": "bytes=1-"}, expect=206)).body == content[1:]  # by the worker
        assert (await Api(api.session, api.stack).call("GET", signed.removeprefix(api.stack.url))).body == content
    await api.call("DELETE", "/file?path=/large&permanent=true", expect=204)
    await sweep(api.stack.dsn, api.stack.root)
    sizes = removed_but_open(_nginx(api.stack.root), api.stack.root)
    assert all(size < LARGE_BYTES for size in sizes), sizes  # other tests' small ones may be there
