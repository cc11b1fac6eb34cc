"""The power fails while clients write (F3, F4, F5): what was acknowledged is there, whole, and nothing dangles."""

import asyncio
import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.faults.clients import Account, Writer
from tests.faults.examine import check_invariants, examine, leftovers, stray_blobs
from tests.faults.ledger import body_of
from tests.faults.machine import MKFS
from tests.faults.recorder import Line, Recorder
from tests.faults.sites import LAYOUTS, Layout, Site, open_site
from tests.invariants import take_snapshot

NAMES: dict[Layout, str] = {"bytes": "F3 power cut: disk of the bytes", "all": "F4 power cut: whole machine",
                            "postgres": "F5 power cut: disk of PostgreSQL"}
ACCOUNTS, WRITERS = 2, 3
MANY = 1000
TOGETHER = 16


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> Layout:
    """What is on the disk that loses its power."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(params=sorted(MKFS))
def kind(request: pytest.FixtureRequest) -> str:
    """The file system."""
    return str(request.param)


@pytest.fixture
def site(tmp_path: Path, kind: str, layout: Layout) -> Iterator[Site]:
    """A service on such a disk."""
    with open_site(tmp_path, kind, layout) as opened:
        yield opened


async def cut_while_writing(site: Site, session: aiohttp.ClientSession, *, seed: int,
                            after: int | None) -> list[Account]:
    """Several writers, and a cut: right after so many acknowledgements, or at some moment."""
    choose = random.Random(seed)
    accounts = [await Account.open(session, site.stack) for _ in range(ACCOUNTS)]
    stop, early = asyncio.Event(), list[str]()

    def cut() -> None:
        if not stop.is_set():
            early.extend(words for account in accounts for words in account.ledger.refused)
            site.cut()
            stop.set()

    def count() -> None:
        if sum(account.ledger.acknowledged for account in accounts) == after:
            cut()

    for account in accounts:
        account.ledger.on_acknowledged = count
    writers = [asyncio.create_task(Writer(account, f"/w{number}", seed * 100 + number).run(stop))
               for account in accounts for number in range(WRITERS)]
    if after is None:
        asyncio.get_running_loop().call_later(choose.uniform(0.05, 2), cut)
    async with asyncio.timeout(60):
        await stop.wait()
    await asyncio.to_thread(site.end)
    await asyncio.wait_for(asyncio.gather(*writers), 100)
    assert early == [], "there was no room, or something else was wrong, before the cut"
    return accounts


async def recover(site: Site, line: Line, accounts: list[Account]) -> None:
    """Start, and see what is there; the figures go to the line."""
    line.injected += 1
    line.acknowledged += sum(account.ledger.acknowledged for account in accounts)
    in_doubt = sum(account.ledger.in_doubt for account in accounts)
    line.in_doubt += in_doubt
    line.recovered(await asyncio.to_thread(site.start))
    damage, words = await examine(accounts, site.stack.dsn, site.stack.root)
    line.add(damage)
    assert not damage, words
    refused = [words for account in accounts for words in account.ledger.refused]
    # nginx cannot put a body into a file on a disk that has lost its power, and says so; nothing was stored then
    assert [words for words in refused if ": 507 " not in words] == []


async def test_what_was_acknowledged_survives_a_power_cut(
        site: Site, session: aiohttp.ClientSession, recorder: Recorder, rounds: int) -> None:
    line = recorder.line(NAMES[site.layout], site.disk.kind)
    earlier: list[Account] = []
    in_doubt = 0
    for number in range(rounds):
        # the first right after an acknowledgement, when the least has had time to reach the disk by chance
        after = random.Random(number).randint(1, 100) if number % 3 == 0 else None
        accounts = await cut_while_writing(site, session, seed=number, after=after)
        in_doubt += sum(account.ledger.in_doubt for account in accounts)
        await asyncio.to_thread(site.power_on)
        await recover(site, line, accounts)
        earlier += accounts
    damage, words = await examine(earlier, site.stack.dsn, site.stack.root)
    assert not damage, words
    strays = await check_invariants(site.stack.dsn, site.stack.root, max_strays=in_doubt)
    line.note = f"{strays} files without a row were left; {check(site)}"


async def test_power_cut_in_the_middle_of_a_thousand_uploads(
        tmp_path: Path, kind: str, session: aiohttp.ClientSession, recorder: Recorder) -> None:
    with open_site(tmp_path, kind, "all") as site:
        line = recorder.line("F4 power cut amid 1,000 uploads", kind)
        account = await Account.open(session, site.stack)
        gate = asyncio.Semaphore(TOGETHER)
        is_cut = asyncio.Event()

        def count() -> None:
            if account.ledger.acknowledged == MANY // 2:
                site.cut()
                is_cut.set()

        async def upload(number: int) -> None:
            async with gate:
                if not is_cut.is_set():
                    await account.put(f"/{number % 10}/{number}.bin", body_of(f"{kind}{number}", 4096))

        account.ledger.on_acknowledged = count
        uploads = [asyncio.create_task(upload(number)) for number in range(MANY)]
        async with asyncio.timeout(120):
            await is_cut.wait()
        await asyncio.to_thread(site.end)
        await asyncio.wait_for(asyncio.gather(*uploads), 100)
        in_doubt = account.ledger.in_doubt
        await asyncio.to_thread(site.power_on)
        staged, spooled = leftovers(site.stack.root)
        await recover(site, line, [account])
        stray = len(stray_blobs(await take_snapshot(site.stack.dsn, site.stack.root)))
        there = len(await account.api.list())
        assert leftovers(site.stack.root) == (0, 0), "the start has not removed what was on its way"
        line.note = (f"{there} files are there, {in_doubt} uploads were in doubt; left on the disk: {staged} staged, "
                     f"{spooled} spooled (gone after the start), {stray} without a row; {check(site)}")
        await check_invariants(site.stack.dsn, site.stack.root, max_strays=in_doubt)


def check(site: Site) -> str:
    """What `python -m service check` says of the running service, in short; bytes without a row are all it may find."""
    done = subprocess.run([sys.executable, "-m", "service", "check", "--json"], env=site.stack.environment(),
                          capture_output=True, text=True, timeout=300)
    report = json.loads(done.stdout)
    kinds = Counter(finding["kind"] for finding in report["findings"])
    assert set(kinds) <= {"stray"} and done.returncode == bool(kinds), (done.returncode, report)
    return f"check: {dict(kinds) or 'nothing found'}, exit code {done.returncode}"
