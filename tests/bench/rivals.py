"""Other file servers that can be had from package registries, each set up for speed, with one account.

Those from PyPI live in a virtual environment of their own (rivals.txt); a rival that cannot be had is named with why.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from service.run import programs
from tests.bench.contenders import Contender
from tests.bench.figures import WrongAnswer
from tests.bench.processes import tree

REQUIREMENTS = Path(__file__).with_name("rivals.txt")
USER, PASSWORD = "bench", "secret-of-the-benchmark"
INSTALL_SECONDS = 300
THREADS = 64
SETTLE_SECONDS = 2.0
SYNCING_CALLS = "fsync,fdatasync,sync,syncfs,sync_file_range"
FORCED = re.compile(r"\b(fsync|fdatasync|sync|syncfs|sync_file_range)\(")


def _basic() -> dict[str, str]:
    return {"Authorization": "Basic " + b64encode(f"{USER}:{PASSWORD}".encode()).decode()}


@dataclass
class Rival(Contender):
    """Another file server."""

    version: str = ""


@dataclass
class Copyparty(Rival):
    """copyparty, a process for each core."""

    python: Path = Path(sys.executable)
    headers: dict[str, str] = field(default_factory=_basic)
    created: int = 201

    def command(self) -> list[str]:
        """Without what it does besides: no index, no thumbnails, no log."""
        return [str(self.python), "-m", "copyparty", "-i", "127.0.0.1", "-p", str(self.port), "-j0", "-q",
                "--no-thumb", "--no-ansi", "-a", f"{USER}:{PASSWORD}", "-v", f"{self.files}::rwmd,{USER}"]

    def environment(self) -> dict[str, str]:
        """Its settings are kept here, not in the home of whoever runs this."""
        return {**os.environ, "XDG_CONFIG_HOME": str(self.root), "HOME": str(self.root)}


@dataclass
class Wsgidav(Rival):
    """WsgiDAV on cheroot, which is what it brings."""

    python: Path = Path(sys.executable)
    headers: dict[str, str] = field(default_factory=_basic)

    def prepare(self) -> None:
        """Its configuration may be JSON."""
        super().prepare()
        (self.root / "wsgidav.json").write_text(json.dumps({
            "host": "127.0.0.1", "port": self.port, "provider_mapping": {"/": str(self.files)},
            "simple_dc": {"user_mapping": {"*": {USER: {"password": PASSWORD}}}},
            "http_authenticator": {"accept_basic": True, "accept_digest": False, "default_to_digest": False},
            "server": "cheroot", "server_args": {"numthreads": THREADS}, "verbose": 0, "logging": {"enable": False},
            "lock_storage": False, "property_manager": False, "dir_browser": {"enable": False}}), encoding="utf-8")

    def command(self) -> list[str]:
        """With more threads than there are connections."""
        return [str(self.python), "-m", "wsgidav.server.server_cli", "-q", "-c", str(self.root / "wsgidav.json")]


@dataclass
class Rclone(Rival):
    """rclone serve webdav."""

    headers: dict[str, str] = field(default_factory=_basic)
    program: programs.Program | None = None

    def command(self) -> list[str]:
        """Without a configuration of its own."""
        assert self.program is not None
        return [str(self.program.path), "serve", "webdav", str(self.files), "--addr", f"127.0.0.1:{self.port}",
                "--user", USER, "--pass", PASSWORD, "--config", "/dev/null", "--dir-cache-time", "0s"]

    def environment(self) -> dict[str, str]:
        """With its libraries, if it was unpacked; it keeps nothing in the home of whoever runs this."""
        assert self.program is not None
        return {**os.environ, **self.program.environment, "HOME": str(self.root)}


def _install(folder: Path) -> Path:
    """The Python of a virtual environment with rivals.txt; OSError or CalledProcessError if it cannot be made."""
    python = folder / "bin" / "python"
    installed = folder / "installed.txt"
    if not installed.exists() or installed.read_bytes() != REQUIREMENTS.read_bytes():
        shutil.rmtree(folder, ignore_errors=True)
        for command in ([sys.executable, "-m", "venv", str(folder)],
                        [str(python), "-m", "pip", "-qq", "--disable-pip-version-check", "install",
                         "--no-deps", "-r", str(REQUIREMENTS)]):
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_SECONDS)
        shutil.copyfile(REQUIREMENTS, installed)
    return python


def find(folder: Path, environment: Path) -> tuple[list[Rival], dict[str, str]]:
    """The rivals that can be had, not yet started, and why the others cannot."""
    found: list[Rival] = []
    missing: dict[str, str] = {}
    pinned = dict(line.split("==") for line in REQUIREMENTS.read_text(encoding="utf-8").split())
    try:
        python = _install(environment)
        found += [Copyparty("copyparty", folder / "copyparty", python=python, version=pinned["copyparty"]),
                  Wsgidav("wsgidav", folder / "wsgidav", python=python, version=pinned["wsgidav"])]
    except (OSError, subprocess.SubprocessError) as error:
        text = getattr(error, "stderr", None) or str(error)
        missing |= dict.fromkeys(("copyparty", "wsgidav"), text.strip().splitlines()[-1])
    if program := programs.find_or_install("rclone"):
        found.append(Rclone("rclone", folder / "rclone", program=program, version=program.version_text))
    else:
        missing["rclone"] = "neither on this machine nor in its packages"
    return found, missing


def start(rivals: list[Rival], missing: dict[str, str]) -> Iterator[Rival]:
    """Start each; one that does not start is missing."""
    for rival in rivals:
        try:
            rival.start()
            yield rival
        except (OSError, RuntimeError) as error:
            missing[rival.name] = str(error).strip().splitlines()[-1]


def forces_to_disk(contender: Contender) -> bool | None:
    """Whether it asks the kernel to force a small upload to the disk, watched with strace; None if that cannot be had.

    The upload has been answered for when the watch ends, so what comes later is no promise of the answer.
    """
    strace = shutil.which("strace")
    if strace is None:
        return None
    output = contender.root.parent / f"{contender.name}.strace"
    attached = [part for pid in tree(contender.pid) for part in ("-p", str(pid))]
    watcher = subprocess.Popen([strace, "-f", "-e", f"trace={SYNCING_CALLS}", "-o", str(output), *attached],
                               stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        if not _is_watched(contender, watcher):
            return None
        contender.make_folder("/watched")
        reply = contender.call("PUT", contender.target("/watched/1.bin"), b"x" * 4096)
        if reply.status != contender.created:
            raise WrongAnswer(f"{contender.name}: PUT: status {reply.status}: {reply.body[:300]!r}")
    finally:
        watcher.terminate()
        watcher.wait()
    return FORCED.search(output.read_text(encoding="utf-8")) is not None


def _is_watched(contender: Contender, watcher: "subprocess.Popen[bytes]") -> bool:
    """Wait until the kernel says that strace is there; False if strace has given up."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < deadline and watcher.poll() is None:
        states = [Path(f"/proc/{pid}/status").read_text(encoding="utf-8") for pid in tree(contender.pid)]
        if all(re.search(r"^TracerPid:\s+[1-9]", state, re.MULTILINE) for state in states):
            return True
        time.sleep(0.01)
    return False
