"""What watches over every service that a test starts."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.stack import EXPECTED_MISTAKES, Stack


def log(root: Path, **line: str) -> None:
    (root / "log").mkdir(parents=True, exist_ok=True)
    with (root / "log" / "service.log").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def ended(root: Path) -> Stack:
    """A service that is about to be stopped."""
    return Stack(root, process=subprocess.Popen(["sleep", "60"]))


def test_exception_in_the_log_fails_who_stops_the_service(tmp_path: Path) -> None:
    log(tmp_path, level="error", event="request.failed", exception="Traceback ...\nZeroDivisionError: oh")
    with pytest.raises(AssertionError, match="ZeroDivisionError: oh"):
        ended(tmp_path).stop()


@pytest.mark.parametrize(("level", "exception"), [
    ("warning", "OSError: a server that is away"), *(("error", f"X: {text}") for text in EXPECTED_MISTAKES)])
def test_what_is_expected_in_the_log_fails_nobody(tmp_path: Path, level: str, exception: str) -> None:
    ended(tmp_path / "logged nothing").stop()
    log(tmp_path, level=level, event="request.failed", exception=exception)
    log(tmp_path, level="error", event="blob.damaged")
    ended(tmp_path).stop()
