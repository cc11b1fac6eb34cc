"""Programs that pip cannot bring: found on this machine, or taken from the system's packages.

On Debian and its kin a package and what it lacks are unpacked into a folder of ours instead of being installed: that
needs no root, starts no system service and changes nothing outside of the folder.
"""

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
LIBRARY_FOLDERS = ("usr/lib/*-linux-gnu*", "lib/*-linux-gnu*", "usr/lib", "lib")
SECONDS = 300
RETRY_SECONDS = 86400.0
APT_OPTIONS: tuple[str, ...] = (
    "-q", "-y", "-o", "APT::Install-Recommends=false", "-o", "APT::Sandbox::User=root",
    "-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=20", "-o", "Acquire::https::Timeout=20")


class _Failed(Exception):
    """A way to get the program did not lead to it."""


@dataclass(frozen=True, slots=True)
class Program:
    """A program that was seen to run here."""

    path: Path
    version: tuple[int, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    """What its environment has to hold besides the usual: where its libraries are."""
    njs: Path | None = None
    """nginx's module for JavaScript."""

    @property
    def version_text(self) -> str:
        """Such as 1.22.1."""
        return ".".join(map(str, self.version))


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked of a program before it counts as found."""

    version_option: str
    version_pattern: str
    min_version: tuple[int, ...]
    must_mention: tuple[str, ...] = ()
    exit_code: int = 0
    """What it ends with when it has said its version."""


WANTED = {
    # -e, which keeps it from opening a log where it was compiled to, came with 1.19.5
    "nginx": Wanted("-V", r"nginx/(\d+\.\d+\.\d+)", (1, 19, 5),
                    ("http_auth_request_module", "http_secure_link_module", "http_realip_module")),
    "redis-server": Wanted("--version", r"v=(\d+\.\d+\.\d+)", (5, 0, 0)),
    "wrk": Wanted("-v", r"wrk \S*?(\d+\.\d+\.\d+)", (4, 0, 0), exit_code=1),
    "rclone": Wanted("version", r"rclone v(\d+\.\d+\.\d+)", (1, 50, 0)),
}


def find_or_install(name: str, *, cache: Path | None = None,
                    say: Callable[[str], None] = lambda line: None) -> Program | None:
    """A program of `WANTED` that runs on this machine; None if it is not here and cannot be had."""
    cache = cache or default_cache()
    if found := find(name, cache=cache):
        return found
    say(f"{name} is not on this machine; taking it from the system's packages")
    try:
        with _locked(cache):
            return find(name, cache=cache) or _install(name, cache)
    except (_Failed, OSError) as error:
        say(f"{name} cannot be had: {error}")
        return None


def find_or_unpack(package: str, wanted: str, *, cache: Path | None = None,
                   say: Callable[[str], None] = lambda line: None) -> Path | None:
    """A file out of a Debian package which adds something to a program; None if it is not to be had.

    Only unpacked, never installed.  Where that failed it is not tried again for a day, since nobody needs it to start.
    """
    cache = cache or default_cache()
    file = cache / package / wanted
    failed = cache / f"{package}.failed"
    if file.exists() or not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return file if file.exists() else None
    with contextlib.suppress(FileNotFoundError):
        if time.time() - failed.stat().st_mtime < RETRY_SECONDS:
            return None
    say(f"{package} is not on this machine; taking it from the system's packages")
    try:
        with _locked(cache):
            if not file.exists():
                _unpack(package, cache)
    except (_Failed, OSError) as error:
        say(f"{package} cannot be had: {error}")
    if file.exists():
        return file
    with contextlib.suppress(OSError):  # a cache that belongs to somebody else
        failed.touch()
    return None


def libraries_of(package: str, *, cache: Path | None = None) -> Mapping[str, str]:
    """What the environment of a program has to hold that uses an unpacked package."""
    return _library_path((cache or default_cache()) / package)


def default_cache() -> Path:
    """Where unpacked packages are kept: in the virtual environment, or in the user's cache if there is none."""
    if sys.prefix != sys.base_prefix:
        return Path(sys.prefix) / "programs"
    return Path(os.path.expanduser("~/.cache/file-storage/programs"))


def find(name: str, *, cache: Path) -> Program | None:
    """A program on PATH, where systems keep them, or unpacked earlier."""
    unpacked = cache / name
    candidates = [Path(path) for path in [shutil.which(name)] if path]
    candidates += [Path(folder) / name for folder in SYSTEM_FOLDERS]
    candidates += [unpacked / folder.lstrip("/") / name for folder in SYSTEM_FOLDERS]
    for candidate in candidates:
        environment = _library_path(unpacked) if candidate.is_relative_to(unpacked) else {}
        if program := _try(candidate, WANTED[name], environment):
            return program
    return None


def _library_path(unpacked: Path) -> dict[str, str]:
    folders = [str(folder) for pattern in LIBRARY_FOLDERS for folder in unpacked.glob(pattern) if folder.is_dir()]
    return {"LD_LIBRARY_PATH": ":".join(folders)} if folders else {}


def _try(path: Path, wanted: Wanted, environment: Mapping[str, str]) -> Program | None:
    """Run it and look at what it says about itself."""
    try:
        text = _run([path, wanted.version_option], environment, exit_code=wanted.exit_code)
    except _Failed:
        return None
    found = re.search(wanted.version_pattern, text)
    version = tuple(map(int, found[1].split("."))) if found else ()
    if version < wanted.min_version or any(word not in text for word in wanted.must_mention):
        return None
    return Program(path, version, environment)


def _run(command: Sequence[str | Path], environment: Mapping[str, str], cwd: Path | None = None, *,
         exit_code: int = 0) -> str:
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              env={**os.environ, "LC_ALL": "C", **environment}, cwd=cwd, timeout=SECONDS,
                              text=True, errors="replace")
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _Failed(str(error)) from None
    if done.returncode != exit_code:
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        raise _Failed(lines[-1] if lines else f"{command[0]} failed")
    return done.stdout


