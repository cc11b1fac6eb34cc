"""Who is measured: what all have in common, and the service as `make run` starts it."""

import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from tests.bench.figures import WrongAnswer
from tests.bench.processes import command_of, tree
from tests.stack import free_port

START_SECONDS = 90.0
STOP_SECONDS = 45.0
ANSWER_SECONDS = 120.0
FRESH_SECONDS = 300.0
PASSWORD = "correct horse battery staple"


@dataclass(frozen=True)
class Reply:
    """An answer, read to its end."""

    status: int
    body: bytes


def _full_length(received: bytes) -> float:
    """How long an answer will be of which a part is here."""
    head, end, _ = received.partition(b"\r\n\r\n")
    if not end:
        return float("inf")
    found = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
    return len(head) + 4 + (int(found[1]) if found else 0)


def sha256(data: bytes) -> str:
    """In hex."""
    return hashlib.sha256(data).hexdigest()


@dataclass
class Contender(ABC):
    """A server with a folder of its own; files are called by paths such as /hot/1.bin everywhere."""

    name: str
    root: Path
    port: int = field(default_factory=free_port)
    headers: dict[str, str] = field(default_factory=dict)
    """What every request carries."""
    process: "subprocess.Popen[bytes] | None" = None
    created: int = 201
    """The status of an upload under a new name."""
    replaced: int = 204
    """The status of an upload that replaces a file."""

    @abstractmethod
    def command(self) -> list[str]:
        """What is started."""

    def environment(self) -> dict[str, str]:
        """What it is started with."""
        return dict(os.environ)

    @property
    def folder(self) -> Path:
        """Where it is started."""
        return self.root

    @property
    def files(self) -> Path:
        """Where its files lie under their own names."""
        return self.root / "files"

    @property
    def pid(self) -> int:
        """The process that all others of it are below."""
        assert self.process is not None
        return self.process.pid

    def address(self, path: str) -> tuple[str, str]:
        """What stands before and behind the last name of a file in the target of a request for it."""
        return quote(path.rpartition("/")[0] + "/"), ""

    def target(self, path: str) -> str:
        """The target of a request to download or upload a file."""
        before, behind = self.address(path)
        return before + quote(path.rpartition("/")[2]) + behind

    def download_target(self, path: str) -> str:
        """The target of a request to download a file."""
        return self.target(path)

    def start(self) -> None:
        """Start and wait until it answers; RuntimeError with its output if it does not."""
        self.root.mkdir(parents=True, exist_ok=True)
        self.prepare()
        output = self.root.parent / f"{self.root.name}.out"
        with output.open("ab") as file:
            self.process = subprocess.Popen(self.command(), env=self.environment(), cwd=self.folder,
                                            stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        deadline = time.monotonic() + START_SECONDS
        while not self.is_ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                text = output.read_text(encoding="utf-8", errors="replace")
                raise RuntimeError(f"{self.name} did not start:\n{text}")
            time.sleep(0.05)

    def prepare(self) -> None:
        """Make what it needs before its start."""
        self.files.mkdir(parents=True, exist_ok=True)

    def is_ready(self) -> bool:
        """Whether it answers."""
        try:
            return self.call("GET", "/").status < 500
        except (OSError, http.client.HTTPException):
            return False

    def stop(self) -> None:
        """End it, and everything below it."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            for pid in reversed(tree(self.process.pid)):
                os.kill(pid, signal.SIGKILL)
            self.process.wait()
        self.process = None

    def call(self, method: str, target: str, body: bytes | None = None, **headers: str) -> Reply:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_SECONDS)
        try:
            connection.request(method, target, body, {**self.headers, **headers})
            response = connection.getresponse()
            return Reply(response.status, response.read())
        finally:
            connection.close()

    def raw(self, method: str, target: str) -> bytes:
        """All bytes of an answer on a connection that is kept alive, its head included."""
        lines = [f"{method} {target} HTTP/1.1", "Host: 127.0.0.1",
                 *(f"{name}: {value}" for name, value in self.headers.items())]
        with socket.create_connection(("127.0.0.1", self.port), timeout=ANSWER_SECONDS) as connection:
            connection.sendall("\r\n".join([*lines, "", ""]).encode())
            received = b""
            while len(received) < _full_length(received):
                piece = connection.recv(2**20)
                if not piece:
                    raise WrongAnswer(f"{self.name}: {target}: cut off after {received[:300]!r}")
                received += piece
            return received

    def fetch(self, path: str) -> bytes:
        """Download a file as the measured clients do."""
        reply = self.call("GET", self.download_target(path))
        if reply.status != 200:
            raise WrongAnswer(f"{self.name}: {path}: status {reply.status}: {reply.body[:300]!r}")
        return reply.body

    def store(self, path: str, data: bytes) -> None:
        """Put a file there, in whatever way: this is not measured."""
        place = self.files / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)

    def store_large(self, path: str, source: Path) -> None:
        """The same for a file that should not be in memory."""
        place = self.files / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, place)

    def forget_cached(self, size: int) -> None:
        """Take stored files of this size out of the page cache."""
        for file in self.root.rglob("*"):
            if file.is_file() and file.stat().st_size == size:
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
                    os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def make_folder(self, path: str) -> None:
        """Make an empty folder."""
        (self.files / path.lstrip("/")).mkdir(parents=True, exist_ok=True)

    def names(self, folder: str) -> list[str]:
        """The names of the files in a folder."""
        return [entry.name for entry in (self.files / folder.lstrip("/")).iterdir() if entry.is_file()]

    def digest(self, path: str) -> str:
        """The SHA-256 of a stored file, read from its bytes."""
        with (self.files / path.lstrip("/")).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def told_digest(self, body: bytes) -> str | None:
        """The SHA-256 that the answer to an upload tells; None if this server tells none."""
        return None

    def remove(self, path: str) -> None:
        """Remove a file for good."""
        (self.files / path.lstrip("/")).unlink()


@dataclass
class Service(Contender):
    """The service with the settings of `make run`, from this checkout or another one."""

    replaced: int = 200
    username: str = "bench"
    logged_in_at: float = 0.0
    checkout: Path = Path(__file__).parents[2]
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where the code is."""
        return self.checkout

    def command(self) -> list[str]:
        """As in the Makefile."""
        return [sys.executable, "-m", "service", "run"]

    def environment(self) -> dict[str, str]:
        """Nothing but where it listens and stores."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("FILE_STORAGE_")}
        return clean | {"FILE_STORAGE_PORT": str(self.port), "FILE_STORAGE_DATA_ROOT": str(self.root)} | {
            f"FILE_STORAGE_{name}": value for name, value in self.settings.items()}

    def prepare(self) -> None:
        """Nothing: it makes its folders itself."""

    def is_ready(self) -> bool:
        """Whether it says so."""
        try:
            return self.call("GET", "/readyz").status == 200
        except (OSError, http.client.HTTPException):
            return False

    def start(self) -> None:
        """Start it, and make the account."""
        super().start()
        self.register()
        self.login()

    def register(self) -> None:
        """Make the account."""
        self._json("POST", "/auth/register", self._credentials, expect=201)

    @property
    def _credentials(self) -> dict[str, str]:
        return {"username": self.username, "password": PASSWORD}

    def freshen(self) -> None:
        """Log in again before the token, which is good for 15 minutes, can end within a row."""
        if time.monotonic() - self.logged_in_at > FRESH_SECONDS:
            self.login()

    def login(self) -> None:
        """A fresh token."""
        self.logged_in_at = time.monotonic()
        self.headers = {}
        token = self._json("POST", "/auth/jwt/login", self._credentials)["access_token"]
        self.headers = {"Authorization": f"Bearer {token}"}

    def _json(self, method: str, target: str, data: object = None, *, expect: int = 200) -> dict[str, str]:
        headers = {} if data is None else {"Content-Type": "application/json"}
        reply = self.call(method, target, None if data is None else json.dumps(data).encode(), **headers)
        if reply.status != expect:
            raise WrongAnswer(f"{method} {target}: status {reply.status}: {reply.body[:300]!r}")
        answer: dict[str, str] = json.loads(reply.body or b"{}")
        return answer

    def address(self, path: str) -> tuple[str, str]:
        """For uploads; `download_target` differs."""
        return "/file?path=" + quote(path.rpartition("/")[0] + "/"), ""

    def download_target(self, path: str) -> str:
        """By path."""
        return "/file/download?path=" + quote(path)

    def sign(self, path: str) -> str:
        """The target of a signed address."""
        url = self._json("POST", "/file/sign", {"path": path, "expires_in": 3600}, expect=201)["url"]
        return "/" + url.split("/", 3)[3]

    def store(self, path: str, data: bytes) -> None:
        """Upload."""
        reply = self.call("PUT", self.target(path), data)
        if reply.status not in (200, 201):
            raise WrongAnswer(f"PUT {path}: status {reply.status}: {reply.body[:300]!r}")

    def store_large(self, path: str, source: Path) -> None:
        """Upload from the disk."""
        with source.open("rb") as file:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_SECONDS)
            connection.request("PUT", self.target(path), file,
                               {**self.headers, "Content-Length": str(source.stat().st_size)})
            status = connection.getresponse().status
            connection.close()
        if status not in (200, 201):
            raise WrongAnswer(f"PUT {path}: status {status}")

    def make_folder(self, path: str) -> None:
        """Make an empty folder."""
        self._json("POST", "/file/folder", {"path": path}, expect=201)

    def names(self, folder: str) -> list[str]:
        """As listed."""
        found = self._json("GET", "/file/list?folder=" + quote(folder))["files"]
        return [file["name"] for file in found]  # type: ignore[index]

    def digest(self, path: str) -> str:
        """Of what a download gives."""
        digest = hashlib.sha256()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_SECONDS)
        connection.request("GET", self.download_target(path), headers=self.headers)
        response = connection.getresponse()
        while piece := response.read(2**20):
            digest.update(piece)
        connection.close()
        return digest.hexdigest()

    def told_digest(self, body: bytes) -> str | None:
        """What the service has computed before it answered."""
        return str(json.loads(body)["sha256"])

    def remove(self, path: str) -> None:
        """Delete for good."""
        self._json("DELETE", f"/file?permanent=true&path={quote(path)}", expect=204)

    @property
    def dsn(self) -> str:
        """Its embedded database."""
        lines = (self.root / "postgres" / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        return f"postgresql:///file_storage?user=postgres&host={lines[4]}"

    @property
    def workers(self) -> list[int]:
        """The processes that decide."""
        found = [pid for pid in tree(self.pid) if "service worker" in command_of(pid)]
        assert found, "there are no workers"
        return found
