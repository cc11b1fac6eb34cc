"""Rows with lists: all files of an account against psql with the same rows, and pages of one large folder."""

import asyncio
import fcntl
import http.client
import json
import os
import socket
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from urllib.parse import quote

import orjson

from service.run import postgres
from tests.bench import load_tree
from tests.bench.contenders import ANSWER_SECONDS, Service
from tests.bench.figures import Timed, WrongAnswer
from tests.bench.processes import peak_bytes, reset_peak
from tests.bench.rows import Bench, Observation, Row, Runner

MIB = 2**20
SMALL, LARGE = 10_000, 100_000
PAGE_FILES = 100
PAGES_A_RUN = 50
GROWTH_ROUNDS = 3
MOMENT = """'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'"""
# The objects of the list, as somebody would write it who has psql and no service; one line, since it is for \copy.
QUERY = " ".join(f"""
WITH RECURSIVE folders AS (
    SELECT id, '' COLLATE "C" AS path FROM files WHERE id = '{{user_id}}'
    UNION ALL
    SELECT child.id, folders.path || '/' || child.name
    FROM folders JOIN files AS child ON child.parent_id = folders.id
    WHERE child.is_folder AND child.deleted_at IS NULL
)
SELECT row_to_json(found) FROM (
    SELECT 'file' AS type, files.id, name, folders.path || '/' || name AS path, head_bytes AS size,
           encode(sha256, 'hex') AS sha256, content_type, number AS version,
           '"' || replace(versions.id::text, '-', '') || '"' AS etag, to_char(files.created_at, {MOMENT}) AS created_ad,
           to_char(files.created_at, {MOMENT}) AS created_at, to_char(updated_at, {MOMENT}) AS updated_at
    FROM folders JOIN files ON files.parent_id = folders.id
    JOIN versions ON versions.id = head_id JOIN blobs ON blobs.id = blob_id
    WHERE NOT is_folder AND files.deleted_at IS NULL
) AS found ORDER BY path COLLATE "C"
""".split())
COPY = "\\copy ({query}) TO STDOUT WITH (FORMAT csv, DELIMITER E'\\x01', QUOTE E'\\x02')\n\\echo {end}\n"
END = "--- that was all ---"


def _account(bench: Bench, service: Service, name: str, folders: int, files: int, flat: int) -> Service:
    """The service as an account sees it that has such a tree; the tree is loaded once, the token is fresh."""
    account = replace(service, username=name, headers={})
    if (service.name, name) not in bench.accounts:
        account.register()
        asyncio.run(load_tree.load(service.dsn, name, folders, files, flat))
        bench.accounts.add((service.name, name))
    account.login()
    return account


