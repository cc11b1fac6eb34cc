"""What the workers need for each transfer in flight: slow clients, many at once, each with 1 GiB announced."""

import selectors
import socket
import time
from contextlib import ExitStack
from dataclasses import dataclass
from urllib.parse import quote

from tests.bench.contenders import ANSWER_SECONDS, Service
from tests.bench.figures import WrongAnswer
from tests.bench.processes import resident_bytes
from tests.bench.rows import Bench, Look, Observation

MIB = 2**20
ANNOUNCED_BYTES = 2**30
UPLOADS = DOWNLOADS = 64
KINDS = (("uploads", f"{UPLOADS} uploads", UPLOADS, 0), ("downloads", f"{DOWNLOADS} downloads", 0, DOWNLOADS),
         ("both", f"{UPLOADS} uploads and {DOWNLOADS} downloads", UPLOADS, DOWNLOADS))
FIRST_BYTES = MIB
STEP_BYTES = 2**16
STEPS = 20
RECEIVE_BUFFER_BYTES = 2**16
PATIENCE_SECONDS = 60.0


def _workers_bytes(service: Service) -> int:
    return sum(map(resident_bytes, service.workers))


def _open(service: Service, head: list[str], into: ExitStack) -> socket.socket:
    connection = into.enter_context(socket.socket())
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
    connection.settimeout(ANSWER_SECONDS)
    connection.connect(("127.0.0.1", service.port))
    lines = [*head, "Host: 127.0.0.1", *(f"{name}: {value}" for name, value in service.headers.items())]
    connection.sendall("\r\n".join([*lines, "", ""]).encode())
    return connection


def _open_download(service: Service, target: str, into: ExitStack) -> socket.socket:
    """A download that has begun: its head and a little more are here."""
    connection = _open(service, [f"GET {target} HTTP/1.1"], into)
    received = b""
    while b"\r\n\r\n" not in received:
        piece = connection.recv(STEP_BYTES)
        if not piece:
            raise WrongAnswer(f"{service.name}: {target}: cut off after {received!r}")
        received += piece
    if not received.startswith(b"HTTP/1.1 200 "):
        raise WrongAnswer(f"{service.name}: {target}: {received[:300]!r}")
    return connection


def _open_upload(service: Service, path: str, into: ExitStack) -> socket.socket:
    """An upload of which a part is there."""
    connection = _open(service, [f"PUT /file?path={quote(path)} HTTP/1.1", f"Content-Length: {ANNOUNCED_BYTES}"], into)
    connection.sendall(b"x" * FIRST_BYTES)
    return connection


def _on_its_way(service: Service) -> list[int]:
    """The sizes of what lies in the spool and in staging: bodies that are being taken."""
    sizes = []
    for folder in ("spool", "staging"):
        for path in (service.root / folder).rglob("*"):
            try:
                if path.is_file():
                    sizes.append(path.stat().st_size)
            except FileNotFoundError:
                continue
    return [size for size in sizes if size >= FIRST_BYTES // 2]


def _wait_for(service: Service, count: int) -> None:
    """Until so many bodies are being taken."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(_on_its_way(service)) != count:
        if time.monotonic() > deadline:
            raise WrongAnswer(f"{service.name}: {len(_on_its_way(service))} of {count} uploads are on their way")
        time.sleep(0.05)


@dataclass(frozen=True)
class InFlight(Look):
    """Slow uploads, slow downloads, and both at once: what the workers' memory grows by, for each."""

    name: str
    where: str
    is_direct: bool
    """Whether the workers carry the bytes themselves, without nginx."""

    def observe(self, bench: Bench) -> list[Observation]:
        """None of them ends: the connections are cut."""
        if not self.is_direct:
            return self._measure(bench, bench.service)
        service = Service("direct", bench.folder / "direct", settings={"NGINX": "off"})
        try:
            service.start()
            return self._measure(bench, service)
        finally:
            service.stop()

    def _measure(self, bench: Bench, service: Service) -> list[Observation]:
        service.login()
        target = bench.place_large(service)
        self._fly(service, target, 4, 4)  # what is needed once, not for each
        before = _workers_bytes(service)
        found = []
        for name, title, uploads, downloads in KINDS:
            highest = self._fly(service, target, uploads, downloads)
            found.append(Observation(f"{self.name}-{name}", f"workers' memory for each of {title} of 1 GiB{self.where}",
                                     (highest - before) / (uploads + downloads) / MIB, "MiB", 1.0))
        return found

    @staticmethod
    def _fly(service: Service, target: str, uploads: int, downloads: int) -> float:
        """The most memory that all workers have had together, while all of them were under way."""
        seen = []
        _wait_for(service, 0)
        with ExitStack() as stack, selectors.DefaultSelector() as answered:
            receiving = [_open_download(service, target, stack) for _ in range(downloads)]
            sending = [_open_upload(service, f"/memory/{number}.bin", stack) for number in range(uploads)]
            _wait_for(service, uploads)
            for connection in sending:
                answered.register(connection, selectors.EVENT_READ)
            for _ in range(STEPS):
                for connection in sending:
                    connection.sendall(b"x" * STEP_BYTES)
                for connection in receiving:
                    if not connection.recv(STEP_BYTES):
                        raise WrongAnswer(f"{service.name}: a download has ended")
                seen.append(_workers_bytes(service))
            if early := answered.select(0):
                raise WrongAnswer(f"{service.name}: {len(early)} uploads were answered before their end")
        return max(seen)


LOOKS: tuple[Look, ...] = (
    InFlight("memory", " in flight", is_direct=False),
    InFlight("memory-direct", " in flight, without nginx", is_direct=True),
)
