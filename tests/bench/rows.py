"""What a row of the benchmark is: how its contenders are made ready, what one timed run does, what is to be reached."""

import http.client
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.bench import transfers
from tests.bench.contenders import Contender, Service
from tests.bench.figures import Sample, Timed, WrongAnswer
from tests.bench.limit import Limit
from tests.bench.processes import Watch
from tests.bench.transfers import Source

FAILURES = (WrongAnswer, OSError, RuntimeError, http.client.HTTPException)
"""What a contender may do that is not what it was asked for."""

Run = Callable[[], Timed]
"""One timed run."""


@dataclass(frozen=True)
class Effort:
    """How long it is measured."""

    rounds: int
    rival_rounds: int
    seconds: int
    """Of each run of small files."""


QUICK = Effort(rounds=3, rival_rounds=1, seconds=1)
FULL = Effort(rounds=9, rival_rounds=3, seconds=4)


@dataclass
class Bench:
    """Everybody who runs, and what they share."""

    folder: Path
    service: Service
    limit: Limit
    rivals: list[Contender]
    other: Service | None
    """The service of another checkout, for a comparison of two versions."""
    effort: Effort
    large_bytes: int = 2**30
    random: Random = field(default_factory=lambda: Random(1))
    accounts: set[tuple[str, str]] = field(default_factory=set)
    """Services and accounts that have their files already."""
    placed: set[tuple[str, str]] = field(default_factory=set)
    """Contenders that have the large file, and where."""
    failures: dict[str, str] = field(default_factory=dict)
    """Rivals that cannot do the row that is measured now, and why."""
    closing: ExitStack = field(default_factory=ExitStack)
    """What ends before the contenders do."""
    _source: Source | None = None

    @property
    def services(self) -> list[Service]:
        """This version, and the other one if there is one."""
        return [self.service, *([self.other] if self.other else [])]

    @property
    def contenders(self) -> list[Contender]:
        """All of them, this version first, then the limit."""
        return [self.service, self.limit, *([self.other] if self.other else []), *self.rivals]

    def runner(self, contender: Contender, build: Callable[[], Run]) -> list["Runner"]:
        """One contender made ready; none if it is a rival that cannot do this, and `failures` says why."""
        is_rival = contender in self.rivals
        try:
            return [Runner(contender.name, (contender.pid,), build(), is_rival)]
        except FAILURES as error:
            if not is_rival:
                raise
            self.failures[contender.name] = str(error)
            return []

    @property
    def source(self) -> Source:
        """The large file, made when it is first asked for."""
        self._source = self._source or Source.make(self.folder / "large.bin", self.large_bytes)
        return self._source

    def place_large(self, contender: Contender) -> str:
        """Where the large file can be downloaded; it is stored, and checked by its hash, if it is not there yet."""
        target = contender.download_target("/large.bin")
        if (contender.name, target) not in self.placed:
            contender.store_large("/large.bin", self.source.path)
            # how it was written decides how it lies in the page cache,
            # and so what sending it costs; read anew, all lie alike
            contender.forget_cached(self.source.size)
            transfers.check_download(contender, target, self.source)
            self.placed.add((contender.name, target))
        return target


@dataclass(frozen=True)
class Runner:
    """One contender of one row."""

    name: str
    pids: tuple[int, ...]
    run: Run
    is_rival: bool = False

    def measure(self) -> Sample:
        """One run, with what it cost."""
        watch = Watch(self.pids)
        timed = self.run()
        cpu, foreign_share = watch.read()
        timed.check()
        return Sample(timed.units, timed.seconds, sum(cpu.values()) + timed.cpu_seconds, foreign_share, cpu)


@dataclass(frozen=True)
class Observation:
    """A figure that is not a ratio of two rates."""

    name: str
    title: str
    value: float
    unit: str
    at_most: float | None = None


class Look(ABC):
    """Something that is observed, not compared."""

    name: str

    @abstractmethod
    def observe(self, bench: Bench) -> list[Observation]:
        """What is to be told."""


class Row(Look):
    """A comparison: the first runner with the second one, and with all others."""

    title: str
    unit: str
    """`requests`, `bytes` or `rows`."""
    at_least: float | None
    max_rounds: int = 100

    @abstractmethod
    def runners(self, bench: Bench) -> list[Runner]:
        """Everybody made ready: the subject, the reference, others."""

    def observe(self, bench: Bench) -> list[Observation]:
        """What else is to be told when all rounds are over."""
        return []
