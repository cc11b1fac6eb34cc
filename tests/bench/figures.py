"""What a measurement is, and what several of them say: rates, medians, ratios within a round, changes."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

TOLERANCE = 0.10
"""A ratio has fallen if it is lower than the accepted one by more than this part of it."""


class WrongAnswer(Exception):
    """A server did not do what it was asked for: nothing of this run may be counted."""


class Timed(NamedTuple):
    """What was done in how many seconds."""

    units: float
    seconds: float
    cpu_seconds: float = 0.0
    """Of programs that do a part of the work but are not below the contender's process."""
    check: Callable[[], None] = lambda: None
    """To be called when the clocks have stopped: raises WrongAnswer if this must not be counted."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One timed run of one contender."""

    units: float
    """Requests, bytes or rows, as the row says."""
    seconds: float
    cpu_seconds: float
    """Of all processes of the contender, its database included."""
    foreign_share: float
    """What part of the machine's processors neither the contenders nor the client have used."""
    cpu_by_program: dict[str, float] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Units a second."""
        return self.units / self.seconds


@dataclass(frozen=True, slots=True)
class Spread:
    """A median, and the range that it comes from."""

    median: float
    lowest: float
    highest: float


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    return Spread(statistics.median(values), min(values), max(values))


def rates(samples: Sequence[Sample]) -> Spread:
    """Units a second."""
    return spread([sample.rate for sample in samples])


def cpu_per_unit(samples: Sequence[Sample]) -> float:
    """Processor seconds for each unit, over all runs: the ticks of one short run are too coarse."""
    return sum(sample.cpu_seconds for sample in samples) / sum(sample.units for sample in samples)


def cpu_parts(samples: Sequence[Sample]) -> dict[str, float]:
    """The same by program, the greatest first."""
    units = sum(sample.units for sample in samples)
    names = {name for sample in samples for name in sample.cpu_by_program}
    parts = {name: sum(sample.cpu_by_program.get(name, 0.0) for sample in samples) / units for name in names}
    return {name: parts[name] for name in sorted(names, key=lambda name: -parts[name]) if parts[name] > 0}


def ratios(subject: Sequence[Sample], reference: Sequence[Sample]) -> Spread:
    """How many times as fast as the reference, round by round: the machine's own ups and downs are in both."""
    return spread([mine.rate / other.rate for mine, other in zip(subject, reference, strict=True)])


def has_fallen(now: float, accepted: float | None) -> bool:
    """Whether a ratio is clearly lower than the one that was accepted."""
    return accepted is not None and now < accepted * (1 - TOLERANCE)


def is_below(now: float, at_least: float | None) -> bool:
    """Whether a ratio misses its mark."""
    return at_least is not None and now < at_least
