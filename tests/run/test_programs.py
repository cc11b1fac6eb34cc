"""Finding and unpacking programs, with a stand-in for apt where the real one would need a network."""

import os
import subprocess
from pathlib import Path

import pytest

from service.run import programs

NGINX = f"#!/bin/sh\necho 'nginx version: nginx/1.25.3 {' '.join(programs.WANTED['nginx'].must_mention)}' >&2\n"
APT = """#!/bin/sh
echo "$@" >> {log}
case "$*" in
*--simulate*) {plan} ;;
*download*) dpkg-deb -b {package} . >/dev/null ;;
esac
"""


def write_program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with nothing but a shell and dpkg-deb; its programs are in the folder that is returned."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("sh", "dpkg-deb", "rm", "tar"):
        found = next(Path(place) / tool for place in programs.SYSTEM_FOLDERS if (Path(place) / tool).exists())
        (folder / tool).symlink_to(found)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(programs, "SYSTEM_FOLDERS", ("/usr/sbin",))
    monkeypatch.setattr(programs, "WANTED", {"nginxx": programs.WANTED["nginx"], **programs.WANTED})
    return folder


def test_program_on_the_path_is_taken(machine: Path, tmp_path: Path) -> None:
    path = write_program(machine / "nginx", NGINX)
    assert programs.find_or_install("nginx", cache=tmp_path) == programs.Program(path, (1, 25, 3))


@pytest.mark.parametrize("text", [NGINX.replace("1.25.3", "1.18.0"), NGINX.replace("auth_request", "nothing"),
                                  "#!/bin/sh\nexit 1\n", "not a program"])
def test_program_that_will_not_do_is_passed_over(machine: Path, tmp_path: Path, text: str) -> None:
    write_program(machine / "nginxx", text)
    said: list[str] = []
    assert programs.find_or_install("nginxx", cache=tmp_path, say=said.append) is None
    assert len(said) == 2 and said[1].startswith("nginxx cannot be had: ")


def make_apt(machine: Path, tmp_path: Path, plan: str) -> Path:
    package = tmp_path / "package"
    write_program(package / "usr" / "sbin" / "nginxx", NGINX)
    (package / "usr" / "lib" / "x86_64-linux-gnu").mkdir(parents=True)
    (package / "DEBIAN").mkdir()
    (package / "DEBIAN" / "control").write_text("Package: nginxx\nVersion: 1\nArchitecture: all\n"
                                                "Maintainer: nobody <n@example>\nDescription: x\n")
    log = tmp_path / "apt.log"
    write_program(machine / "apt-get", APT.format(log=log, plan=plan, package=package))
    return log


def test_package_is_unpacked_once(machine: Path, tmp_path: Path) -> None:
    log = make_apt(machine, tmp_path, "echo 'Inst nginxx (1.25.3-1 Debian:12 [all])'")
    cache = tmp_path / "cache"
    first = programs.find_or_install("nginxx", cache=cache)
    assert first and first.path == cache / "nginxx" / "usr" / "sbin" / "nginxx"
    assert first.environment["LD_LIBRARY_PATH"].startswith(str(cache / "nginxx" / "usr" / "lib"))
    assert "download nginxx=1.25.3-1" in log.read_text()
    calls = log.read_text()
    assert programs.find_or_install("nginxx", cache=cache) == first
    assert log.read_text() == calls


def test_missing_package_lists_are_fetched_for_us_alone(machine: Path, tmp_path: Path) -> None:
    lists = tmp_path / "updated"
    log = make_apt(machine, tmp_path, f"[ -e {lists} ] || exit 100; echo 'Inst nginxx (1 Debian [all])'")
    text = (machine / "apt-get").read_text()
    (machine / "apt-get").write_text(text.replace("*--simulate*", f"*update*) : > {lists} ;;\n*--simulate*"))
    assert programs.find_or_install("nginxx", cache=tmp_path / "cache")
    update = next(line for line in log.read_text().splitlines() if line.endswith("update"))
    assert f"Dir::State::Lists={tmp_path}/cache/apt/lists" in update


def test_interrupted_unpacking_is_begun_again(machine: Path, tmp_path: Path) -> None:
    make_apt(machine, tmp_path, "echo 'Inst nginxx (1 Debian [all])'")
    rest = write_program(tmp_path / "cache" / "nginxx.new" / "usr" / "sbin" / "nginxx", "half a fi")
    assert programs.find_or_install("nginxx", cache=tmp_path / "cache")
    assert not rest.exists()


def test_cache_that_cannot_be_written_to_is_told(machine: Path, tmp_path: Path) -> None:
    """As where the checkout is root's and the service runs as somebody else."""
    make_apt(machine, tmp_path, "echo 'Inst nginxx (1 Debian [all])'")
    cache = Path("/proc/self/cache")  # where not even root can make anything
    said: list[str] = []
    assert programs.find_or_unpack("nginxx", "x.so", cache=cache, say=said.append) is None
    assert said[1].startswith("nginxx cannot be had: ")


def test_apt_that_fails_is_quoted(machine: Path, tmp_path: Path) -> None:
    make_apt(machine, tmp_path, "echo 'E: Unable to locate package'; exit 100")
    said: list[str] = []
    assert programs.find_or_install("nginxx", cache=tmp_path / "cache", say=said.append) is None
    assert said[1] == "nginxx cannot be had: E: Unable to locate package"


@pytest.mark.skipif(not os.path.exists("/usr/bin/apt-get"), reason="needs Debian's package manager")
def test_real_redis_is_found_or_unpacked(tmp_path: Path) -> None:
    program = programs.find_or_install("redis-server")
    assert program
    done = subprocess.run([program.path, "--version"], env={**os.environ, **program.environment}, capture_output=True,
                          text=True)
    assert f"v={program.version_text}" in done.stdout
