"""Small bodies: durable before they are answered for, whole or not there, and never twice under one key."""

import errno
import hashlib
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.errors import DiskFailed, ServiceError, StorageFull, Unavailable
from service.model import BlobKey, Staged, new_uuid, uuid_at
from service.storage import small
from service.storage.local import LocalStore
from tests.storage.conftest import EPOCH, found_in
from tests.storage.disk import Disk, install

BODY = bytes(range(256)) * 16
ORDER = ["write bytes", "fsync bytes", "link bytes", "fsync folder"]


@pytest.fixture
def disk(root: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    """A disk that fails when told to."""
    return install(monkeypatch, root)[0]


@pytest.fixture(params=["unnamed", "named"])
def store(request: pytest.FixtureRequest, root: Path, disk: Disk,
          monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalStore]:
    """An open store, on a file system that has files without names and on one that has none."""
    if request.param == "named":
        monkeypatch.setattr(small, "_open_unnamed", lambda folder: None)
    opened = LocalStore(root)
    opened.open(EPOCH)
    yield opened
    opened.close()


def stage(store: LocalStore, key: BlobKey | None = None, body: bytes = BODY) -> Staged:
    """A small body that has come in, in two pieces."""
    writer = store.small_writer(key)
    writer.write(body[:100])
    writer.write(body[100:])
    return writer.finish()


def steps(disk: Disk) -> list[str]:
    """What was done to the disk, in order."""
    kinds = {"os.write": "write", "os.fsync": "fsync", "os.link": "link"}
    return [f"{kinds[name]} {'folder' if '/blobs/' in path and Path(path).is_dir() else 'bytes'}"
            for name, path in disk.calls if name in kinds]


async def test_small_body_is_nowhere_until_it_is_placed_and_then_whole(store: LocalStore, root: Path) -> None:
    staged = stage(store)
    assert list(found_in(root / "staging")) == list(found_in(root / "blobs")) == []
    assert (staged.size_bytes, staged.sha256, staged.crc32) == (
        len(BODY), hashlib.sha256(BODY).digest(), zlib.crc32(BODY))
    assert BODY.hex()[:20] not in repr(staged)
    await store.place(staged)
    assert store.path(staged.key).read_bytes() == BODY
    assert store.path(staged.key).stat().st_mode & 0o777 == 0o600
    assert store.path(staged.key).stat().st_nlink == 1
    assert list(found_in(root / "staging")) == []


async def test_bytes_are_forced_before_the_link_and_the_folder_after_it(store: LocalStore, disk: Disk) -> None:
    staged = stage(store)
    disk.expect(None, 0)
    await store.place(staged)
    assert steps(disk) == ORDER


@pytest.mark.mutant("M1", "no fsync of a small body")
@pytest.mark.mutant("M2", "no fsync of the folder of a small body")
@pytest.mark.parametrize("forgotten", ["bytes", "folder"])
async def test_placement_that_forgets_an_fsync_is_found_out(
        store: LocalStore, disk: Disk, monkeypatch: pytest.MonkeyPatch, forgotten: str) -> None:
    system = vars(small)["os"]
    real: Callable[[int], None] = system.fsync

    def fsync(descriptor: int) -> None:
        is_folder = Path(f"/proc/self/fd/{descriptor}").is_dir()
        if is_folder != (forgotten == "folder"):
            real(descriptor)

    monkeypatch.setattr(system, "fsync", fsync, raising=False)
    staged = stage(store)
    disk.expect(None, 0)
    await store.place(staged)
    assert steps(disk) == [step for step in ORDER if step != f"fsync {forgotten}"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EMFILE], ids=errno.errorcode.__getitem__)
async def test_any_call_that_fails_gives_the_right_error_and_leaves_nothing(
        store: LocalStore, root: Path, disk: Disk, number: int) -> None:
    disk.expect(None, 0)
    await store.place(first := stage(store))
    await store.delete(first.key)
    calls = [call for call in disk.seen() if call[0].startswith("os.")]
    assert {"os.open", "os.write", "os.fsync", "os.link"} == {name for name, _ in calls}
    expected = {errno.ENOSPC: StorageFull, errno.EIO: DiskFailed, errno.EMFILE: Unavailable}[number]
    for call in calls:
        disk.expect(call, number)
        with pytest.raises(ServiceError) as caught:
            await store.place(stage(store))
        assert isinstance(caught.value, expected), call
        assert list(found_in(root / "staging")) == list(found_in(root / "blobs")) == [], call
        synced = [path for name, path in disk.calls if name == "os.fsync"]
        assert len(set(synced)) == len(synced), "an fsync that failed was tried again"


async def test_two_bodies_of_one_request_are_never_both_stored(store: LocalStore, root: Path) -> None:
    """nginx sends a PUT again when the connection to a worker breaks; the first may have got anywhere."""
    key = BlobKey(uuid_at(1_600_000_000_000, 2**128 - 1))
    await store.place(stage(store, key))
    with pytest.raises(Unavailable) as caught:
        await store.place(stage(store, key, b"another"))
    assert caught.value.retry_after_seconds
    assert store.path(key).read_bytes() == BODY
    assert list(found_in(root / "staging")) == []


def test_uuid_of_a_moment_is_a_uuid7_of_that_moment() -> None:
    before, made, after = uuid_at(0, 0), uuid_at(1_600_000_000_000, 2**128 - 1), new_uuid()
    assert before < made < after
    assert (made.version, made.variant) == (7, after.variant)
    assert made == uuid_at(1_600_000_000_000, 2**128 - 1) != uuid_at(1_600_000_000_000, 2**128 - 2)
    assert made.int >> 80 == 1_600_000_000_000
