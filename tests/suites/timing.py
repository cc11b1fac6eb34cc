"""Attack 3, by the clock: what is another account's must take as long as what does not exist.

Run by `make test-faults` and `make fuzz`.  Requests of both kinds take turns, so whatever else the machine does meets
both.
"""

import os
import statistics
import time
import uuid

import aiohttp
import pytest

from tests.client import Api, new_account
from tests.stack import Stack

ROUNDS = 40 * int(os.environ.get("FUZZ_EXAMPLES", "25"))
LIMIT = 0.10


async def _milliseconds(api: Api, method: str, address: str) -> float:
    begin = time.perf_counter()
    await api.call(method, address, expect=404)
    return (time.perf_counter() - begin) * 1000


@pytest.mark.parametrize("line", ["GET /file/download?path={}", "GET /file/info?path={}", "DELETE /file?path={}",
                                  "GET /file/versions?path={}", "GET /file/archive?path={}"])
async def test_foreign_and_unknown_ids_take_as_long(
        nginx_stack: Stack, session: aiohttp.ClientSession, line: str) -> None:
    owner, other = await new_account(session, nginx_stack), await new_account(session, nginx_stack)
    foreign = [(await owner.put(f"/{number}", b"x")).json["id"] for number in range(20)]
    method, _, address = line.partition(" ")
    times: dict[str, list[float]] = {"foreign": [], "unknown": []}
    for number in range(min(ROUNDS, 4000)):
        for kind in ("foreign", "unknown") if number % 2 else ("unknown", "foreign"):
            found = foreign[number % len(foreign)] if kind == "foreign" else str(uuid.uuid4())
            times[kind].append(await _milliseconds(other, method, address.format(found)))
    one, two = (statistics.median(times[kind]) for kind in ("foreign", "unknown"))
    print(f"{line}: {one:.3f} ms, {two:.3f} ms")
    assert abs(one - two) / two < LIMIT, (one, two)
