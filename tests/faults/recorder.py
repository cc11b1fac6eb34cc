"""What the tests of faults found, in one table: fault by fault, all zero."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

COLUMNS = ("fault", "where", "injected", "acknowledged", "in doubt", "lost", "torn", "dangling", "recovery s", "note")

SUMMED = ("fault", "injected", "acknowledged", "in_doubt", "lost", "torn", "dangling", "recovery_seconds")
SUMMARY = tuple(name.replace("_", " ").replace("recovery seconds", "recovery s") for name in SUMMED)
TOTAL = "all of them"
PROMISED_SECONDS = 10.0  # within which the service is back; the soak fails by it, tests do not: others may run beside


@dataclass
class Damage:
    """What is not as it was promised: acknowledged changes that are not there, bytes that are no version's, versions
    whose bytes are gone.
    """

    lost: int = 0
    torn: int = 0
    dangling: int = 0

    def __add__(self, other: "Damage") -> "Damage":
        return Damage(self.lost + other.lost, self.torn + other.torn, self.dangling + other.dangling)

    def __bool__(self) -> bool:
        return self != Damage()


@dataclass
class Line:
    """One kind of fault."""

    fault: str
    where: str
    injected: int = 0
    acknowledged: int = 0
    in_doubt: int = 0
    lost: int = 0
    torn: int = 0
    dangling: int = 0
    recovery_seconds: float | None = None
    """The longest, from the moment that the machine is on again or the fault is over; None where nothing stopped."""
    note: str = ""

    def add(self, damage: Damage) -> None:
        """Count it."""
        self.lost += damage.lost
        self.torn += damage.torn
        self.dangling += damage.dangling

    def recovered(self, seconds: float) -> None:
        """Note how long it took, if it took longer than before."""
        self.recovery_seconds = round(max(seconds, self.recovery_seconds or 0), 2)


class Recorder:
    """Collects the lines of a run."""

    def __init__(self) -> None:
        self.lines: list[Line] = []

    def line(self, fault: str, where: str = "", note: str = "") -> Line:
        """Begin a line; what is known of it counts even if the test fails."""
        line = Line(fault, where, note=note)
        self.lines.append(line)
        return line

    def markdown(self) -> str:
        """The table."""
        rows = [COLUMNS, ("---",) * len(COLUMNS)]
        for line in sorted(self.lines, key=lambda line: (line.fault, line.where)):
            rows.append(tuple("" if value is None else str(value) for value in asdict(line).values()))
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)

    def summary(self) -> str:
        """The same in short: one line for each fault that was injected, wherever it was, and one for all of them."""
        sums: dict[str, Line] = {}
        for line in self.lines:
            for name in (line.fault, TOTAL) if line.injected else ():
                into = sums.setdefault(name, Line(name, ""))
                into.injected += line.injected
                into.acknowledged += line.acknowledged
                into.in_doubt += line.in_doubt
                into.add(Damage(line.lost, line.torn, line.dangling))
                if line.recovery_seconds is not None:
                    into.recovered(line.recovery_seconds)
        if not sums:
            return ""
        rows = [SUMMARY, ("---",) * len(SUMMARY)]
        for line in sorted(sums.values(), key=lambda line: (line.fault == TOTAL, line.fault)):
            fields = asdict(line)
            rows.append(tuple("" if fields[name] is None else str(fields[name]) for name in SUMMED))
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)

    def late(self) -> list[str]:
        """What took longer than is promised until it was back."""
        return sorted(f"{f'{line.fault} {line.where}'.rstrip()} ({line.recovery_seconds} s)" for line in self.lines
                      if (line.recovery_seconds or 0) > PROMISED_SECONDS)

    def slow(self) -> str:
        """The same in words; nothing if nothing had to come back."""
        if late := self.late():
            return f"slower than {PROMISED_SECONDS:.0f} s: {', '.join(late)}"
        has_stopped = any(line.recovery_seconds is not None for line in self.lines)
        return f"all back within {PROMISED_SECONDS:.0f} s" if has_stopped else ""

    def write(self, path: Path) -> None:
        """The same for programs."""
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps([asdict(line) for line in self.lines], indent=1) + "\n", encoding="utf-8")
