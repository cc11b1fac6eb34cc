"""Large files: raw sockets, so that the client costs little: sendfile(2) for uploads, one buffer for downloads.

A download is compared with the file at many places while it is timed, and by its hash when it is not.
"""

import hashlib
import json
import os
import random
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.bench.contenders import Contender
from tests.bench.figures import Timed, WrongAnswer

BUFFER_BYTES = 2**20
COMPARED_BYTES = 4096
COMPARED_EVERY = 16 * 2**20
TRANSFER_SECONDS = 600.0
BOUNDARY = "benchmark-0123456789abcdef"


@dataclass(frozen=True)
class Source:
    """The large file that everybody stores and sends."""

    path: Path
    size: int
    sha256: str

    @classmethod
    def make(cls, path: Path, size: int) -> "Source":
        """Write it: no two of its pieces are the same, and nothing can be compressed."""
        generator, digest = random.Random(size), hashlib.sha256()
        block = bytearray(generator.randbytes(BUFFER_BYTES))
        with path.open("wb") as file:
            for number in range(0, size, BUFFER_BYTES):
                block[:4096] = generator.randbytes(4096)
                piece = bytes(block[:min(BUFFER_BYTES, size - number)])
                file.write(piece)
                digest.update(piece)
        return cls(path, size, digest.hexdigest())


def _connect(contender: Contender) -> socket.socket:
    return socket.create_connection(("127.0.0.1", contender.port), timeout=TRANSFER_SECONDS)


def _head(contender: Contender, method: str, target: str, **headers: str) -> bytes:
    given = {"Host": "127.0.0.1", "Connection": "close", **contender.headers,
             **{name.replace("_", "-"): value for name, value in headers.items()}}
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def _read_head(connection: socket.socket) -> tuple[int, bytes, bytes]:
    """The status, the head, and what has come of the body."""
    received = b""
    while b"\r\n\r\n" not in received:
        piece = connection.recv(2**16)
        if not piece:
            raise WrongAnswer(f"cut off after {received!r}")
        received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]), head, body


def download(contender: Contender, target: str, source: Source, take: Callable[[bytes | memoryview], object]) -> None:
    """Download the large file; `take` gets every piece."""
    with _connect(contender) as connection, source.path.open("rb") as original:
        connection.sendall(_head(contender, "GET", target))
        status, head, piece = _read_head(connection)
        length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
        if status != 200 or length is None or int(length[1]) != source.size:
            raise WrongAnswer(f"{contender.name}: {target}: {head[:300]!r}")
        take(piece)
        position, compared = len(piece), 0
        buffer = bytearray(BUFFER_BYTES)
        view = memoryview(buffer)
        while count := connection.recv_into(buffer):
            take(view[:count])
            if position >= compared:
                part = view[:min(count, COMPARED_BYTES)]
                if os.pread(original.fileno(), len(part), position) != part:
                    raise WrongAnswer(f"{contender.name}: {target}: wrong bytes at {position}")
                compared += COMPARED_EVERY
            position += count
        if position != source.size:
            raise WrongAnswer(f"{contender.name}: {target}: {position} bytes of {source.size}")


def _ignore(piece: bytes | memoryview) -> None:
    """What the timed downloads do with a piece."""


def time_downloads(contender: Contender, target: str, source: Source, at_once: int) -> Timed:
    """So many at the same time; the bytes, and the seconds until the last one has ended."""
    with ThreadPoolExecutor(at_once) as threads:
        ready = threading.Barrier(at_once + 1)

        def work() -> None:
            ready.wait()
            download(contender, target, source, _ignore)

        futures = [threads.submit(work) for _ in range(at_once)]
        ready.wait()
        start = time.perf_counter()
        for future in futures:
            future.result()
        return Timed(at_once * source.size, time.perf_counter() - start)


def check_download(contender: Contender, target: str, source: Source) -> None:
    """WrongAnswer unless the large file comes back as it is, by its hash."""
    digest = hashlib.sha256()
    download(contender, target, source, digest.update)
    if digest.hexdigest() != source.sha256:
        raise WrongAnswer(f"{contender.name}: {target}: the hash is wrong")


def _upload(contender: Contender, method: str, target: str, source: Source, before: bytes, after: bytes,
            content_type: str) -> tuple[int, bytes]:
    """Send the large file; the status and the body of the answer."""
    size = len(before) + source.size + len(after)
    with _connect(contender) as connection, source.path.open("rb") as file:
        connection.sendall(_head(contender, method, target, Content_Length=str(size), Content_Type=content_type))
        connection.sendall(before)
        connection.sendfile(file)
        connection.sendall(after)
        status, _, body = _read_head(connection)
        while piece := connection.recv(BUFFER_BYTES):
            body += piece
    return status, body


def _force(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def put(contender: Contender, path: str, source: Source) -> Timed:
    """PUT under a new name; the bytes, and the seconds until the answer."""
    start = time.perf_counter()
    status, body = _upload(contender, "PUT", contender.target(path), source, b"", b"", "application/octet-stream")
    seconds = time.perf_counter() - start
    if status != contender.created or contender.told_digest(body) not in (None, source.sha256):
        raise WrongAnswer(f"{contender.name}: PUT {path}: status {status}: {body[:300]!r}")
    return Timed(source.size, seconds)


def put_checked(contender: Contender, path: str, source: Source) -> Timed:
    """PUT, then `sha256sum` of what is stored, then the file and its folder forced to the disk: all of it counts."""
    start = time.perf_counter()
    put(contender, path, source)
    stored = contender.files / path.lstrip("/")
    before = os.times()
    done = subprocess.run(["sha256sum", str(stored)], capture_output=True, text=True, check=True)
    after = os.times()
    _force(stored)
    _force(stored.parent)
    seconds = time.perf_counter() - start
    if done.stdout.split()[0] != source.sha256:
        raise WrongAnswer(f"{contender.name}: {path}: the hash is wrong")
    return Timed(source.size, seconds, after.children_user + after.children_system
                 - before.children_user - before.children_system)


def post_form(contender: Contender, path: str, source: Source) -> Timed:
    """POST as a browser sends it; the bytes, and the seconds until the answer, which has to have the right hash."""
    before = (f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="path"\r\n\r\n{path}\r\n--{BOUNDARY}\r\n'
              'Content-Disposition: form-data; name="file"; filename="large.bin"\r\n'
              "Content-Type: application/octet-stream\r\n\r\n").encode()
    start = time.perf_counter()
    status, body = _upload(contender, "POST", "/file", source, before, f"\r\n--{BOUNDARY}--\r\n".encode(),
                           f"multipart/form-data; boundary={BOUNDARY}")
    seconds = time.perf_counter() - start
    if status != 201 or json.loads(body)["sha256"] != source.sha256:
        raise WrongAnswer(f"{contender.name}: POST {path}: status {status}: {body[:300]!r}")
    return Timed(source.size, seconds)
