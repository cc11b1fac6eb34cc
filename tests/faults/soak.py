"""`make soak MINUTES=60`: a week in an hour.  Mixed load, something is killed every 20 s, everybody keeps books.

Readers compare all the time what they get with what was acknowledged.  At the end everything is quiet: what is there is
compared with all books, byte for byte, then the sweep, the invariants and `check`.  Exit code 1 if anything is wrong,
or took longer to be back than is promised: run it alone.
"""

import argparse
import asyncio
import json
import logging
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog

from service.errors import ServiceError
from tests.faults.clients import SIZES, Account, Writer, client_session
from tests.faults.examine import check_invariants, examine, stray_blobs
from tests.faults.ledger import body_of
from tests.faults.machine import descendants, kill
from tests.faults.readers import Reader
from tests.faults.recorder import Line, Recorder
from tests.faults.sites import FaultyStack
from tests.invariants import sweep, take_snapshot
from tests.redis_server import RedisServer

REPORT = Path(__file__).parents[2] / "build" / "soak.json"
KILL_SECONDS = 20.0
SWEEP_SECONDS = 45.0
CHECK_SECONDS = 60.0
PROBE_SECONDS = 0.1
PATIENCE_SECONDS = 120.0  # who is not back by then does not come back by itself
ACCOUNTS, WRITERS, READERS = 3, 2, 1
MAX_FILES = 40
PAUSE_SECONDS = 0.35
ALL_SIZES = SIZES * 4 + (8_000_000, 30_000_000)


