"""What watches over every service that a test starts."""

import json
import subprocess
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from tests.client import Api, Reply
from tests.faults.clients import Account
from tests.faults.sites import MISTAKEN, FaultyStack
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


def failing(root: Path, faults: str = "") -> FaultyStack:
    """A service of the tests of faults that has logged an exception."""
    log(root, level="error", event="request.failed", exception="Traceback ...\nZeroDivisionError: oh")
    return FaultyStack(root, process=subprocess.Popen(["sleep", "60"]), faults=faults)


@pytest.mark.parametrize("faults", ["", "slow_place", "m14"])
def test_exception_that_no_fault_explains_fails_who_stops_a_faulty_service(tmp_path: Path, faults: str) -> None:
    with pytest.raises(AssertionError, match="ZeroDivisionError: oh"):
        failing(tmp_path, faults).stop()


@pytest.mark.parametrize("word", sorted(MISTAKEN))
def test_exception_that_a_built_in_mistake_explains_fails_nobody(tmp_path: Path, word: str) -> None:
    failing(tmp_path, f"slow_place {word}").stop()


def test_line_of_an_exception_that_was_cut_off_is_one(tmp_path: Path) -> None:
    log(tmp_path)
    (tmp_path / "log" / "service.log").write_bytes(b'\0\xff{"event":"x","level":"error","exception":"Traceback ...\n')
    with pytest.raises(AssertionError, match="Traceback"):
        ended(tmp_path).stop()


class Answered(Api):
    """Whatever it is asked for, the answer is a 500."""

    async def call(self, method: str, path: str, **more: Any) -> Reply:
        """It."""
        return Reply(500, CIMultiDictProxy(CIMultiDict()), b'{"code": "internal_error"}')


@pytest.mark.parametrize("faults", ["", "steps"])
async def test_change_that_is_a_500_is_no_change_in_doubt(tmp_path: Path, faults: str) -> None:
    async with aiohttp.ClientSession() as session:
        account = Account(Answered(session, FaultyStack(tmp_path, faults=faults)))
        if faults:
            await account.put("/a", b"")
            assert account.ledger.in_doubt == 1
        else:
            for put in (account.put, account.put_surely):
                with pytest.raises(AssertionError, match="internal_error"):
                    await put("/a", b"")