def _of_size(bench: Bench, service: Service, count: int) -> Service:
    """Half of the files in one folder, half in many, ten in each."""
    return _account(bench, service, f"list-{count}", count // 20, 10, count // 2)


def _read_all(account: Service, target: str) -> tuple[bytes, bytes]:
    """The head and the body of an answer whose connection is closed at its end, as they come."""
    lines = [f"GET {target} HTTP/1.1", "Host: 127.0.0.1", "Connection: close",
             *(f"{name}: {value}" for name, value in account.headers.items())]
    pieces: list[bytes] = []
    with socket.create_connection(("127.0.0.1", account.port), timeout=ANSWER_SECONDS) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        while piece := connection.recv(MIB):
            pieces.append(piece)
    head, _, body = b"".join(pieces).partition(b"\r\n\r\n")
    return head, body


def unchunk(body: bytes) -> bytes:
    """What was sent in chunks (RFC 9112, 7.1); WrongAnswer if the last one is not there."""
    pieces: list[bytes] = []
    position = 0
    while True:
        line = body.find(b"\r\n", position)
        if line < 0:
            raise WrongAnswer("the list was cut off")
        size = int(body[position:line], 16)
        if not size:
            return b"".join(pieces)
        pieces.append(body[line + 2:line + 2 + size])
        position = line + 2 + size + 2


def _list(account: Service, count: int) -> tuple[Timed, bytes]:
    """The whole list, and how long it took."""
    start = time.perf_counter()
    head, body = _read_all(account, "/file/list")
    seconds = time.perf_counter() - start
    if not head.startswith(b"HTTP/1.1 200 "):
        raise WrongAnswer(f"{account.name}: /file/list: {head[:300]!r}")
    body = unchunk(body) if b"\r\ntransfer-encoding: chunked" in head.lower() else body
    return Timed(count, seconds), body


class Psql:
    """A psql that stays connected: its start is not what the service is compared with."""

    def __init__(self, bench: Bench, account: Service) -> None:
        programs = postgres.find_programs()
        self._process = subprocess.Popen(
            [str(programs / "psql"), "-qXAt", "-v", "ON_ERROR_STOP=1", account.dsn], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, cwd=bench.folder)
        bench.closing.callback(self.close)
        assert self._process.stdout is not None
        self._output = self._process.stdout.fileno()
        fcntl.fcntl(self._output, fcntl.F_SETPIPE_SZ, MIB)
        user_id = self._ask(f"SELECT id FROM users WHERE username = '{account.username}';\n\\echo {END}\n").strip()
        self._copy = COPY.format(query=QUERY.format(user_id=user_id.decode()), end=END)

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def _ask(self, text: str) -> bytes:
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode())
        self._process.stdin.flush()
        pieces, end = [b""], f"{END}\n".encode()
        while not (pieces[-2] + pieces[-1] if len(pieces) > 2 else pieces[-1]).endswith(end):
            piece = os.read(self._output, MIB)
            if not piece:
                raise WrongAnswer("psql has ended")
            pieces.append(piece)
        return b"".join(pieces).removesuffix(end)

    def copy(self, count: int) -> tuple[Timed, bytes]:
        """All rows, and how long they took."""
        start = time.perf_counter()
        data = self._ask(self._copy)
        return Timed(count, time.perf_counter() - start), data


def _checked(name: str, run: Callable[[], tuple[Timed, bytes]], size: int) -> Timed:
    """A run whose answer has to be as long as the one that was compared."""
    timed, data = run()
    if len(data) != size:
        raise WrongAnswer(f"{name}: {len(data)} bytes, {size} were expected")
    return timed


class WholeList(Row):
    """`GET /file/list` of so many files against psql; the objects are the same, one by one."""

    unit = "rows"
    at_least = 0.70

    def __init__(self, name: str, count: int) -> None:
        self.name = name
        self.title = f"GET /file/list of {count:,} files, against psql `\\copy` of the same objects"
        self._count = count

    def runners(self, bench: Bench) -> list[Runner]:
        """psql works on the database of the service."""
        account = _of_size(bench, bench.service, self._count)
        psql = Psql(bench, account)
        rows = psql.copy(self._count)[1]
        expected = [orjson.loads(line) for line in rows.splitlines()]
        if len(expected) != self._count:
            raise WrongAnswer(f"psql gave {len(expected)} rows")
        reference = Runner("psql", (bench.service.pid, psql.pid),
                           partial(_checked, "psql", partial(psql.copy, self._count), len(rows)))
        first, *others = [self._service(bench, service, expected) for service in bench.services]
        return [first, reference, *others]

    def _service(self, bench: Bench, service: Service, expected: list[dict[str, object]]) -> Runner:
        account = _of_size(bench, service, self._count)
        body = _list(account, self._count)[1]
        found = orjson.loads(body)["files"]
        # the other checkout has a database of its own, and so other ids
        if found != expected if service is bench.service else len(found) != self._count:
            raise WrongAnswer(f"{service.name}: the list is not what psql says")
        return Runner(service.name, (service.pid,),
                      partial(_checked, service.name, partial(_list, account, self._count), len(body)))

    def observe(self, bench: Bench) -> list[Observation]:
        """Once, with the longer list: what ten times as many files cost."""
        return _grow(bench) if self._count == LARGE else []


