"""What a start refuses, each in one sentence: a Python, secrets or a data root that are not what they have to be."""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest

from service.config import Config
from service.run import checks
from service.run.processes import StartError
from service.security.addresses import SECRET_FILE
from service.security.tokens import TOKEN_SECRET_FILE
from service.storage.durable import make_folder
from service.storage.local import MARKER
from tests.run.conftest import PROJECT


def check_sentence(error: BaseException) -> str:
    """One sentence, for a person."""
    text = str(error)
    assert text and "\n" not in text and "Error" not in text, text
    return text


# --- Python and its libraries ---

def test_floors_are_those_of_the_project_and_hold_here() -> None:
    with (PROJECT / "pyproject.toml").open("rb") as file:
        dependencies = tomllib.load(file)["project"]["dependencies"]
    for name, floor in checks.FLOORS.items():
        assert f"{name}>={floor}" in dependencies
    checks.check_runtime()


@pytest.mark.parametrize("name", checks.FLOORS)
def test_library_below_its_floor_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    found = metadata.version
    older = re.sub(r"[0-9]+$", lambda last: f"{int(last[0]) - 1}", checks.FLOORS[name]) + ".99"
    monkeypatch.setattr(metadata, "version", lambda asked: older if asked == name else found(asked))
    with pytest.raises(StartError) as caught:
        checks.check_runtime()
    assert all(word in check_sentence(caught.value) for word in (name, older, checks.FLOORS[name]))


@pytest.mark.parametrize(("version", "floor", "is_enough"), [
    ("3.14.5", "3.14.5", True), ("3.14.4", "3.14.5", False), ("3.14.10", "3.14.5", True), ("3.15", "3.14.5", True),
    ("4.0.0a1", "3.14.5", True), ("3.14.5rc1", "3.14.5", False), ("3.14.5.post1", "3.14.5", True),
    ("3.14.5.dev0", "3.14.5", False), ("5.0.0", "5", True), ("5", "5", True), ("4.99", "5", False),
    ("0.32.0", "0.32", True), ("0.4", "0.32", False)])
def test_versions_are_compared_by_their_numbers(version: str, floor: str, is_enough: bool) -> None:
    assert (checks._order(version) >= checks._order(floor)) == is_enough


def test_parser_in_python_alone_is_refused(tmp_path: Path) -> None:
    environment = {**os.environ, "AIOHTTP_NO_EXTENSIONS": "1", "FILE_STORAGE_DATA_ROOT": str(tmp_path / "data")}
    for command in ("run", "serve", "worker"):
        done = subprocess.run([sys.executable, "-m", "service", command], cwd=PROJECT, env=environment,
                              capture_output=True, text=True)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        assert "C parser" in done.stderr
    assert not (tmp_path / "data").exists()


# --- secrets ---

def _settings(**given: str) -> Config:
    return Config.from_environment({f"FILE_STORAGE_{name}": value for name, value in given.items()})


def test_missing_secrets_are_made_for_their_owner_alone(tmp_path: Path) -> None:
    checks.check_secrets(_settings(JWT_SECRET="x" * 32), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {SECRET_FILE}
    checks.check_secrets(_settings(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {SECRET_FILE, TOKEN_SECRET_FILE}
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in tmp_path.iterdir())
    checks.check_secrets(_settings(), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def _make_folder_of(path: Path) -> None:
    path.unlink()
    path.mkdir()


SPOILS: dict[str, Callable[[Path], object]] = {
    "short": lambda path: path.write_text("x" * 31), "empty": lambda path: path.write_text(""),
    "open": lambda path: path.chmod(0o640), "not text": lambda path: path.write_bytes(b"\xff" * 64),
    "a folder": _make_folder_of,
}


@pytest.mark.parametrize("name", [SECRET_FILE, TOKEN_SECRET_FILE])
@pytest.mark.parametrize("spoil", SPOILS)
def test_secret_that_is_none_is_refused(tmp_path: Path, name: str, spoil: str) -> None:
    checks.check_secrets(_settings(), tmp_path)
    SPOILS[spoil](tmp_path / name)
    with pytest.raises(StartError) as caught:
        checks.check_secrets(_settings(), tmp_path)
    assert str(tmp_path / name) in check_sentence(caught.value)


# --- the data root and its database ---

@pytest.fixture
async def root(dsn: str, tmp_path: Path) -> Path:
    """A data root that belongs to the database, which knows a blob."""
    await checks.check_marker(tmp_path / "data", dsn)
    connection = await asyncpg.connect(dsn)
    await connection.execute("INSERT INTO blobs (id, size_bytes, sha256) VALUES ($1, 0, sha256(''))", uuid4())
    await connection.close()
    return tmp_path / "data"


async def test_root_of_the_database_is_taken_again_and_again(dsn: str, root: Path) -> None:
    marker = (root / MARKER).read_text(encoding="ascii")
    await checks.check_marker(root, dsn)
    assert (root / MARKER).read_text(encoding="ascii") == marker


async def test_empty_root_is_refused_when_the_database_has_files(dsn: str, root: Path, tmp_path: Path) -> None:
    """The disk is not mounted: all uploads would go to another one, and every download would fail."""
    with pytest.raises(StartError) as caught:
        await checks.check_marker(tmp_path / "mount point", dsn)
    assert "is its disk mounted?" in check_sentence(caught.value)
    assert not (tmp_path / "mount point").exists()
    # as the sentence says
    (found,) = re.findall(r"[0-9a-f-]{36}", str(caught.value))
    (tmp_path / "mount point").mkdir(mode=0o700)
    (tmp_path / "mount point" / MARKER).write_text(f"{found}\n", encoding="ascii")
    await checks.check_marker(tmp_path / "mount point", dsn)


async def test_root_of_another_database_is_refused(dsn: str, root: Path) -> None:
    (root / MARKER).write_text(f"{uuid4()}\n", encoding="ascii")
    with pytest.raises(StartError, match="belongs to another database") as caught:
        await checks.check_marker(root, dsn)
    check_sentence(caught.value)


# --- folders ---

def test_new_folders_are_forced_to_the_disk_each_after_it_was_made(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data root whose own name is lost in a power cut takes everything with it."""
    done: list[str] = []
    fsync, mkdir = os.fsync, Path.mkdir

    def note_fsync(descriptor: int) -> None:
        done.append(f"force {os.readlink(f'/proc/self/fd/{descriptor}')}")
        fsync(descriptor)

    def note_mkdir(path: Path, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        done.append(f"make {path}")
        mkdir(path, mode, parents, exist_ok)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "mkdir", note_mkdir)
    make_folder(tmp_path / "a" / "b")
    assert done == [f"make {tmp_path}/a", f"force {tmp_path}", f"make {tmp_path}/a/b", f"force {tmp_path}/a"]
    done.clear()
    make_folder(tmp_path / "a" / "b")
    assert done == []
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700
