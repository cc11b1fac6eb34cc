"""Each call of the store to the disk fails once: the right error, nothing left behind, no fsync tried again."""

import errno
import hashlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from service.errors import DiskFailed, ServiceError, StorageFull, Unavailable
from service.model import BlobKey, Staged
from service.storage import local
from service.storage.base import StoreError
from service.storage.local import LocalStore
from tests.storage.conftest import EPOCH, Spool, found_in
from tests.storage.disk import Call, Disk, install

BODY = b"x" * (local.PIECE_BYTES + 100)

Upload = Callable[[LocalStore, Path], Awaitable[BlobKey]]


async def through_the_connection(store: LocalStore, root: Path) -> BlobKey:
    """As api/body.py and domain/content.py do it."""
    writer = await store.run(store.writer)
    try:
        await store.run(writer.write, BODY[:100])
        await store.run(writer.write, BODY[100:])
        staged = await store.run(writer.finish)
    finally:
        await store.run(writer.abort)
    try:
        await store.place(staged)
    except BaseException:
        store.discard(staged.key)
        raise
    return staged.key


async def by_adoption(store: LocalStore, root: Path) -> BlobKey:
    """A raw body that nginx spooled."""
    claim = store.claim(str(Spool(root).take(BODY)), len(BODY))
    try:
        await store.place(await store.adopt(claim))
    except BaseException:
        store.discard(claim.key)
        raise
    return claim.key


async def by_cutting(store: LocalStore, root: Path) -> BlobKey:
    """A form that nginx spooled."""
    claim = store.claim(str(Spool(root).take(BODY)), len(BODY))
    try:
        writer = store.writer()
        try:
            for piece in store.consume(claim):
                writer.write(piece)
            staged = writer.finish()
        finally:
            writer.abort()
        try:
            await store.place(staged)
        except BaseException:
            store.discard(staged.key)
            raise
    finally:
        store.discard(claim.key)
    return staged.key


UPLOADS: list[Upload] = [through_the_connection, by_adoption, by_cutting]
every_upload = pytest.mark.parametrize("upload", UPLOADS, ids=lambda upload: str(upload.__name__))

Faulty = tuple[Disk, LocalStore]


@pytest.fixture
def faulty(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faulty]:
    """A disk that fails when told to, and an open store on it."""
    disk, path = install(monkeypatch, root)
    store = LocalStore(path)
    store.open(EPOCH)
    yield disk, store
    store.close()


async def calls_of(upload: Upload, faulty: Faulty, root: Path) -> list[Call]:
    """What the store does for one upload that succeeds."""
    disk, store = faulty
    disk.expect(None, 0)
    await store.delete(await upload(store, root))
    calls = disk.seen()
    # the last but one took the claimed body away, the last the blob: whoever cannot clean up leaves something
    unlinks = [call for call in calls if call[0] == "path.unlink"]
    return [call for call in calls if call not in unlinks[1:]]


def is_right(error: BaseException, number: int) -> bool:
    """Whether the error is the one for the domain."""
    if number == errno.ENOSPC:
        return isinstance(error, StorageFull)
    if number == errno.EMFILE:
        return isinstance(error, Unavailable) and error.retry_after_seconds is not None
    return isinstance(error, DiskFailed) and error.retry_after_seconds is not None


@every_upload
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EMFILE], ids=errno.errorcode.__getitem__)
async def test_any_call_that_fails_gives_the_right_error_and_leaves_nothing(
        faulty: Faulty, root: Path, upload: Upload, number: int) -> None:
    disk, store = faulty
    calls = await calls_of(upload, faulty, root)
    assert {"os.link", "os.fsync", "os.open"} <= {name for name, _ in calls}
    for call in calls:
        disk.expect(call, number)
        with pytest.raises(ServiceError) as caught:
            await upload(store, root)
        is_withdrawn = call == ("os.open", 0) and upload is not through_the_connection
        assert is_right(caught.value, number) or is_withdrawn and isinstance(caught.value, Unavailable), call
        assert list(found_in(root / "staging")) == [], call
        assert list(found_in(root / "blobs")) == [], call
    disk.expect(None, 0)
    key = await upload(store, root)
    assert hashlib.sha256(store.path(key).read_bytes()).digest() == hashlib.sha256(BODY).digest()


