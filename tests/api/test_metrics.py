"""The metrics: right numbers over all workers, and nothing of them at the public address."""

import asyncio
import os
import re
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from io import BytesIO
from pathlib import Path

import aiohttp
import pytest

from service import metrics
from service.api.routes import ROUTES
from tests.client import PASSWORD, Api, new_account, until
from tests.stack import Stack, free_port

WORKERS = 3
_LINE = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

Key = tuple[str, frozenset[tuple[str, str]]]


class Scrape:
    """One answer of /metrics."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.values: dict[Key, float] = {}
        for line in text.splitlines():
            if not line.startswith("#"):
                match = _LINE.fullmatch(line)
                assert match, line
                key = match[1], frozenset(_LABEL.findall(match[2] or ""))
                assert key not in self.values, line
                self.values[key] = float(match[3])

    def sum(self, name: str, **labels: str) -> float:
        """All series of the name that have these labels, added up."""
        wanted = set(labels.items())
        return sum(value for (found, given), value in self.values.items() if found == name and wanted <= given)


@pytest.fixture(scope="module")
def metered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Three workers behind nginx, with METRICS_PORT."""
    stack = Stack(tmp_path_factory.mktemp("metered") / "data",
                  {"WORKERS": str(WORKERS), "METRICS_PORT": str(free_port())}).start()
    yield stack
    stack.stop()


