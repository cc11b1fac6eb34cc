"""The disk as those see it who look after it: what lies there, moved without ever replacing, read past the cache."""

import asyncio
import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from service.model import BlobKey, new_uuid
from service.storage import inspection
from service.storage.inspection import LocalInspector
from service.storage.local import LocalStore
from tests.storage.conftest import Spool, stage


@pytest.fixture
def inspector(store: LocalStore, root: Path) -> Iterator[LocalInspector]:
    """An inspector of the store's root."""
    opened = LocalInspector(root)
    yield opened
    opened.close()


async def unpaced(length: int) -> None:
    """No limit."""


async def placed(store: LocalStore, data: bytes) -> BlobKey:
    """A blob."""
    staged = stage(store, data)
    await store.place(staged)
    return staged.key


async def test_every_blob_is_on_one_shelf_and_measured(store: LocalStore, inspector: LocalInspector) -> None:
    sizes = {await placed(store, bytes(size)): size for size in (0, 1, 1000)}
    found = [key for number in inspector.shelves() for key in (await inspector.list_shelf(number)).keys]
    assert sorted(found) == sorted(sizes)
    missing = BlobKey(new_uuid())
    assert await inspector.measure([*sizes, missing]) == {**sizes, missing: None}


@pytest.mark.parametrize("size", [0, 1, inspection.PIECE_BYTES - 1, inspection.PIECE_BYTES,
                                  inspection.PIECE_BYTES + 1, 2 * inspection.PIECE_BYTES])
async def test_hash_is_that_of_all_bytes_and_each_is_paced(
        store: LocalStore, inspector: LocalInspector, size: int) -> None:
    data = os.urandom(size)
    key = await placed(store, data)
    paced: list[int] = []

    async def pace(length: int) -> None:
        paced.append(length)

    assert await inspector.hash(key, pace) == hashlib.sha256(data).digest()
    assert sum(paced) == size and all(paced)


async def test_what_is_missing_or_no_file_has_no_hash_and_no_size(
        store: LocalStore, inspector: LocalInspector, root: Path) -> None:
    key = await placed(store, b"x")
    store.path(key).unlink()
    assert await inspector.hash(key, unpaced) is None
    store.path(key).symlink_to(root / "MARKER")
    assert await inspector.measure([key]) == {key: None}
    with pytest.raises(OSError):
        await inspector.hash(key, unpaced)
    store.path(key).unlink()


async def test_reading_that_is_cancelled_closes_its_file(store: LocalStore, inspector: LocalInspector) -> None:
    key = await placed(store, bytes(inspection.PIECE_BYTES + 1))
    before = len(os.listdir("/proc/self/fd"))
    reached = asyncio.Event()

    async def pace(length: int) -> None:
        reached.set()
        await asyncio.Event().wait()

    task = asyncio.ensure_future(inspector.hash(key, pace))
    await reached.wait()
    task.cancel()
    await asyncio.wait([task])
    await inspector.list_quarantine()  # behind it on the same thread
    assert len(os.listdir("/proc/self/fd")) == before


async def test_file_is_set_aside_and_put_back_durably(
        store: LocalStore, inspector: LocalInspector, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = await placed(store, b"bytes")
    synced: list[str] = []
    sync = inspection._sync_folder

    def watched(folder: Path) -> None:
        synced.append(str(folder.relative_to(root)))
        sync(folder)

    monkeypatch.setattr(inspection, "_sync_folder", watched)
    assert (await inspector.list_quarantine()).keys == []
    assert await inspector.set_aside(key)
    assert not store.path(key).exists() and (await inspector.list_quarantine()).keys == [key]
    assert synced[-2:] == ["quarantine", f"blobs/{key.hex[-2:]}"]
    assert not await inspector.set_aside(key)
    assert await inspector.put_back(key)
    assert store.path(key).read_bytes() == b"bytes" and store.path(key).stat().st_nlink == 1
    assert synced[-2:] == [f"blobs/{key.hex[-2:]}", "quarantine"]
    assert not await inspector.put_back(key)


async def test_move_never_replaces_and_goes_on_where_a_crash_ended_it(
        store: LocalStore, inspector: LocalInspector, root: Path) -> None:
    key = await placed(store, b"one")
    aside = root / "quarantine" / str(key)
    await inspector.set_aside(key)
    store.path(key).hardlink_to(aside)  # between the link and the unlink
    assert await inspector.set_aside(key)
    assert not store.path(key).exists() and aside.read_bytes() == b"one"
    store.path(key).write_bytes(b"two")
    for move in (inspector.set_aside, inspector.put_back):
        with pytest.raises(FileExistsError):
            await move(key)
    assert (store.path(key).read_bytes(), aside.read_bytes()) == (b"two", b"one")
    other = BlobKey(new_uuid())
    assert await inspector.set_aside(key, as_key=other)
    assert (aside.read_bytes(), (root / "quarantine" / str(other)).read_bytes()) == (b"one", b"two")
    assert not store.path(key).exists() and not await inspector.set_aside(key, as_key=other)
    for _ in range(2):
        await inspector.remove_quarantined(key)
    assert not aside.exists()


async def test_leftovers_are_what_nobody_works_on(
        store: LocalStore, inspector: LocalInspector, spool: Spool, root: Path) -> None:
    staged = stage(store, b"staged")
    left, claimed = spool.take(b"left"), spool.take(b"claimed")
    claim = store.claim(str(claimed), 7)
    (root / "spool" / spool.start / "nginx.pid").write_bytes(b"1")
    assert await inspector.list_leftovers(3600) == []
    found = await inspector.list_leftovers(0)
    assert {item.name: item.size_bytes for item in found} == {
        f"staging/{staged.key}": 6, str(left.relative_to(root)): 4}
    claimed.unlink()  # nginx has had its answer: now the claim has only its own name
    assert f"staging/{claim.key}" in [item.name for item in await inspector.list_leftovers(0)]
    for item in found:
        await inspector.remove_leftover(item.name)
        await inspector.remove_leftover(item.name)
    assert [item.name for item in await inspector.list_leftovers(0)] == [f"staging/{claim.key}"]


async def test_high_water_is_replaced_as_a_whole(inspector: LocalInspector, root: Path) -> None:
    (root / "HIGH_WATER").unlink(missing_ok=True)
    assert await inspector.read_high_water() is None
    for text in ("1.2.3 7", "1.2.3 8"):
        await inspector.write_high_water(text)
        assert await inspector.read_high_water() == text
    assert [path.name for path in root.iterdir() if "HIGH_WATER" in path.name] == ["HIGH_WATER"]
    assert (root / "HIGH_WATER").read_bytes() == b"1.2.3 8\n"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
async def test_high_water_is_written_in_place_where_there_is_no_room_for_a_second_file(
        inspector: LocalInspector, root: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    await inspector.write_high_water("1.2.3 9")
    real = Path.open

    def has_no_room(path: Path, mode: str = "r") -> IO[Any]:
        if mode == "wb":
            raise OSError(number, os.strerror(number))
        return real(path, mode)

    monkeypatch.setattr(Path, "open", has_no_room)
    await inspector.write_high_water("1.2.3 10")
    assert (root / "HIGH_WATER").read_bytes() == b"1.2.3 10\n"
    (root / "HIGH_WATER").unlink()
    with pytest.raises(OSError) as caught:  # then nothing may be removed: an older state would not be noticed
        await inspector.write_high_water("1.2.3 11")
    assert caught.value.errno == number
