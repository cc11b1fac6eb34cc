"""Downloads that are taken up again after the file was replaced: nginx must not join two versions."""

import os
from pathlib import Path

import pytest

from service.config import Config
from service.run import nginx
from service.security.addresses import AddressSigner
from tests.run import test_nginx
from tests.run.test_nginx import Front

front = test_nginx.front  # the fixture, under a name that pytest finds here
render = nginx.render

OLD, NEW = "ab/01a20875-cc9a-72d2-8536-cce312f4e9d4", "ab/01a20875-cc9a-72d2-8536-cce312f4e9d5"


async def resumed_after_replacement(front: Front) -> bytes:
    """The first half of a file, and the rest of it asked for when another version of its size and second is there."""
    for blob, data in ((OLD, b"o" * 10), (NEW, b"n" * 10)):
        path = front.root / "blobs" / blob
        path.write_bytes(data)
        os.utime(path, (1600000000, 1600000000))
    get = "GET /file/download?blob={}&tag={} HTTP/1.1\nHost: x\n{}"
    begun = await front.raw(get.format(OLD, "old", "Range: bytes=0-4"))
    assert begun.status == 206
    rest = await front.raw(get.format(NEW, "new", f"Range: bytes=5-\nIf-Range: {begun.headers['etag']}"))
    return begun.body + rest.body if rest.status == 206 else rest.body


async def test_rest_of_a_file_that_was_replaced_is_the_whole_new_one(front: Front) -> None:
    assert await resumed_after_replacement(front) == b"n" * 10


@pytest.fixture
def native_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    """nginx makes entity tags by itself, of a file's time and size."""
    def render_natively(config: Config, sockets: list[Path], *, as_root: bool,
                        signer: AddressSigner | None = None) -> str:
        text = render(config, sockets, as_root=as_root, signer=signer)
        natively = text.replace("etag off;", "etag on;").replace("add_header ETag $upstream_http_etag;", "")
        assert natively.count("etag on;") == text.count("etag off;") > 0
        return natively

    monkeypatch.setattr(nginx, "render", render_natively)


@pytest.mark.mutant("M10", "entity tags of nginx's own making")
async def test_native_tags_are_found_out(native_tags: None, front: Front) -> None:
    assert await resumed_after_replacement(front) == b"ooooonnnnn"