@contextmanager
def _locked(cache: Path) -> Iterator[None]:
    """One installation at a time: tests and services may start side by side."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _install(name: str, cache: Path) -> Program | None:
    if shutil.which("apt-get") and shutil.which("dpkg-deb"):
        _unpack(name, cache)
    elif os.geteuid() != 0:
        raise _Failed(f"install it with the system's package manager (this user may not); package {name}")
    elif shutil.which("apk"):
        _run(["apk", "add", "--no-cache", name.removesuffix("-server")], {})
    elif shutil.which("dnf"):
        _run(["dnf", "install", "-y", name.removesuffix("-server")], {})
    else:
        raise _Failed("there is no package manager that is known here")
    if program := find(name, cache=cache):
        return program
    raise _Failed("what the package manager brought does not run or is too old")


def _unpack(name: str, cache: Path) -> None:
    """Unpack a Debian package and whatever it needs that is not installed."""
    packages = cache / f"{name}.packages"
    fresh = cache / f"{name}.new"
    for folder in (packages, fresh):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    options = APT_OPTIONS
    try:
        missing = _list_missing(name, options)
        _run(["apt-get", *options, "download", *missing], {}, packages)
    except _Failed:  # no package lists, or old ones: fetch lists of our own
        options = (*APT_OPTIONS, *_private_state(cache / "apt"))
        _run(["apt-get", *options, "update"], {})
        missing = _list_missing(name, options)
        _run(["apt-get", *options, "download", *missing], {}, packages)
    for package in sorted(packages.glob("*.deb")):
        _run(["dpkg-deb", "-x", package, fresh], {})
    shutil.rmtree(cache / name, ignore_errors=True)
    fresh.rename(cache / name)
    shutil.rmtree(packages)


def _private_state(folder: Path) -> list[str]:
    """Options that make apt keep its lists in a folder of ours, which needs no root."""
    for part in ("lists/partial", "cache/archives/partial"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    return ["-o", f"Dir::State::Lists={folder}/lists", "-o", f"Dir::Cache={folder}/cache"]


def _list_missing(name: str, options: Sequence[str]) -> list[str]:
    """The packages that an installation would add, as package=version."""
    plan = _run(["apt-get", *options, "--simulate", "install", name], {})
    missing = re.findall(r"^Inst (\S+) (?:\[[^]]*\] )?\((\S+)", plan, re.MULTILINE)
    if not missing:
        raise _Failed(f"the package {name} is installed, but the program is not there")
    return [f"{package}={version}" for package, version in missing]