class Soak:
    """One run."""

    def __init__(self, stack: FaultyStack, redis: RedisServer, seed: int) -> None:
        self._stack = stack
        self._redis = redis
        self._random = random.Random(seed)
        self._stop = asyncio.Event()
        self._kills: dict[str, Callable[[], Awaitable[None]]] = {
            "worker": self._kill_worker, "nginx": self._kill_nginx, "nginx worker": self._kill_nginx_worker,
            "PostgreSQL": self._kill_postgres, "backend": self._kill_backend, "Redis": self._kill_redis,
            "everything": self._kill_everything}
        self.recorder = Recorder()
        self.lines: dict[str, Line] = {name: self.recorder.line(f"kill {name}") for name in self._kills}
        self.sweeps = 0
        self.checks = 0
        self.false_alarms: list[str] = []
        self._redis_again: asyncio.Task[None] | None = None

    async def run(self, seconds: float) -> bool:
        """Load, kills, quiet, comparison; whether all is as it has to be."""
        async with client_session() as session:
            accounts = [await Account.open(session, self._stack) for _ in range(ACCOUNTS)]
            probe = await Account.open(session, self._stack)
            readers = [Reader(account, number) for number, account in enumerate(accounts * READERS)]
            work = [Writer(account, f"/w{number}", self._random.randrange(2**32), sizes=ALL_SIZES, max_files=MAX_FILES)
                    .run(self._stop, pause_seconds=PAUSE_SECONDS) for account in accounts for number in range(WRITERS)]
            work += [reader.run(self._stop, pause_seconds=PAUSE_SECONDS) for reader in readers]
            tasks = [asyncio.create_task(each) for each in (*work, self._sweep(), self._check())]
            await self._disturb(probe, time.monotonic() + seconds, tasks)
            self._stop.set()
            await asyncio.gather(*tasks, *([self._redis_again] if self._redis_again else []))
            return await self._finish([*accounts, probe], readers)

    async def _disturb(self, probe: Account, end: float, tasks: list[asyncio.Task[None]]) -> None:
        """A kill every 20 s, by turns, until the time is up; how long it takes until a change is acknowledged again."""
        count = 0
        while time.monotonic() < end:
            for name in self._random.sample(list(self._kills), len(self._kills)):
                await asyncio.sleep(KILL_SECONDS)
                for task in tasks:
                    if task.done():
                        task.result()  # a client ends only by an error of its own
                if time.monotonic() >= end:
                    return
                line, began = self.lines[name], time.monotonic()
                await self._kills[name]()
                line.injected += 1
                reply = None
                async with asyncio.timeout(PATIENCE_SECONDS):
                    while reply is None or reply.status not in (200, 201):
                        await asyncio.sleep(PROBE_SECONDS)
                        count += 1
                        reply = await probe.put(f"/{count % 1000}/{count}", body_of(f"probe{count}", 100))
                line.recovered(time.monotonic() - began)
                print(f"{time.strftime('%H:%M:%S')} {name}: acknowledged again after "
                      f"{time.monotonic() - began:.2f} s", flush=True)

    async def _sweep(self) -> None:
        """Garbage is removed at once, without any grace, while everybody works."""
        while not self._stop.is_set():
            try:
                await sweep(self._stack.dsn, self._stack.root)
                self.sweeps += 1
            except (ServiceError, OSError):
                pass  # PostgreSQL is being killed just now; the last sweep has to succeed
            await asyncio.sleep(SWEEP_SECONDS)

    async def _check(self) -> None:
        """All is looked through while everybody works: nothing but bytes without a row may be found (I15)."""
        while not self._stop.is_set():
            await asyncio.sleep(CHECK_SECONDS)
            _, said = await asyncio.to_thread(check, self._stack)
            try:
                is_well = only_strays(said)
            except ValueError:
                continue  # it has no report: PostgreSQL was killed meanwhile
            self.checks += 1
            if not is_well:
                self.false_alarms.append(f"a check under load says: {said}")

    async def _finish(self, accounts: list[Account], readers: list[Reader]) -> bool:
        line = self.recorder.line("soak", "all together")
        line.injected = sum(each.injected for each in self.lines.values())
        line.acknowledged = sum(account.ledger.acknowledged for account in accounts)
        line.in_doubt = sum(account.ledger.in_doubt for account in accounts)
        wrong = [words for reader in readers for words in reader.wrong]
        line.lost += len(wrong)
        damage, words = await examine(accounts, self._stack.dsn, self._stack.root)
        line.add(damage)
        wrong += words + self.false_alarms + [words for account in accounts for words in account.ledger.refused]
        wrong += [f"back too late: {words}" for words in self.recorder.late()]
        # a start removes what killed workers had in staging
        await asyncio.to_thread(self._stack.stop)
        await asyncio.to_thread(self._stack.start)
        try:
            await check_invariants(self._stack.dsn, self._stack.root, max_strays=line.in_doubt)
        except AssertionError as error:
            wrong.append(str(error))
        strays = len(stray_blobs(await take_snapshot(self._stack.dsn, self._stack.root)))
        code, said = check(self._stack)
        line.note = (f"{sum(reader.looks for reader in readers)} looks, {sum(reader.unanswered for reader in readers)} "
                     f"without an answer; {self.sweeps} sweeps with grace 0, {self.checks} checks; {strays} files "
                     f"without a row; check: exit code {code}")
        print(self.recorder.markdown(), self.recorder.slow(), *wrong, f"check --json: {said}", sep="\n", flush=True)
        self.recorder.write(REPORT)
        return not wrong and not damage and only_strays(said)

    # --- what is killed ---

    async def _kill_one(self, pids: list[int]) -> None:
        await kill([self._random.choice(pids)] if pids else [])

    async def _kill_worker(self) -> None:
        await self._kill_one(self._stack.workers())

    async def _kill_nginx(self) -> None:
        await self._kill_one(self._stack.nginx()[:1])

    async def _kill_nginx_worker(self) -> None:
        await self._kill_one(self._stack.nginx()[1:])

    async def _kill_postgres(self) -> None:
        await self._kill_one([self._postmaster()])

    async def _kill_backend(self) -> None:
        await self._kill_one(descendants(self._postmaster()))

    async def _kill_redis(self) -> None:
        await asyncio.to_thread(self._redis.kill)
        self._redis_again = asyncio.create_task(self._start_redis())

    async def _start_redis(self) -> None:
        await asyncio.sleep(self._random.uniform(0, KILL_SECONDS / 2))
        await asyncio.to_thread(self._redis.start)

    async def _kill_everything(self) -> None:
        await asyncio.to_thread(self._stack.kill)
        await asyncio.to_thread(self._stack.start)

    def _postmaster(self) -> int:
        return int((self._stack.root / "postgres" / "postmaster.pid").read_text(encoding="utf-8").split()[0])


def check(stack: FaultyStack) -> tuple[int, str]:
    """What `python -m service check` says of the running service: exit code and report."""
    done = subprocess.run([sys.executable, "-m", "service", "check", "--json"], env=stack.environment(),
                          capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout or done.stderr


def only_strays(report: str) -> bool:
    """Whether `check` found nothing but bytes of uploads that were cut off before their rows."""
    return {finding["kind"] for finding in json.loads(report)["findings"]} <= {"stray"}


def main() -> int:
    """Run for so many minutes; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder that does not exist, for the data root, which then stays")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("a soak needs root", file=sys.stderr)
        return 2
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))  # each removal is a line
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        redis = RedisServer(Path(folder))
        redis.start()
        stack = FaultyStack(options.keep or Path(folder) / "data", {
            "ACCESS_TOKEN_TTL": "86400", "REDIS_URL": redis.url, "VERSIONS_KEEP": "3"}, module="service")
        try:
            stack.start()
            is_well = asyncio.run(Soak(stack, redis, options.seed).run(options.minutes * 60))
            print(json.dumps({"seed": options.seed, "minutes": options.minutes, "well": is_well}))
        finally:
            if stack.process is not None:
                stack.stop()
            redis.kill()
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
