"""HTTP by hand: exactly these bytes go out, exactly what comes back is looked at."""

import socket
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import orjson

from tests.stack import Stack

TIMEOUT_SECONDS = 30.0  # a deadline for a broken run, far beyond what any answer takes
BOUNDARY = "b0undary"

Door = Stack | Path  # the public address of a service, or the unix socket of a worker


@dataclass(frozen=True)
class Answer:
    """One answer; the names of its headers are in lower case."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def all(self, name: str) -> list[str]:
        """Every value of a header."""
        return [value for found, value in self.headers if found == name.lower()]

    def one(self, name: str) -> str:
        """The value of a header that has to be there once."""
        values = self.all(name)
        assert len(values) == 1, (name, self.headers)
        return values[0]

    @property
    def code(self) -> str:
        """The code of a problem; checks its shape (RFC 9457)."""
        assert self.one("Content-Type").startswith("application/problem+json"), (self.status, self.body[:300])
        problem = orjson.loads(self.body)
        assert {"type", "title", "status", "detail", "code", "request_id"} <= set(problem)
        assert problem["status"] == self.status
        assert problem["request_id"] == self.one("X-Request-Id")
        return str(problem["code"])


class Wire:
    """One connection."""

    def __init__(self, door: Door) -> None:
        if isinstance(door, Path):
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.settimeout(TIMEOUT_SECONDS)
            self._socket.connect(str(door))
        else:
            self._socket = socket.create_connection(("127.0.0.1", door.port), TIMEOUT_SECONDS)
        self._received = b""

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self._socket.close()

    def send(self, data: bytes) -> bool:
        """Send all of it; False if the other side has closed the connection."""
        try:
            self._socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def finish(self) -> None:
        """Say that nothing more will be sent."""
        self._socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Go away without a word."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def is_answered(self) -> bool:
        """Whether an answer has begun to come; an invitation to go on is none, and is taken away."""
        self._socket.setblocking(False)
        try:
            self._received += self._socket.recv(65536)
        except BlockingIOError:
            pass
        finally:
            self._socket.settimeout(TIMEOUT_SECONDS)
        self._received = self._received.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
        return bool(self._received)

    def _fill(self) -> bool:
        try:
            piece = self._socket.recv(2**20)
        except ConnectionResetError:
            piece = b""
        self._received += piece
        return bool(piece)

    def _take(self, length: int) -> bytes:
        while len(self._received) < length:
            assert self._fill(), f"the answer ends after {len(self._received)} of {length} bytes"
        taken, self._received = self._received[:length], self._received[length:]
        return taken

    def _take_line(self) -> bytes:
        while b"\r\n" not in self._received:
            assert self._fill(), self._received[:300]
        line, _, self._received = self._received.partition(b"\r\n")
        return line

    def read(self, method: str = "GET") -> Answer | None:
        """The next answer, interim ones (1xx) included; None at the end of the connection."""
        while not self._received:
            if not self._fill():
                return None
        version, status_text, *_ = self._take_line().decode("latin-1").split(" ", 2)
        assert version in ("HTTP/1.0", "HTTP/1.1"), version
        status = int(status_text)
        headers = []
        while line := self._take_line().decode("latin-1"):
            name, _, value = line.partition(":")
            headers.append((name.lower(), value.strip()))
        return Answer(status, headers, self._read_body(method, status, dict(headers)))

    def _read_body(self, method: str, status: int, headers: Mapping[str, str]) -> bytes:
        if method == "HEAD" or status in (204, 304) or status < 200:
            return b""
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self._take_line(), 16):
                body += self._take(size)
                assert self._take(2) == b"\r\n"
            assert self._take_line() == b""
            return body
        if "content-length" in headers:
            return self._take(int(headers["content-length"]))
        while self._fill():
            pass
        return self._take(len(self._received))

    def read_last(self, method: str = "GET") -> Answer:
        """The next answer, interim ones left out."""
        answer = self.read(method)
        while answer is not None and answer.status < 200:
            answer = self.read(method)
        assert answer is not None, "the connection was closed without an answer"
        return answer

    def read_raw(self) -> bytes:
        """Whatever comes until the other side closes the connection."""
        while self._fill():
            pass
        return self._received

    def read_all(self) -> list[Answer]:
        """Every answer until the other side closes the connection."""
        return list(iter(self.read, None))


def talk(door: Door, data: bytes, *, finish: bool = False) -> list[Answer]:
    """Send all of it, read every answer until the connection is closed; `finish`: say that nothing more will come."""
    with Wire(door) as wire:
        wire.send(data)
        if finish:
            wire.finish()
        return wire.read_all()


def ask(door: Door, data: bytes, *, method: str = "GET") -> Answer:
    """Send a request and read its one answer."""
    with Wire(door) as wire:
        wire.send(data)
        answer = wire.read(method)
        assert answer is not None, "the connection was closed without an answer"
        return answer


def head(line: str | bytes, *headers: str | bytes, token: str = "", host: str = "localhost") -> bytes:
    """The head of a request, up to and with the empty line; `host` may be left out by giving it empty."""
    lines: list[str | bytes] = [line if b" HTTP/" in _bytes(line) else _bytes(line) + b" HTTP/1.1"]
    if host:
        lines.append(f"Host: {host}")
    if token:
        lines.append(f"Authorization: Bearer {token}")
    return b"\r\n".join(map(_bytes, [*lines, *headers])) + b"\r\n\r\n"


def request(line: str | bytes, *headers: str | bytes, token: str = "", body: bytes | None = None) -> bytes:
    """A whole request, after which the connection is closed."""
    length = [] if body is None else [f"Content-Length: {len(body)}"]
    return head(line, *headers, *length, "Connection: close", token=token) + (body or b"")


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def chunked(pieces: Iterable[bytes]) -> bytes:
    """A chunked body (RFC 9112, section 7.1)."""
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def part(disposition: str | bytes, content: bytes, *headers: str | bytes) -> bytes:
    """A part of a form, with the boundary before it."""
    return (f"--{BOUNDARY}\r\n".encode() + b"Content-Disposition: form-data; " + _bytes(disposition) + b"\r\n"
            + b"".join(_bytes(line) + b"\r\n" for line in headers) + b"\r\n" + content + b"\r\n")


def form(*parts: bytes) -> bytes:
    """The body of a form."""
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def upload_form(body: bytes, *headers: str | bytes, token: str, query: str = "",
                content_type: str | bytes = f"multipart/form-data; boundary={BOUNDARY}") -> bytes:
    """A whole request with a form."""
    return request(f"POST /file{query}", b"Content-Type: " + _bytes(content_type), *headers, token=token, body=body)
