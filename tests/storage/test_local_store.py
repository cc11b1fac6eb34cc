"""The store on a local disk: a claimed body is this request's own, a placed blob is durable, nothing is overwritten."""

import asyncio
import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings, strategies as st

from service.errors import BadRequest, IncompleteBody, ServiceError, Unavailable
from service.model import BlobKey, Staged, new_uuid
from service.storage import local
from service.storage.base import Claim, StoreError
from service.storage.local import LocalStore
from tests.storage.conftest import EPOCH, Spool, found_in, stage

BODY = b"the body of a request"


async def placed(store: LocalStore, data: bytes) -> BlobKey:
    """Upload through the connection."""
    staged = stage(store, data)
    await store.place(staged)
    return staged.key


# --- claim ---

def test_claimed_body_stays_when_nginx_unlinks_its_name(store: LocalStore, spool: Spool) -> None:
    file = spool.take(BODY)
    claim = store.claim(str(file), len(BODY))
    file.unlink()
    assert b"".join(store.consume(claim)) == BODY
    assert claim.size_bytes == len(BODY)


def test_empty_body_can_be_claimed(store: LocalStore, spool: Spool) -> None:
    claim = store.claim(str(spool.take(b"")), 0)
    assert b"".join(store.consume(claim)) == b""


def test_body_of_unknown_length_can_be_claimed(store: LocalStore, spool: Spool) -> None:
    assert store.claim(str(spool.take(BODY)), None).size_bytes == len(BODY)


@pytest.mark.parametrize("announced", [0, len(BODY) - 1, len(BODY) + 1, 10**18])
def test_body_of_another_length_than_announced_is_refused(store: LocalStore, spool: Spool, root: Path,
                                                          announced: int) -> None:
    with pytest.raises(IncompleteBody):
        store.claim(str(spool.take(BODY)), announced)
    assert found_in(root / "staging") == {}


GOOD = "0123456789abcdef0123456789abcdef/body/1/00/0000000001"


@pytest.mark.parametrize("spooled", [
    "", "/", "/etc/passwd", "../../../etc/passwd", "0000000001", GOOD, f"/{GOOD}/", f"/{GOOD}\n", f"/{GOOD}\0",
    f"/{GOOD}.tmp", f"/{GOOD}/../0000000001", "/spool/0123456789ABCDEF0123456789ABCDEF/body/1/00/0000000001",
    "/spool/../blobs/ff/x", "/spool/0123456789abcdef0123456789abcdef/body/../../../MARKER",
    "/spool/0123456789abcdef0123456789abcdef/body/1/00/..", "/0123456789abcdef0123456789abcdef/body/1/00/000000001",
    "/0123456789abcdef0123456789abcdef/body/\u0661/00/0000000001", "/x/body/1/00/0000000001",
    "/0123456789abcdef0123456789abcde/body/1/00/0000000001", "/0123456789abcdef0123456789abcdef/proxy/1/00/0000000001"])
def test_name_that_nginx_never_makes_is_refused(store: LocalStore, spool: Spool, root: Path, spooled: str) -> None:
    spool.take(BODY)
    with pytest.raises(BadRequest):
        store.claim(spooled, None)
    assert found_in(root / "staging") == {}


@settings(deadline=None)
@given(st.lists(st.sampled_from(["/", "..", ".", "a", GOOD, "MARKER", "\n", "\0", "body", "0"]), max_size=6))
def test_whatever_is_named_only_the_spool_is_looked_at(pieces: list[str]) -> None:
    # the store is never opened: nothing but a name of the spool may be looked for
    store = LocalStore(Path("/nowhere/at/all"))
    with pytest.raises((BadRequest, Unavailable)):
        store.claim("".join(pieces), None)
    store.close()


def test_only_the_end_of_the_name_counts_so_it_leads_nowhere_else(
        store: LocalStore, spool: Spool, tmp_path: Path) -> None:
    other = Spool(tmp_path / "elsewhere")
    foreign = other.take(b"not ours")
    with pytest.raises(Unavailable):
        store.claim(str(foreign), None)
    with pytest.raises(Unavailable):
        store.claim(f"{spool.take(BODY).parents[6]}/../../elsewhere/spool/{other.start}/body/1/00/0000000001", None)
    assert foreign.read_bytes() == b"not ours"


