"""The Makefile, with a stand-in for the virtual environment's Python."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.run.conftest import PROJECT

PYTHON = """#!/bin/sh
case "$*" in
"-c print(1)") echo 1 ;;
*) echo "$@" >> log; env | grep ^FILE_STORAGE >> log || true ;;
esac
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy in a folder with an odd name, its environment made already."""
    folder = tmp_path / "my project's copy"
    (folder / ".venv" / "bin").mkdir(parents=True)
    for name in ("Makefile", "requirements.txt", "requirements-dev.txt"):
        shutil.copy(PROJECT / name, folder)
    python = folder / ".venv" / "bin" / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    for name in ("venv", "installed", "installed-dev"):
        (folder / ".venv" / name).touch()
    return folder


def make(folder: Path, *arguments: str, **environment: str) -> str:
    done = subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL,
                          env={"PATH": os.environ["PATH"], **environment})
    assert done.returncode == 0, done.stderr
    return done.stdout


def log_of(folder: Path) -> list[str]:
    return (folder / "log").read_text().splitlines()


def test_make_alone_lists_every_target(project: Path) -> None:
    text = (PROJECT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert phony
    assert {line.split()[1] for line in make(project).splitlines()} == set(phony[1].split())


def test_settings_are_passed_on(project: Path) -> None:
    make(project, "run", "PORT=9100", "DATA_ROOT=/srv/my $files", "FILE_STORAGE_BCRYPT_COST=4", PORT="1", HOST="evil",
         FILE_STORAGE_WORKERS="3")
    assert sorted(log_of(project)) == sorted([
        "-m service run", "FILE_STORAGE_PORT=9100", "FILE_STORAGE_DATA_ROOT=/srv/my $files",
        "FILE_STORAGE_BCRYPT_COST=4", "FILE_STORAGE_WORKERS=3"])


def test_up_to_date_environment_is_left_alone(project: Path) -> None:
    make(project, "test", "T=tests/unit -k x")
    assert log_of(project) == ["-m pytest tests/unit -k x"]


def test_changed_requirements_are_installed_first(project: Path) -> None:
    os.utime(project / ".venv" / "installed", (1, 1))
    os.utime(project / ".venv" / "venv", (1, 1))
    make(project, "run")
    install, run = log_of(project)
    assert "-m pip" in install and "--require-hashes" in install and install.endswith("-r requirements.txt")
    assert run == "-m service run"


def test_lock_files_name_no_registry_and_no_place() -> None:
    for name in ("requirements.txt", "requirements-dev.txt"):
        text = (PROJECT / name).read_text()
        assert not re.search(r"https?:|file:|--index|--find|^/| @ ", text, re.MULTILINE)
        assert all("--hash=sha256:" in block for block in re.split(r"\n(?=\w)", text.partition("make lock\n")[2]))


def test_libraries_that_cannot_be_had_are_one_sentence(project: Path) -> None:
    python = project / ".venv" / "bin" / "python"
    python.write_text(PYTHON.replace("*) echo", "*'-m pip'*) exit 1 ;;\n*) echo"))
    for target, stamp in (("run", "installed"), ("test", "installed-dev")):
        os.utime(project / ".venv" / stamp, (1, 1))
        done = subprocess.run(["make", target], cwd=project, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert done.returncode == 2
        assert "\nerror: the libraries cannot be installed: pip has to reach its package index" in done.stderr
        assert (project / ".venv" / stamp).stat().st_mtime == 1  # they are not taken for installed
        assert not (project / "log").exists()  # and nothing was started
