"""What is short does not wait for what takes as long as a body is large."""

import asyncio
import hashlib
import threading
from pathlib import Path

import pytest

from service.model import BlobKey, new_uuid
from service.storage import threads
from service.storage.local import LocalStore
from tests.storage.conftest import Spool, stage

DEADLINE_SECONDS = 20  # for a broken run, not a measurement
SMALL, LARGE = b"x" * 100, b"x" * 1000


async def test_many_large_bodies_keep_nobody_else_waiting(
        store: LocalStore, spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "LARGE_BYTES", len(SMALL))
    may_end = threading.Event()

    def hash_slowly(path: Path) -> bytes:
        data = path.read_bytes()
        assert len(data) == len(SMALL) or may_end.wait(2 * DEADLINE_SECONDS)
        return hashlib.sha256(data).digest()

    monkeypatch.setattr(LocalStore, "_hash_file", staticmethod(hash_slowly))
    large = [asyncio.ensure_future(store.adopt(store.claim(str(spool.take(LARGE)), len(LARGE))))
             for _ in range(3 * threads.THREADS)]
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            await store.ping()
            await store.place(stage(store, SMALL))
            small = store.small_writer(BlobKey(new_uuid()))
            small.write(SMALL)
            await store.place(small.finish())
            staged = await store.adopt(store.claim(str(spool.take(SMALL)), len(SMALL)))
            await store.place(staged)
            assert await store.crc32(staged.key) == staged.crc32
        assert not any(body.done() for body in large)
    finally:
        may_end.set()
    assert {body.sha256 for body in await asyncio.gather(*large)} == {hashlib.sha256(LARGE).digest()}