def test_body_of_an_earlier_start_of_nginx_is_not_found(store: LocalStore, spool: Spool) -> None:
    earlier = spool.take(BODY)
    earlier.unlink()
    spool.restart()
    spool.take(b"of another request")
    with pytest.raises(Unavailable):
        store.claim(str(earlier), None)


def test_symlink_in_place_of_the_body_is_refused(store: LocalStore, spool: Spool, root: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    file = spool.take(BODY)
    file.unlink()
    file.symlink_to(tmp_path / "secret")
    with pytest.raises(Unavailable):
        store.claim(str(file), None)
    assert found_in(root / "staging") == {}
    assert (tmp_path / "secret").stat().st_nlink == 1


def test_folder_in_place_of_the_body_is_refused(store: LocalStore, spool: Spool, root: Path) -> None:
    file = spool.take(BODY)
    file.unlink()
    file.mkdir()
    with pytest.raises(Unavailable):
        store.claim(str(file), None)
    assert found_in(root / "staging") == {}


def test_body_with_a_second_name_belongs_to_somebody_else_already(store: LocalStore, spool: Spool, root: Path) -> None:
    file = spool.take(BODY)
    claim = store.claim(str(file), None)
    with pytest.raises(Unavailable):
        store.claim(str(file), None)
    assert found_in(root / "staging") == {str(claim.key): BODY}


async def test_body_claimed_by_many_at_once_goes_to_one(store: LocalStore, spool: Spool, root: Path) -> None:
    def claim(file: Path) -> Claim | None:
        try:
            return store.claim(str(file), None)
        except Unavailable:
            return None

    with ThreadPoolExecutor(8) as threads:
        for _ in range(20):
            file = spool.take(BODY)
            claims = [found for found in threads.map(claim, [file] * 8) if found]
            # two that looked before either had linked both see one name; both then hold the same bytes, as they should
            assert claims and all((root / "staging" / str(found.key)).read_bytes() == BODY for found in claims)


def test_file_swapped_between_look_and_link_is_refused_and_left_alone(
        store: LocalStore, spool: Spool, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = spool.take(b"of Alice")
    link = os.link

    def swap_and_link(source: Path, target: Path, **kwargs: bool) -> None:
        source.unlink()  # nginx has ended the request of Alice ...
        source.write_bytes(b"of Bob!!")  # ... and gives her file's name to Bob's
        link(source, target, **kwargs)

    monkeypatch.setattr(os, "link", swap_and_link)
    with pytest.raises(Unavailable):
        store.claim(str(file), 8)
    assert found_in(root / "staging") == {}
    assert file.read_bytes() == b"of Bob!!"


def test_symlink_swapped_in_between_look_and_link_is_refused(
        store: LocalStore, spool: Spool, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    file = spool.take(BODY)
    link = os.link

    def swap_and_link(source: Path, target: Path, **kwargs: bool) -> None:
        source.unlink()
        source.symlink_to(tmp_path / "secret")
        link(source, target, **kwargs)

    monkeypatch.setattr(os, "link", swap_and_link)
    with pytest.raises(Unavailable):
        store.claim(str(file), None)
    assert list((root / "staging").iterdir()) == []


async def test_late_adoption_mix_up_gives_nobody_the_bytes_of_another(store: LocalStore, spool: Spool) -> None:
    """Alice goes away, nginx restarts, Bob's body gets the name that hers had."""
    alice = spool.take(b"bytes of Alice")
    in_time = store.claim(str(alice), 14)
    alice.unlink()
    spool.restart()
    bob = spool.take(b"bytes of Bob  ")
    assert bob.name == alice.name
    # the handler of Alice is still at work: what it claimed in time is hers
    staged = await store.adopt(in_time)
    await store.place(staged)
    assert store.path(staged.key).read_bytes() == b"bytes of Alice"
    # and had it come late, it would have got nothing rather than Bob's
    with pytest.raises(Unavailable):
        store.claim(str(alice), 14)
    claim = store.claim(str(bob), 14)
    assert (await store.adopt(claim)).sha256 == hashlib.sha256(b"bytes of Bob  ").digest()


# --- adopt, write ---

@pytest.mark.parametrize("size", [0, 1, local.PIECE_BYTES - 1, local.PIECE_BYTES, 2 * local.PIECE_BYTES + 7])
async def test_adopted_and_written_bodies_have_their_digest_and_size(
        store: LocalStore, spool: Spool, size: int) -> None:
    data = os.urandom(size)
    expected = (size, hashlib.sha256(data).digest())
    adopted = await store.adopt(store.claim(str(spool.take(data)), size))
    assert (adopted.size_bytes, adopted.sha256) == expected
    written = stage(store, data)
    assert (written.size_bytes, written.sha256) == expected
    for staged in (adopted, written):
        await store.place(staged)
        assert store.path(staged.key).read_bytes() == data


@settings(deadline=None, max_examples=30)
@given(pieces=st.lists(st.binary(max_size=50) | st.sampled_from([b"x" * 2**17, b"y" * (2**17 - 1)]), max_size=8))
def test_body_written_in_any_pieces_is_their_sum(tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]) -> None:
    root = tmp_path_factory.mktemp("data")
    store = LocalStore(root)
    (root / "staging").mkdir()
    writer = store.writer()
    for piece in pieces:
        writer.write(piece)
        writer.write(memoryview(bytearray(piece)))
    whole = b"".join(piece * 2 for piece in pieces)
    assert writer.size_bytes == len(whole)
    staged = writer.finish()
    assert (staged.size_bytes, staged.sha256) == (len(whole), hashlib.sha256(whole).digest())
    assert found_in(root / "staging") == {str(staged.key): whole}
    store.close()


def test_consumed_body_comes_whole_and_leaves_no_blocks(store: LocalStore, spool: Spool, root: Path) -> None:
    data = os.urandom(3 * local.PIECE_BYTES + 5)
    claim = store.claim(str(spool.take(data)), len(data))
    assert b"".join(store.consume(claim)) == data
    left = (root / "staging" / str(claim.key)).stat()
    assert left.st_size == len(data)
    assert left.st_blocks * 512 < local.PIECE_BYTES


def test_aborted_body_leaves_nothing_and_abort_may_be_repeated(store: LocalStore, root: Path) -> None:
    writer = store.writer()
    writer.write(BODY)
    writer.abort()
    writer.abort()
    assert found_in(root / "staging") == {}


async def test_abort_after_finish_leaves_the_body_alone(store: LocalStore) -> None:
    writer = store.writer()
    writer.write(BODY)
    staged = writer.finish()
    writer.abort()
    await store.place(staged)
    writer.abort()
    assert store.path(staged.key).read_bytes() == BODY


def test_discard_takes_what_is_staged_and_may_be_repeated(store: LocalStore, root: Path) -> None:
    staged = stage(store, BODY)
    store.discard(staged.key)
    store.discard(staged.key)
    assert found_in(root / "staging") == {}


async def test_discard_never_takes_a_placed_blob(store: LocalStore) -> None:
    key = await placed(store, BODY)
    store.discard(key)
    assert store.path(key).read_bytes() == BODY


# --- place, delete ---

async def test_placed_blob_is_where_it_is_looked_for_under_one_name(store: LocalStore, root: Path) -> None:
    key = await placed(store, BODY)
    assert store.locate(key) == f"{str(key)[-2:]}/{key}"
    assert store.path(key) == root / "blobs" / store.locate(key)
    assert store.path(key).stat().st_nlink == 1
    assert found_in(root / "staging") == {}


async def test_second_placement_under_one_key_fails_and_overwrites_nothing(store: LocalStore, root: Path) -> None:
    key = await placed(store, BODY)
    (root / "staging" / str(key)).write_bytes(b"something else")
    with pytest.raises(FileExistsError):
        await store.place(Staged(key=key, size_bytes=14, sha256=bytes(32)))
    assert store.path(key).read_bytes() == BODY
    assert found_in(root / "staging") == {str(key): b"something else"}


async def test_concurrent_placements_under_one_key_place_one(store: LocalStore) -> None:
    staged = stage(store, BODY)
    outcomes = await asyncio.gather(*(store.place(staged) for _ in range(10)), return_exceptions=True)
    assert outcomes.count(None) == 1
    assert all(outcome is None or isinstance(outcome, FileExistsError | FileNotFoundError) for outcome in outcomes)
    assert store.path(staged.key).read_bytes() == BODY


async def test_body_that_is_not_staged_cannot_be_placed(store: LocalStore, root: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await store.place(Staged(key=BlobKey(new_uuid()), size_bytes=0, sha256=bytes(32)))
    assert found_in(root / "blobs") == {}


async def test_deletion_takes_one_blob_and_a_missing_one_is_fine(store: LocalStore, root: Path) -> None:
    key, other = await placed(store, BODY), await placed(store, BODY)
    await store.delete(key)
    await store.delete(key)
    assert found_in(root / "blobs") == {store.locate(other): BODY}


async def test_open_blob_can_be_read_to_its_end_after_its_deletion(store: LocalStore) -> None:
    key = await placed(store, BODY)
    with store.path(key).open("rb") as file:
        await store.delete(key)
        assert file.read() == BODY


# --- the folders, the marker ---

def test_all_folders_are_there_from_the_first_start(fresh_root: Path) -> None:
    LocalStore(fresh_root).open(EPOCH)
    assert sorted(folder.name for folder in (fresh_root / "blobs").iterdir()) == [f"{n:02x}" for n in range(256)]
    for name in ("", "blobs", "staging", "spool", "blobs/00", "blobs/ff"):
        assert (fresh_root / name).stat().st_mode & 0o777 == 0o700
    assert (fresh_root / "MARKER").read_text(encoding="ascii") == f"{EPOCH}\n"


async def test_start_after_a_crash_deletes_nothing_and_works(store: LocalStore, spool: Spool, root: Path) -> None:
    key = await placed(store, BODY)
    leftovers = [stage(store, b"staged"), stage(store, b"linked but not unlinked")]
    os.link(root / "staging" / str(leftovers[1].key), store.path(leftovers[1].key))
    spool.take(b"spooled")
    (root / "staging" / "half").write_bytes(b"")
    before = found_in(root)
    again = LocalStore(root)
    again.open(EPOCH)
    assert found_in(root) == before
    assert again.path(await placed(again, b"new")).read_bytes() == b"new"
    assert again.path(key).read_bytes() == BODY
    again.close()


def test_root_of_another_database_is_refused_and_left_as_it_is(store: LocalStore, root: Path) -> None:
    stranger = uuid4()
    with pytest.raises(StoreError, match=f"{EPOCH}.*{stranger}"):
        LocalStore(root).open(stranger)
    assert (root / "MARKER").read_text(encoding="ascii") == f"{EPOCH}\n"
    LocalStore(root).open(EPOCH)


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe\x00", b"not an id\n", str(EPOCH).encode()[:-1]])
def test_damaged_marker_is_refused_whatever_the_database(store: LocalStore, root: Path, content: bytes) -> None:
    (root / "MARKER").write_bytes(content)
    with pytest.raises(StoreError, match="MARKER"):
        LocalStore(root).open(EPOCH)
    assert (root / "MARKER").read_bytes() == content


def test_workers_that_start_at_once_agree_on_the_marker(fresh_root: Path) -> None:
    epochs = [EPOCH, uuid4()] * 6
    begin = threading.Barrier(len(epochs))

    def start(epoch: UUID) -> UUID | None:
        begin.wait()
        try:
            LocalStore(fresh_root).open(epoch)
        except StoreError:
            return None
        return epoch

    with ThreadPoolExecutor(len(epochs)) as threads:
        outcomes = [outcome for outcome in threads.map(start, epochs) if outcome is not None]
    assert len(set(outcomes)) == 1 and len(outcomes) == 6
    assert (fresh_root / "MARKER").read_text(encoding="ascii") == f"{outcomes[0]}\n"
    assert sorted(entry.name for entry in fresh_root.iterdir()) == ["MARKER", "blobs", "spool", "staging"]


def test_folders_on_two_file_systems_are_refused(tmp_path: Path) -> None:
    other = Path("/dev/shm") / uuid4().hex
    other.mkdir()
    try:
        assert other.stat().st_dev != tmp_path.stat().st_dev
        (tmp_path / "staging").symlink_to(other)
        with pytest.raises(StoreError, match="one file system"):
            LocalStore(tmp_path).open(EPOCH)
    finally:
        other.rmdir()


def test_root_that_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StoreError, match="cannot be used"):
            LocalStore(place).open(EPOCH)


async def test_ping_reads_the_disk_and_fails_without_it(store: LocalStore, root: Path) -> None:
    await store.ping()
    assert store.room().free_bytes > 0 and not store.room().is_read_only
    (root / "MARKER").unlink()
    with pytest.raises(OSError):
        await store.ping()


def test_errors_of_the_store_are_never_of_http() -> None:
    assert not issubclass(StoreError, ServiceError)
