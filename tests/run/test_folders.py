"""The claim on a data root: one service at a time, and whoever was killed holds it no longer than a moment."""

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from service.run.folders import LOCK_TRIES, InUse, locked


def test_claim_that_a_killed_service_has_left_for_a_moment_is_waited_for(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that it was making when it was killed, and that has not begun its own program."""
    root = tmp_path / "data"
    with locked(root):
        pass
    left = os.open(root / ".lock", os.O_RDWR)
    fcntl.flock(left, fcntl.LOCK_EX)
    pauses: list[float] = []

    def begin_its_program(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            os.close(left)

    monkeypatch.setattr(time, "sleep", begin_its_program)
    with locked(root):
        assert len(pauses) == 2


def test_claim_of_a_service_that_runs_is_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "data"
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    said = rf"in use by another service \(process {os.getpid()}\)"
    with locked(root), pytest.raises(InUse, match=said), locked(root):
        pass
    assert len(pauses) == LOCK_TRIES - 1


HOLDER = """
import signal
import sys
from pathlib import Path
from service.run.folders import locked
signal.signal(signal.SIGINT, signal.SIG_IGN)  # as for what a script has put into the background
try:
    with locked(Path(sys.argv[1]), gives_way=sys.argv[2] == "gives way"):
        print("mine", flush=True)
        sys.stdin.read()
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for a claim that is not given up has nothing to wait for."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


@contextmanager
def holder(root: Path, way: str) -> Iterator["subprocess.Popen[str]"]:
    """Another process that has the data root."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(root), way], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout and process.stdout.readline() == "mine\n"
        try:
            yield process
        finally:
            process.stdin.close()


def test_what_gives_way_is_ended_by_a_service_that_starts(tmp_path: Path) -> None:
    root = tmp_path / "data"
    with holder(root, "gives way") as other:
        with locked(root, takes_over=True):
            assert other.wait(60) == 130
            assert (root / ".lock").read_text().split() == [str(os.getpid())]


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize("gives_way", [True, False])
def test_what_gives_way_is_ended_by_nothing_else(tmp_path: Path, gives_way: bool) -> None:
    root = tmp_path / "data"
    with holder(root, "gives way") as other:
        with pytest.raises(InUse), locked(root, gives_way=gives_way):
            pass
        assert other.poll() is None


@pytest.mark.usefixtures("no_pauses")
def test_what_does_not_give_way_is_left_alone(tmp_path: Path) -> None:
    root = tmp_path / "data"
    with holder(root, "stays") as other:
        with pytest.raises(InUse, match=rf"\(process {other.pid}\)"), locked(root, takes_over=True):
            pass
        assert other.poll() is None


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize("words", [f"{os.getppid()} gives way", "x gives way", "0 gives way", "-1 gives way", ""],
                         ids=["parent", "word", "group", "all", "nothing"])
def test_number_that_is_not_the_holders_is_not_ended(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    """It may be of another machine, or of another time."""
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda number, _: killed.append(number))
    root = tmp_path / "data"
    with holder(root, "stays"):
        (root / ".lock").write_text(words)
        with pytest.raises(InUse), locked(root, takes_over=True):
            pass
    assert killed == []