def _grow(bench: Bench) -> list[Observation]:
    seconds: dict[int, list[float]] = {SMALL: [], LARGE: []}
    peaks: dict[int, list[float]] = {SMALL: [], LARGE: []}
    sizes = {}
    workers = bench.service.workers
    for _ in range(GROWTH_ROUNDS):
        for count in (SMALL, LARGE):
            account = _of_size(bench, bench.service, count)
            for pid in workers:
                reset_peak(pid)
            timed, body = _list(account, count)
            seconds[count].append(timed.seconds / count)
            peaks[count].append(max(map(peak_bytes, workers)) / MIB)
            sizes[count] = len(body) / count
    small, large = [(statistics.median(seconds[count]), statistics.median(peaks[count])) for count in (SMALL, LARGE)]
    what = f"list of {LARGE:,} files against {SMALL:,}"
    return [Observation("list-time", f"{what}: time for each file", large[0] / small[0], "times", 1.25),
            Observation("list-bytes", f"{what}: bytes for each file", sizes[LARGE] / sizes[SMALL], "times", 1.05),
            Observation("list-memory", f"{what}: growth of a worker's peak memory", large[1] - small[1], "MiB", 2.0)]


class LastPage(Row):
    """A page of 100 out of a folder with 100,000 files: the last one against the first one."""

    name = "pages"
    title = f"the last page of {PAGE_FILES} of {LARGE:,} files in one folder, against the first page"
    unit = "requests"
    at_least = 0.67  # within 1.5 times

    def runners(self, bench: Bench) -> list[Runner]:
        """The cursor of the last page is found by going through all of them."""
        first = f"/file/list?folder=/flat&limit={PAGE_FILES}"
        runners = []
        for service in bench.services:
            account = _account(bench, service, "pages", 1, 0, LARGE)
            last = f"{first}&cursor={quote(_last_cursor(account, first))}"
            runners.append(Runner(service.name, (service.pid,), partial(_pages, account, last, True)))
            if service is bench.service:
                runners.append(Runner("first page", (service.pid,), partial(_pages, account, first, False)))
        return runners


def _get_json(connection: http.client.HTTPConnection, account: Service, target: str) -> dict[str, list[object]]:
    connection.request("GET", target, headers=account.headers)
    response = connection.getresponse()
    body = response.read()
    if response.status != 200:
        raise WrongAnswer(f"{account.name}: {target}: status {response.status}: {body[:300]!r}")
    found: dict[str, list[object]] = json.loads(body)
    return found


def _last_cursor(account: Service, first: str) -> str:
    """Go through all pages; every file has to come once."""
    connection = http.client.HTTPConnection("127.0.0.1", account.port, timeout=ANSWER_SECONDS)
    cursor, names = "", set()
    target = first
    while True:
        page = _get_json(connection, account, target)
        names |= {file["name"] for file in page["files"]}  # type: ignore[index]
        if page["next_cursor"] is None:
            break
        cursor = str(page["next_cursor"])
        target = f"{first}&cursor={quote(cursor)}"
    connection.close()
    if len(names) != LARGE:
        raise WrongAnswer(f"{account.name}: {len(names)} files on all pages")
    return cursor


def _pages(account: Service, target: str, is_last: bool) -> Timed:
    connection = http.client.HTTPConnection("127.0.0.1", account.port, timeout=ANSWER_SECONDS)
    start = time.perf_counter()
    pages = [_get_json(connection, account, target) for _ in range(PAGES_A_RUN)]
    seconds = time.perf_counter() - start
    connection.close()
    for page in pages:
        if len(page["files"]) != PAGE_FILES or (page["next_cursor"] is None) != is_last:
            raise WrongAnswer(f"{account.name}: {target}: {len(page['files'])} files")
    return Timed(PAGES_A_RUN, seconds)


ROWS: tuple[Row, ...] = (WholeList("list10k", SMALL), WholeList("list100k", LARGE), LastPage())
