"""The whole service as a user starts it, for tests: `python -m service run` with its own data root and port."""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

START_SECONDS = 60.0
STOP_SECONDS = 45.0
# of a blob that a test has cut short while it was being sent
EXPECTED_MISTAKES = ("the blob is shorter than its row says",)


def free_port() -> int:
    """A port that nobody listens on now.

    Below those that the system gives to connections, and from a range of this process's own where tests run side by
    side (pytest-xdist): nobody takes it before it is used.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    ports = range(11000 + 2000 * (worker % 10), 13000 + 2000 * (worker % 10))
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            port = secrets.choice(ports)
            probe.bind(("127.0.0.1", port))
            return port


@dataclass
class Stack:
    """One running service; `settings` are those of README.md without the prefix."""

    root: Path
    settings: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    module: str = "service"  # what is run; tests/faults have one that does as told
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The public address."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def is_behind_nginx(self) -> bool:
        """Whether nginx moves the bytes."""
        return self.settings.get("NGINX", "auto") != "off"

    @property
    def dsn(self) -> str:
        """The embedded database, while the service runs."""
        lines = (self.root / "postgres" / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        return f"postgresql:///file_storage?user=postgres&host={lines[4]}"

    def environment(self) -> dict[str, str]:
        """What the service is started with."""
        settings = {
            "PORT": str(self.port), "DATA_ROOT": str(self.root), "BCRYPT_COST": "4", "WORKERS": "2",
            "LOGIN_ATTEMPTS_PER_MINUTE": "1000000", "REQUESTS_PER_MINUTE": "1000000", "COSTLY_REQUESTS_PER_MINUTE": "0",
            "MIN_FREE_SPACE": "1000000",
            **self.settings}
        clean = {name: value for name, value in os.environ.items() if not name.startswith("FILE_STORAGE_")}
        return clean | {f"FILE_STORAGE_{name}": value for name, value in settings.items()}

    def start(self) -> Self:
        """Start and wait until it is ready; raise with its output if it does not become so."""
        output = self.root.parent / f"{self.root.name}.out"
        with output.open("ab") as file:
            self.process = subprocess.Popen([sys.executable, "-m", self.module, "run"], env=self.environment(),
                                            stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        deadline = time.monotonic() + START_SECONDS
        while not self.is_ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the service did not start:\n{output.read_text(encoding='utf-8')}")
            time.sleep(0.05)
        return self

    @contextlib.contextmanager
    def running(self) -> Iterator[Self]:
        """Started for the context; whoever has stopped or killed it by then is not asked to do it again."""
        try:
            yield self.start()
        finally:
            if self.process is not None:
                self.stop()

    def is_ready(self) -> bool:
        """Whether it answers and has all that it needs."""
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=5) as response:
                return int(response.status) == 200
        except OSError:
            return False

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it as Ctrl-C or a kill does; its exit code.

        AssertionError if it has logged an exception in all its life: no request may come upon a mistake of the service.
        """
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(STOP_SECONDS)
        self.process = None
        self.check_log()
        return code

    @property
    def is_mistaken(self) -> bool:
        """Whether a mistake was built into it that explains a 500 and an exception in its log."""
        return False

    def check_log(self) -> None:
        """AssertionError if it has logged an exception that nothing explains."""
        assert self.is_mistaken or not (mistakes := self.mistakes()), "\n".join(mistakes)

    def mistakes(self) -> list[str]:
        """The exceptions that nobody has expected, with their stacks."""
        try:
            lines = [line for line in self.log_text.splitlines() if '"exception"' in line and '"error"' in line]
        except FileNotFoundError:
            return []  # it has logged nothing
        return [text for text in map(_exception_of, lines) if text and not self.is_expected(text)]

    def is_expected(self, exception: str) -> bool:
        """Whether what is done to this service explains it."""
        return exception.endswith(EXPECTED_MISTAKES)

    @property
    def log_text(self) -> str:
        """What the workers have logged."""
        return (self.root / "log" / "service.log").read_text(encoding="utf-8", errors="replace")


def _exception_of(line: str) -> str:
    """What a line of the log says of an exception, if it is one of an error; all of a line that was cut off."""
    try:
        entry = json.loads(line)
    except json.JSONDecodeError:
        return line
    return str(entry["exception"]) if entry.get("level") == "error" and "exception" in entry else ""
