"""The claim on a data root: one service at a time, and whoever was killed holds it no longer than a moment."""

import fcntl
import os
import time
from pathlib import Path

import pytest

from service.run.folders import CLAIM_TRIES, InUse, claimed


def test_claim_that_a_killed_service_has_left_for_a_moment_is_waited_for(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that it was making when it was killed, and that has not begun its own program."""
    root = tmp_path / "data"
    with claimed(root):
        pass
    left = os.open(root / ".lock", os.O_RDWR)
    fcntl.flock(left, fcntl.LOCK_EX)
    pauses: list[float] = []

    def begin_its_program(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            os.close(left)

    monkeypatch.setattr(time, "sleep", begin_its_program)
    with claimed(root):
        assert len(pauses) == 2


def test_claim_of_a_service_that_runs_is_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "data"
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    said = rf"in use by another service \(process {os.getpid()}\)"
    with claimed(root), pytest.raises(InUse, match=said), claimed(root):
        pass
    assert len(pauses) == CLAIM_TRIES - 1