@pytest.fixture(scope="module")
def metered_direct(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The same without nginx."""
    stack = Stack(tmp_path_factory.mktemp("metered-direct") / "data",
                  {"WORKERS": str(WORKERS), "METRICS_PORT": str(free_port()), "NGINX": "off"}).start()
    yield stack
    stack.stop()


@pytest.fixture(params=["metered", "metered_direct"])
def either(request: pytest.FixtureRequest) -> Stack:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Stack)
    return found


async def scrape(session: aiohttp.ClientSession, stack: Stack) -> Scrape:
    """What the listener of the supervisor says."""
    address = f"http://127.0.0.1:{stack.settings['METRICS_PORT']}/metrics"
    async with session.get(address, headers={"Accept-Encoding": "identity"}) as response:
        assert response.status == 200
        assert response.headers["Content-Type"].startswith("text/plain")
        return Scrape(await response.text())


async def scrape_socket(stack: Stack, number: int) -> Scrape:
    """What a worker says on its own socket."""
    connector = aiohttp.UnixConnector(str(stack.root / "run" / f"worker-{number}.sock"))
    async with (aiohttp.ClientSession(connector=connector) as session,
                session.get("http://localhost/metrics") as response):
        assert response.status == 200
        return Scrape(await response.text())


def worker_processes(stack: Stack) -> list[int]:
    """The workers of the service, from the kernel."""
    assert stack.process is not None
    found = subprocess.run(["pgrep", "-P", str(stack.process.pid), "-f", "service worker"], capture_output=True,
                           text=True, check=False)
    return [int(line) for line in found.stdout.split()]


# --- who may ask ---

@pytest.mark.parametrize("path", ["/metrics", "/metrics/", "/metrics?x=1", "//metrics"])
async def test_public_address_has_no_metrics(anonymous: Api, path: str) -> None:
    reply = await anonymous.call("GET", path, expect=404)
    assert b"file_storage_" not in reply.body


async def test_token_does_not_help(api: Api) -> None:
    await api.call("GET", "/metrics", expect=404)


async def test_listener_is_for_this_host_only(session: aiohttp.ClientSession, metered: Stack) -> None:
    listening = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()
    port = f":{int(metered.settings['METRICS_PORT']):04X} "
    assert [line.split()[1].partition(":")[0] for line in listening if port in f"{line.split()[1]} "] == ["0100007F"]


# --- numbers ---

async def test_every_worker_and_the_listener_tell_the_numbers_of_all(
        session: aiohttp.ClientSession, metered: Stack) -> None:
    api = await new_account(session, metered)
    before = await scrape(session, metered)
    for number in range(30):
        await api.put(f"/{number}", b"12345")
        await api.get(f"/{number}")
    await api.get("/missing", expect=404)
    for after in [await scrape(session, metered), *[await scrape_socket(metered, n) for n in range(WORKERS)]]:
        def grown(name: str, **labels: str) -> float:
            return after.sum(name, **labels) - before.sum(name, **labels)

        assert grown("file_storage_requests_total", route="/file", method="PUT", status="201") == 30
        assert grown("file_storage_requests_total", route="/file/download", status="200") == 30
        assert grown("file_storage_requests_total", route="/file/download", status="404") == 1
        assert grown("file_storage_request_duration_seconds_count", route="/file", method="PUT") == 30
        assert 0 < grown("file_storage_request_duration_seconds_sum", route="/file", method="PUT") < 60
        assert grown("file_storage_body_bytes_total", direction="in") == 150
        assert grown("file_storage_body_bytes_total", direction="out", by="nginx") == 150
        assert after.sum("file_storage_bodies_in_flight") == 0
        assert after.sum("file_storage_resident_memory_bytes") > WORKERS * 20_000_000
        assert {labels for name, labels in after.values if name == "file_storage_resident_memory_bytes"} == {
            frozenset({("worker", str(n))}) for n in range(WORKERS)}


async def test_bytes_are_those_of_the_bodies(session: aiohttp.ClientSession, either: Stack) -> None:
    api = await new_account(session, either)
    before = await scrape(session, either)
    await api.put("/a", b"x" * 100_000)
    await api.get("/a", headers={"Range": "bytes=0-99"}, expect=206)
    await api.call("HEAD", "/file/download?path=/a", expect=200)
    after = await scrape(session, either)
    assert (after.sum("file_storage_body_bytes_total", direction="in")
            - before.sum("file_storage_body_bytes_total", direction="in")) == 100_000
    by = "nginx" if either.is_behind_nginx else "worker"

    async def has_sent() -> bool:  # a worker counts what it sent by itself when the client has it already
        after = await scrape(session, either)
        sent = (after.sum("file_storage_body_bytes_total", direction="out", by=by)
                - before.sum("file_storage_body_bytes_total", direction="out", by=by))
        assert sent < 10_000  # a worker's other answers are in it, but neither the rest of the file nor a HEAD
        return sent >= 100

    await until(has_sent)


async def test_body_on_its_way_is_seen_and_goes(session: aiohttp.ClientSession, metered_direct: Stack) -> None:
    api = await new_account(session, metered_direct)
    gate = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield b"x"
        await gate.wait()
        yield b"y"

    upload = asyncio.create_task(api.put("/slow", slowly()))

    async def flying() -> float:
        return (await scrape(session, metered_direct)).sum("file_storage_bodies_in_flight")

    async def is_seen() -> bool:
        return await flying() == 1

    await until(is_seen)
    gate.set()
    await upload
    assert await flying() == 0


async def test_routes_are_templates_and_nothing_of_a_client_is_in_a_label(
        session: aiohttp.ClientSession, either: Stack) -> None:
    api = await new_account(session, either)
    await api.put("/secret-name", b"x")
    await api.call("GET", "/secret/address", expect=404)
    await api.call("BREW" if either.is_behind_nginx else "PROPFIND", "/file")
    await api.call("DELETE", "/auth/session/01936b2e-7c41-7d52-9f0a-5b1c2d3e4f60", expect=404)
    found = await scrape(session, either)
    templates = {route.path for route in ROUTES} | {"unmatched"}
    for name, labels in found.values:
        given = dict(labels)
        assert given.get("route", "unmatched") in templates
        assert given.get("method", "GET") in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "other"}
        assert set(given) <= {"route", "method", "status", "le", "direction", "by", "kind", "queue", "state", "result",
                              "what", "outcome", "worker", "of"}, name
    for secret in ("secret", api.username, api.token[:30], "BREW"):
        assert secret not in found.text
    assert found.sum("file_storage_requests_total", route="/auth/session/{id}", status="404") >= 1


async def test_upload_that_is_refused_before_its_first_byte_is_counted_as_an_upload(
        session: aiohttp.ClientSession, either: Stack) -> None:
    api = await new_account(session, either)
    link = await api.call("POST", "/file/link", json={"path": "/", "kind": "upload"}, expect=201)
    visited = "/s/" + link.json["url"].rsplit("/", 1)[1]
    large = bytes(100_000)

    async def counted() -> list[float]:
        found = await scrape(session, either)
        return [found.sum("file_storage_requests_total", route="/file", method="PUT", status="422"),
                found.sum("file_storage_requests_total", route="/file", method="PUT", status="401"),
                found.sum("file_storage_requests_total", route="/s/{token}", method="POST", status="404"),
                found.sum("file_storage_requests_total", route="/_preflight", status="403")]

    before = await counted()
    await api.put("/../a", large, expect=422)
    async with session.put(f"{either.url}/file?path=/a", data=BytesIO(large)) as response:
        assert response.status == 401
    await api.call("DELETE", f"/file/link/{link.json['id']}", expect=204)
    await api.call("POST", visited, data=large, headers={"Content-Type": "application/octet-stream"}, expect=404)
    assert [now - then for now, then in zip(await counted(), before, strict=True)] == [1, 1, 1, 0]


async def test_cache_pool_and_queues_are_there(session: aiohttp.ClientSession, either: Stack) -> None:
    api = await new_account(session, either)
    before = await scrape(session, either)
    for _ in range(40):
        await api.usage()
    after = await scrape(session, either)
    hits = (after.sum("file_storage_cache_lookups_total", result="hit")
            - before.sum("file_storage_cache_lookups_total", result="hit"))
    misses = (after.sum("file_storage_cache_lookups_total", result="miss")
              - before.sum("file_storage_cache_lookups_total", result="miss"))
    assert hits + misses == 40 and 1 <= misses
    assert after.sum("file_storage_database_connections", state="open") >= WORKERS
    assert (await scrape(session, either)).sum("file_storage_queue_depth") == 0


async def test_refusals_for_too_many_requests_are_counted(
        session: aiohttp.ClientSession, tmp_path: Path) -> None:
    stack = Stack(tmp_path / "data", {"WORKERS": "1", "LOGIN_ATTEMPTS_PER_MINUTE": "2", "NGINX": "off",
                                      "METRICS_PORT": str(free_port())}).start()
    try:
        api = await new_account(session, stack)
        statuses = [(await api.call("POST", "/auth/jwt/login",
                                    json={"username": api.username, "password": PASSWORD})).status for _ in range(5)]
        found = await scrape(session, stack)
        assert statuses.count(429) == 4
        assert found.sum("file_storage_throttled_requests_total", route="/auth/jwt/login") == 4
    finally:
        stack.stop()


async def test_killed_worker_takes_no_numbers_with_it(session: aiohttp.ClientSession, metered: Stack) -> None:
    api = await new_account(session, metered)
    for number in range(20):
        await api.put(f"/{number}", b"12345")

    async def puts() -> float:
        return (await scrape(session, metered)).sum("file_storage_requests_total", route="/file", method="PUT")

    before = await puts()
    folder = metrics.folder_of(metered.root)
    files = sorted(os.listdir(folder))
    for victim in worker_processes(metered):
        os.kill(victim, signal.SIGKILL)

        async def is_replaced(victim: int = victim) -> bool:
            return victim not in (found := worker_processes(metered)) and len(found) == WORKERS

        await until(is_replaced, seconds=30)
    await until(lambda: _answers(api), seconds=30)
    assert await puts() == before
    await api.put("/after", b"x")
    assert await puts() == before + 1
    found = await scrape(session, metered)
    assert found.sum("file_storage_bodies_in_flight") == 0
    assert found.sum("file_storage_queue_depth") == 0
    assert sorted(os.listdir(folder)) == files  # they do not pile up


async def _answers(api: Api) -> bool:
    return (await api.call("GET", "/readyz")).status == 200
