"""Results: as JSON, as a table in Markdown, and against those that were accepted."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.bench.figures import TOLERANCE, Sample, Spread, cpu_per_unit, has_fallen, is_below, rates, ratios
from tests.bench.rows import Observation, Row

BEGIN, END = "<!-- bench -->", "<!-- /bench -->"
DURABLE = {True: "forces uploads to the disk", False: "does not force uploads to the disk", None: "durability unknown"}
UNITS = {"requests": (1.0, "/s", 1e6, "µs"), "bytes": (2.0**20, " MiB/s", 2.0**30, "s/GiB"),
         "rows": (1.0, " rows/s", 1e6, "µs")}
"""How a rate and the processor time of a unit are shown: what a rate is divided by, what the time is multiplied by."""


@dataclass
class Result:
    """What one row has given; all of it is in the JSON."""

    name: str
    title: str
    unit: str
    at_least: float | None
    subject: str
    reference: str
    ratio: Spread
    rates: dict[str, Spread]
    cpu: dict[str, float]
    """Processor seconds for each unit."""
    foreign_share: float
    """The median of what others have used of the machine during the runs."""
    rivals: list[str] = field(default_factory=list)
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    """Rivals that took part and gave a wrong answer, and which."""

    @classmethod
    def of(cls, row: Row, samples: Mapping[str, Sequence[Sample]], rivals: Sequence[str],
           failures: Mapping[str, str]) -> "Result":
        """From the samples of each contender, the subject first and the reference second."""
        subject, reference, *_ = samples
        shares = sorted(sample.foreign_share for found in samples.values() for sample in found)
        return cls(row.name, row.title, row.unit, row.at_least, subject, reference,
                   ratios(samples[subject], samples[reference]),
                   {name: rates(found) for name, found in samples.items()},
                   {name: cpu_per_unit(found) for name, found in samples.items()},
                   shares[len(shares) // 2], [name for name in rivals if name in samples],
                   {name: list(found) for name, found in samples.items()}, dict(failures))

    def as_json(self, *, with_samples: bool) -> dict[str, Any]:
        """Everything, or what is accepted: without the single runs."""
        found = asdict(self)
        if not with_samples:
            del found["samples"]
        return found


def from_json(data: Mapping[str, Any]) -> Result:
    """A result that was written."""
    values = dict(data)
    values["ratio"] = Spread(**values["ratio"])
    values["rates"] = {name: Spread(**found) for name, found in values["rates"].items()}
    values.pop("samples", None)
    return Result(**values)


@dataclass
class Report:
    """A whole run."""

    about: dict[str, Any]
    """When, where, of what."""
    rows: dict[str, Result] = field(default_factory=dict)
    observations: dict[str, Observation] = field(default_factory=dict)

    def as_json(self, *, with_samples: bool = True) -> str:
        """For a file."""
        return json.dumps({
            "about": self.about,
            "rows": {name: row.as_json(with_samples=with_samples) for name, row in self.rows.items()},
            "observations": {name: asdict(found) for name, found in self.observations.items()}},
            indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def read(cls, path: Path) -> "Report":
        """What was accepted; empty if nothing was."""
        if not path.exists():
            return cls({})
        data = json.loads(path.read_text(encoding="utf-8"))
        return cls(data["about"], {name: from_json(row) for name, row in data["rows"].items()},
                   {name: Observation(**found) for name, found in data["observations"].items()})

    def updated(self, newer: "Report") -> "Report":
        """This one, with the rows of a newer run in their places; the others keep saying where they come from."""
        about = {**newer.about, "rivals": {**self.about.get("rivals", {}), **newer.about["rivals"]}}
        older = {name: commit for name, commit in self.commits.items() if name not in newer.names}
        about["older"] = {name: commit for name, commit in older.items() if commit != newer.about["commit"]}
        return Report(about, {**self.rows, **newer.rows}, {**self.observations, **newer.observations})

    @property
    def names(self) -> set[str]:
        """Of all that was measured."""
        return self.rows.keys() | self.observations.keys()

    @property
    def commits(self) -> dict[str, str]:
        """The commit that each figure was measured at."""
        older: dict[str, str] = self.about.get("older", {})
        return {name: older.get(name, self.about.get("commit", "")) for name in sorted(self.names)}


def _rate(unit: str, value: float) -> str:
    divisor, text, _, _ = UNITS[unit]
    shown = value / divisor
    return f"{shown:,.0f}{text}" if shown >= 10 else f"{shown:.2f}{text}"


def cpu_text(unit: str, value: float) -> str:
    """Processor time of a unit."""
    _, _, factor, text = UNITS[unit]
    return f"{value * factor:.{2 if unit == 'bytes' else 0}f} {text}"


def _reference(row: Result) -> str:
    """What the service is compared with; it has a name unless it is the limit."""
    text = _rate(row.unit, row.rates[row.reference].median)
    return text if row.reference == "limit" else f"{row.reference}: {text}"


def _ratio(value: float) -> str:
    return f"{value:.2f}"


def _mark(row: Result) -> str:
    if row.at_least is None:
        return "–"
    return f"{row.at_least:.2f}" + (" (missed)" if is_below(row.ratio.median, row.at_least) else "")


def render(report: Report) -> str:
    """The tables of a run, or of what was accepted."""
    parts = (_render_rows(report), _render_observations(report), _render_rivals(report), [_render_about(report.about)])
    return "\n\n".join("\n".join(part) for part in parts if part)


def _render_rows(report: Report) -> list[str]:
    if not report.rows:
        return []
    lines = ["| what | service | limit | ratio (lowest–highest) | at least | processor time, service / limit |",
             "|---|---|---|---|---|---|"]
    for row in report.rows.values():
        lines.append(
            f"| {row.title} | {_rate(row.unit, row.rates[row.subject].median)} | {_reference(row)} "
            f"| **{_ratio(row.ratio.median)}** ({_ratio(row.ratio.lowest)}–{_ratio(row.ratio.highest)}) "
            f"| {_mark(row)} | {cpu_text(row.unit, row.cpu[row.subject])} / "
            f"{cpu_text(row.unit, row.cpu[row.reference])} |")
    return lines


def _render_observations(report: Report) -> list[str]:
    if not report.observations:
        return []
    lines = ["| what else | measured | at most |", "|---|---|---|"]
    for found in report.observations.values():
        mark = "–" if found.at_most is None else f"{found.at_most:g}"
        if found.at_most is not None and found.value > found.at_most:
            mark += " (missed)"
        lines.append(f"| {found.title} | {found.value:z.2f} {found.unit} | {mark} |")
    return lines


def _render_rivals(report: Report) -> list[str]:
    rows = [row for row in report.rows.values() if row.rivals]
    known: Mapping[str, Mapping[str, Any]] = report.about.get("rivals", {})
    if not rows or not known:
        return []
    lines = [f"| the service is so many times as fast as | {' | '.join(row.title for row in rows)} |",
             "|---|" + "---|" * len(rows)]
    for name, about in known.items():
        if "missing" in about:
            lines.append(f"| {name}: cannot be had ({about['missing']}) |" + " |" * len(rows))
            continue
        cells = [_against(row, name) for row in rows]
        lines.append(f"| {name} {about['version']}, {DURABLE[about['is_durable']]} | {' | '.join(cells)} |")
    return lines


def _against(row: Result, rival: str) -> str:
    if rival in row.failures:
        return "wrong answers"
    if rival not in row.rates:
        return "–"
    return (f"{_ratio(row.rates[row.subject].median / row.rates[rival].median)} "
            f"({_rate(row.unit, row.rates[rival].median)})")


def _render_about(about: Mapping[str, Any]) -> str:
    machine = about["machine"]
    return (f"{about['date']}, {about['mode']} run, commit {about['commit']}: {machine['cores']} cores of "
            f"{machine['processor']}, {machine['memory_gib']} GiB, Linux {machine['kernel']}, "
            f"{machine['file_system'].partition(' ')[0]}, {about['nginx']}. Others used "
            f"{about['busy_share']:.0%} of the processors before the start, "
            f"{about['busiest_row']:.0%} in the busiest row." + _render_older(about.get("older", {})))


def _render_older(older: Mapping[str, str]) -> str:
    """What was accepted before and not measured again."""
    return f" Of earlier runs: {', '.join(f'{name} ({commit})' for name, commit in older.items())}." if older else ""


def compare(report: Report, accepted: Report) -> tuple[list[str], bool]:
    """The change of each row against what was accepted, and whether one has fallen below its mark."""
    lines, has_failed = [], False
    for name, row in report.rows.items():
        if name not in accepted.rows:
            lines.append(f"{name}: {_ratio(row.ratio.median)}, nothing was accepted")
            continue
        before = accepted.rows[name].ratio.median
        text = f"{name}: {_ratio(row.ratio.median)}, accepted {_ratio(before)} ({row.ratio.median / before - 1:+.0%})"
        if has_fallen(row.ratio.median, before):
            text += f": FELL by more than {TOLERANCE:.0%}"
            if is_below(row.ratio.median, row.at_least):
                text += f" and is below {row.at_least:.2f}"
                has_failed = True
        lines.append(text)
    return lines, has_failed


def write_between(path: Path, text: str) -> None:
    """Replace what stands between the two comments of a file."""
    before = path.read_text(encoding="utf-8")
    after, count = re.subn(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: f"{BEGIN}\n{text}\n{END}", before,
                           flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"{path.name} has {count} places for the table")
    path.write_text(after, encoding="utf-8")
