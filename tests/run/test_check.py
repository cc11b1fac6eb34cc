"""The command `check` beside a real service: running and stopped, for people and for scripts."""

import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from service.run.postgres import EmbeddedPostgres
from tests.client import Api, new_account
from tests.run.conftest import PROJECT
from tests.stack import Stack


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A service of these tests' own, since its files will be damaged."""
    stack = Stack(tmp_path_factory.mktemp("check") / "data", {"WORKERS": "1"}).start()
    yield stack
    if stack.process is not None:
        stack.stop()


def check(environment: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the command, with nobody at a terminal."""
    return subprocess.run([sys.executable, "-m", "service", "check", *arguments], env=environment, cwd=PROJECT,
                          capture_output=True, text=True, timeout=120)


def report(environment: dict[str, str], *arguments: str, code: int) -> Any:
    """What a script gets; the exit code has to be this one."""
    done = check(environment, "--json", *arguments)
    assert done.returncode == code, done.stdout + done.stderr
    return orjson.loads(done.stdout)


def blob_of(stack: Stack, data: bytes) -> Path:
    """The file that holds these bytes."""
    [path] = [path for path in (stack.root / "blobs").glob("*/*") if path.read_bytes() == data]
    return path


async def test_check_of_a_service_running_and_stopped(session: aiohttp.ClientSession, service: Stack) -> None:
    """From healthy to damaged, repaired as far as can be, healthy again: exit codes, reports, what a client sees."""
    environment = service.environment()
    api = await new_account(session, service)
    await api.put("/a/\u202fodd name", b"some bytes")
    await api.put("/b", b"other bytes")

    done = check(environment)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout == "2 blobs (21 B read), 2 files on the disk, 0 in quarantine\nall is well\n"

    path = blob_of(service, b"some bytes")
    path.write_bytes(b"fame bytes")
    done = check(environment)
    assert (done.returncode, done.stderr) == (1, "")
    assert f"digest: {path.name}\n" in done.stdout
    assert f"of {api.username}: /a/\\u202fodd name, version 1 (current)\n" in done.stdout

    await _damage_is_set_aside(api, path, environment)
    path.write_bytes(b"some bytes")
    assert report(environment, "--repair", code=0)["findings"] == []
    path.write_bytes(b"same bytes")  # the good copy rots too, and what rotted first is still in quarantine
    await _damage_is_set_aside(api, path, environment)
    service.stop()
    path.write_bytes(b"some bytes")
    assert report(environment, code=0)["findings"] == []
    blob_of(service, b"other bytes").unlink()
    found = report(environment, "--quick", code=1)
    [finding] = found["findings"]
    assert (finding["kind"], finding["repaired"], found["bytes_read"]) == ("missing", False, 0)
    assert [affected["path"] for affected in finding["affected"]] == ["/b"]


async def _damage_is_set_aside(api: Api, path: Path, environment: dict[str, str]) -> None:
    """While the service runs: no client gets the wrong bytes any more, and is told so."""
    [finding] = report(environment, "--repair", code=1)["findings"]
    assert (finding["kind"], finding["subject"], finding["repaired"]) == ("digest", path.name, False)
    assert [affected["path"] for affected in finding["affected"]] == ["/a/\u202fodd name"]
    reply = await api.get("/a/\u202fodd name", expect=500)
    assert reply.code == "content_unavailable"
    await api.call("GET", "/readyz", expect=200)
    assert (await api.get("/b")).body == b"other bytes"


def test_progress_is_shown_on_a_terminal_and_nothing_of_it_stays(service: Stack) -> None:
    """The service is stopped: its database is started for this."""
    leader, follower = pty.openpty()
    with subprocess.Popen([sys.executable, "-m", "service", "check"], env=service.environment(), cwd=PROJECT,
                          stdout=subprocess.PIPE, stderr=follower, text=True) as process:
        os.close(follower)
        shown = b""
        while True:
            try:
                piece = os.read(leader, 65536)
            except OSError:  # EIO: the other end is closed
                break
            if not piece:
                break
            shown += piece
        assert process.stdout is not None
        said = process.stdout.read()
    os.close(leader)
    assert b"\r\x1b[Kcheck: " in shown and shown.endswith(b"\r\x1b[K")
    assert "\x1b" not in said and said.startswith("2 blobs")


def test_what_cannot_be_checked_is_said_in_a_sentence(
        service: Stack, tmp_path: Path, postgres: EmbeddedPostgres) -> None:
    postgres.ensure_database("without_a_schema")
    nowhere = f"postgresql://postgres@/x?host={tmp_path}"
    for settings, sentence in [
            ({"DATA_ROOT": str(tmp_path / "none")}, "there is no service in"),
            ({"DATABASE_URL": nowhere}, "No such file"),
            ({"DATABASE_URL": postgres.dsn("without_a_schema")}, "has no schema")]:
        done = check(service.environment() | {f"FILE_STORAGE_{name}": value for name, value in settings.items()})
        assert (done.returncode, done.stdout) == (2, ""), done.stdout
        assert done.stderr.startswith("error: it could not be checked: ") and sentence in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "none").exists()


ENDLESS = """
import asyncio
import signal
import sys
from service import __main__ as service
from service.domain.check import Check

async def run(self, **options):
    print("looking", flush=True)
    await asyncio.Event().wait()

Check.run = run
signal.signal(signal.SIGINT, signal.SIG_IGN)  # as for what a script has put into the background
sys.exit(service.main(["check"]))
"""


def test_service_starts_although_somebody_has_begun_to_look_through_its_data(tmp_path: Path) -> None:
    """A check by a timer, say, that came while the service was restarted: it has the data root, and PostgreSQL."""
    stack = Stack(tmp_path / "data", {"WORKERS": "1"})
    with stack.running():
        pass
    with subprocess.Popen([sys.executable, "-c", ENDLESS], env=stack.environment(), cwd=PROJECT, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as looking:
        assert looking.stdout and looking.stderr and looking.stdout.readline() == "looking\n"
        try:
            with stack.running():
                assert looking.wait(60) == 130
        finally:
            looking.kill()
        assert looking.stderr.read() == "ended before it was done\n"
