"""Folders in the machine's memory: a living service keeps its own, and nothing is left of dead ones."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from service.run import memory
from service.run.folders import locked

OWNER = """
import sys
from pathlib import Path
from service.run.folders import locked
with locked(Path(sys.argv[1])) as places:
    print(places.memory, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place of our own instead of the machine's."""
    folder = tmp_path / "shm"
    folder.mkdir()
    monkeypatch.setattr(memory, "SHARED_MEMORY", folder)
    return folder


def test_folder_of_a_killed_service_whose_data_root_is_gone_is_removed_by_the_next_start(tmp_path: Path) -> None:
    """In the machine's memory, beside a service that lives and one that has ended."""
    owners = [subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path / name)], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True) for name in ("killed", "living", "ended")]
    try:
        killed, living, ended = (Path(owner.stdout.readline().strip()) for owner in owners if owner.stdout)
        assert {path.parent for path in (killed, living, ended)} == {Path("/dev/shm")}
        owners[0].send_signal(signal.SIGKILL)
        owners[0].wait()
        owners[2].communicate()
        shutil.rmtree(tmp_path / "killed")
        assert killed.is_dir() and living.is_dir() and not ended.exists()
        assert (killed / memory.OWNER).read_text() == str(tmp_path / "killed")
        with locked(tmp_path / "next") as places:
            assert places.memory.is_dir() and places.memory not in (killed, living)
            assert not killed.exists()
            assert living.is_dir() and (living / memory.OWNER).is_file()
    finally:
        for owner in owners:
            owner.communicate()


def a_folder_that_is_held_stays(root: Path) -> None:
    """Whoever cleans up, even in the moment between the folder and the lock on it."""
    path, file = memory.make(root)
    memory.remove_abandoned()
    assert path.is_dir() and (path / memory.OWNER).is_file()
    os.close(file)
    memory.remove_abandoned()
    assert not path.exists()


@pytest.fixture(params=["at rest", "while it is made"])
def moment(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """When somebody else cleans up."""
    times = iter([True, True, False])
    make_folder = tempfile.mkdtemp

    def interrupted(prefix: str, dir: Path) -> str:
        path = make_folder(prefix=prefix, dir=dir)
        if next(times):
            memory.remove_abandoned()
            assert not Path(path).exists()
        return path

    if request.param == "while it is made":
        monkeypatch.setattr(tempfile, "mkdtemp", interrupted)


def test_folder_that_is_held_stays(shared_memory: Path, tmp_path: Path, moment: None) -> None:
    a_folder_that_is_held_stays(tmp_path)
    assert list(shared_memory.iterdir()) == []


@pytest.mark.mutant("N2", "a service that does not hold its folder in memory")
def test_folder_that_nobody_holds_is_found_out(shared_memory: Path, tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda file, operation: None)
    with pytest.raises(AssertionError):
        a_folder_that_is_held_stays(tmp_path)


def _linked(folder: Path, elsewhere: Path) -> None:
    folder.symlink_to(elsewhere)


def _open_to_others(folder: Path, elsewhere: Path) -> None:
    shutil.copytree(elsewhere, folder)
    folder.chmod(0o755)


def _of_another_program(folder: Path, elsewhere: Path) -> None:
    folder.mkdir(mode=0o700)
    (folder / "data").touch()


def _file(folder: Path, elsewhere: Path) -> None:
    folder.write_bytes(b"x")


def _pipe(folder: Path, elsewhere: Path) -> None:
    os.mkfifo(folder)


@pytest.mark.parametrize("make", [_linked, _open_to_others, _of_another_program, _file, _pipe])
def test_what_was_not_made_here_stays(shared_memory: Path, tmp_path: Path, make: Callable[[Path, Path], None]) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (elsewhere / memory.OWNER).write_text("x")
    make(shared_memory / f"{memory.PREFIX}x", elsewhere)
    (shared_memory / "other").mkdir(mode=0o700)
    memory.remove_abandoned()
    assert sorted(path.name for path in shared_memory.iterdir()) == [f"{memory.PREFIX}x", "other"]
    assert (elsewhere / memory.OWNER).is_file()


def test_links_inside_are_not_followed(shared_memory: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    path, file = memory.make(tmp_path)
    (path / "link").symlink_to(kept)
    os.close(file)
    memory.remove_abandoned()
    assert not path.exists() and (kept / "file").is_file()


def test_folder_of_another_user_stays(shared_memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, file = memory.make(tmp_path)
    os.close(file)
    monkeypatch.setattr(os, "geteuid", lambda uid=os.geteuid(): uid + 1)
    memory.remove_abandoned()
    assert path.is_dir()
