"""A spooled body is claimed before anything else happens: a moment later its name may be that of another body."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from aiohttp.typedefs import Handler

from service.api.keys import BEHIND_NGINX, CLAIM, DOMAIN
from service.api.middleware import observe
from service.errors import Unavailable
from service.storage.local import LocalStore

NAME = f"{'0' * 32}/body/1/00/0000000001"
ALICES, BOBS = b"alice's", b"bob's, 7"[:7]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LocalStore]:
    """A store whose spool has one body."""
    for folder in ("spool", "staging"):
        (tmp_path / folder).mkdir()
    store = LocalStore(tmp_path)
    yield store
    store.close()


def spool(root: Path, body: bytes) -> None:
    """What nginx does: the last request is over, this is the body of the next one under the same number."""
    path = root / "spool" / NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(body)


async def upload(store: LocalStore, root: Path, middleware: Any) -> bytes | None:
    """What an upload of Alice's gets, if at the first chance Bob's body takes the name of hers; None: a refusal."""
    found: list[bytes] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0)
        found.extend(store.consume(request[CLAIM]))
        return web.Response(status=201)

    async def bob() -> None:
        spool(root, BOBS)

    app = web.Application()
    app[BEHIND_NGINX] = True
    domain: Any = SimpleNamespace(content=SimpleNamespace(claim=store.claim, release=store.discard))
    app[DOMAIN] = domain
    spool(root, ALICES)
    request = make_mocked_request("PUT", "/file?path=/a", app=app, headers={
        "X-File": f"/{NAME}", "X-Body-Length": str(len(ALICES)), "X-Request-Id": "0" * 32})
    # tasks take their first steps in this order
    response, _ = await asyncio.gather(middleware(request, handler), bob())
    return b"".join(found) if response.status == 201 else None


async def test_upload_gets_its_own_body_or_none(store: LocalStore, tmp_path: Path) -> None:
    assert await upload(store, tmp_path, observe) == ALICES
    assert list((tmp_path / "staging").iterdir()) == []


async def test_body_whose_name_means_another_file_during_the_claim_is_refused(
        store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even at once is not soon enough: nginx is another process."""
    adopt = LocalStore._adopt_name

    def adopt_too_late(source: Path, staged: Path, inode: int) -> None:
        keep = source.with_name("0000000009")
        source.rename(keep)  # or its inode could be given again
        spool(tmp_path, BOBS)
        adopt(source, staged, inode)

    monkeypatch.setattr(LocalStore, "_adopt_name", staticmethod(adopt_too_late))
    spool(tmp_path, ALICES)
    with pytest.raises(Unavailable):
        store.claim(f"/{NAME}", len(ALICES))
    assert list((tmp_path / "staging").iterdir()) == []


@pytest.mark.mutant("M9", "a body claimed after the first await")
async def test_claim_after_an_await_is_found_out(store: LocalStore, tmp_path: Path) -> None:
    async def observe_later(request: web.Request, handler: Handler) -> web.StreamResponse:
        await asyncio.sleep(0)
        return await observe(request, handler)

    assert await upload(store, tmp_path, observe_later) == BOBS