@every_upload
async def test_fsync_that_failed_is_never_tried_again(faulty: Faulty, root: Path, upload: Upload) -> None:
    disk, store = faulty
    for call in await calls_of(upload, faulty, root):
        if call[0] != "os.fsync":
            continue
        disk.expect(call, errno.EIO)
        with pytest.raises(DiskFailed):
            await upload(store, root)
        synced = [path for name, path in disk.calls if name == "os.fsync"]
        assert len(set(synced)) == len(synced)


def what_happens_to(disk: Disk, key: BlobKey) -> list[str]:
    """Placement as the disk sees it: the calls that make it durable, in order."""
    wanted = {"os.fsync": "fsync", "os.link": "link"}
    return [f"{wanted[name]} {'folder' if Path(path).is_dir() else 'bytes'}" for name, path in disk.calls
            if name in wanted and (str(key) in path or path.endswith(f"/blobs/{str(key)[-2:]}"))]


@every_upload
async def test_bytes_are_forced_before_the_link_and_the_folder_after_it(
        faulty: Faulty, root: Path, upload: Upload) -> None:
    disk, store = faulty
    disk.expect(None, 0)
    key = await upload(store, root)
    assert what_happens_to(disk, key)[-3:] == ["fsync bytes", "link bytes", "fsync folder"]


@pytest.mark.mutant("M1", "no fsync of the bytes")
@pytest.mark.mutant("M2", "no fsync of the folder")
@every_upload
async def test_store_that_forgets_an_fsync_is_found_out(
        faulty: Faulty, root: Path, upload: Upload, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutants M1 and M2: without these two the test above would prove nothing."""
    disk, store = faulty
    with monkeypatch.context() as mutant:
        mutant.setattr(local, "_sync_folder", lambda folder: None)
        disk.expect(None, 0)
        assert what_happens_to(disk, await upload(store, root))[-2:] == ["fsync bytes", "link bytes"]
    with monkeypatch.context() as mutant:
        mutant.setattr(local.LocalStore, "_sync_file", staticmethod(lambda path: None))
        mutant.setattr(local.LocalWriter, "finish", finish_without_fsync)
        disk.expect(None, 0)
        assert "fsync bytes" not in what_happens_to(disk, await upload(store, root))


@pytest.mark.mutant("M8", "a failed fsync tried again")
async def test_store_that_tries_an_fsync_again_is_found_out(
        faulty: Faulty, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant M8: a second fsync succeeds although the kernel has dropped what the first could not write."""
    disk, store = faulty

    def finish_stubbornly(writer: local.LocalWriter) -> Staged:
        try:
            return finish(writer)
        except DiskFailed:
            return finish(writer)

    finish = local.LocalWriter.finish
    monkeypatch.setattr(local.LocalWriter, "finish", finish_stubbornly)
    disk.expect(("os.fsync", 0), errno.EIO)
    await through_the_connection(store, root)
    synced = [path for name, path in disk.calls if name == "os.fsync"]
    assert len(set(synced)) < len(synced)


def finish_without_fsync(writer: local.LocalWriter) -> Staged:
    assert writer._file is not None
    writer._file.close()
    writer._file = None
    return Staged(key=writer._key, size_bytes=writer.size_bytes, sha256=writer._hash.digest())


# --- start, ping, delete ---

async def test_start_on_a_disk_with_an_error_is_a_refusal_and_the_next_one_works(
        fresh_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, path = install(monkeypatch, fresh_root)
    LocalStore(path).open(EPOCH)
    # one of the 256 folders stands for all
    calls = [call for call in disk.seen() if call[0] != "path.mkdir" or call[1] in (0, 3, 100)]
    for number, call in enumerate(calls):
        disk, path = install(monkeypatch, fresh_root.with_name(f"data-{number}"))
        disk.expect(call, errno.EIO)
        store = LocalStore(path)
        with pytest.raises(StoreError, match="cannot be used"):
            store.open(EPOCH)
        disk.expect(None, 0)
        store.open(EPOCH)
        with pytest.raises(StoreError, match="another database"):
            store.open(uuid4())
        store.close()


async def test_blob_that_cannot_be_deleted_is_still_there(faulty: Faulty, root: Path) -> None:
    disk, store = faulty
    key = await by_adoption(store, root)
    disk.expect(("path.unlink", 0), errno.EIO)
    with pytest.raises(OSError):
        await store.delete(key)
    assert store.path(key).read_bytes() == BODY
