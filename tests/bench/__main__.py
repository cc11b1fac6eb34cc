"""The benchmark: the service beside plain nginx on the same disk and beside rivals, in turn, as ratios.

    make bench [FULL=1] [ROWS=hot,put] [ACCEPT=1] [AGAINST=another checkout]
    python -m tests.bench [--full] [--rows hot,put] [--accept] [--against DIR]

Ends with 1 if a ratio has fallen below its mark, and with 2 if nothing could be measured or an answer was wrong.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from service.run import programs
from tests.bench import processes, report, rivals, rows_large, rows_lists, rows_memory, rows_small
from tests.bench.contenders import Service
from tests.bench.figures import Sample, cpu_parts, ratios
from tests.bench.limit import Limit
from tests.bench.report import Report, Result
from tests.bench.rows import FAILURES, FULL, QUICK, Bench, Look, Row, Runner

PROJECT = Path(__file__).parents[2]
BUILD = PROJECT / "build"
ACCEPTED = Path(__file__).with_name("accepted.json")
README = PROJECT / "README.md"
ROWS: dict[str, Look] = {row.name: row for row in (
    *rows_small.ROWS, *rows_large.ROWS, *rows_lists.ROWS, *rows_memory.LOOKS)}
ROOM_BYTES = 30 * 2**30
ONLY_FULL = {"memory-direct"}


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _git(*arguments: str, folder: Path = PROJECT) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True)
    return done.stdout.strip()


def _commit(folder: Path) -> str:
    """The commit of a checkout; a plus says that something was changed."""
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", "service", "nginx", "sql", folder=folder)
    return (_git("rev-parse", "--short", "HEAD", folder=folder) or "unknown") + ("+" if changed else "")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="more and longer rounds")
    parser.add_argument("--rows", default="", metavar="NAME,NAME", help=f"only these of {', '.join(ROWS)}")
    parser.add_argument("--accept", action="store_true", help="make these the accepted figures, in README.md too")
    parser.add_argument("--against", type=Path, metavar="DIR", help="measure the service of another checkout too")
    parser.add_argument("--no-rivals", action="store_true", help="the service and the limit alone")
    parser.add_argument("--scratch", type=Path, default=BUILD, metavar="DIR", help="where the data roots are made")
    parser.add_argument("--rounds", type=int, help="so many rounds")
    found = parser.parse_args()
    if unknown := {name for name in found.rows.split(",") if name} - ROWS.keys():
        parser.error(f"there is no row {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    return found


@contextmanager
def _started(options: argparse.Namespace, about: dict[str, Any]) -> Iterator[Bench]:
    """Everybody up, on one disk; all of it is gone afterwards."""
    options.scratch.mkdir(parents=True, exist_ok=True)
    effort = FULL if options.full else QUICK
    if options.rounds:
        effort = type(effort)(options.rounds, min(options.rounds, effort.rival_rounds), effort.seconds)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", dir=options.scratch.absolute())))
        service, limit = Service("service", folder / "service"), Limit("limit", folder / "limit")
        other = None
        if options.against:
            other = Service("other", folder / "other", checkout=options.against.absolute())
        for contender in (service, limit, *([other] if other else [])):
            stack.callback(contender.stop)
            contender.start()
        found, missing = ([], {}) if options.no_rivals else rivals.find(folder, BUILD.absolute() / "rivals")
        for rival in found:
            stack.callback(rival.stop)
        started = list(rivals.start(found, missing))
        about["rivals"] = {name: {"missing": why} for name, why in missing.items()} | {
            rival.name: {"version": rival.version, "is_durable": _is_durable(rival)} for rival in started}
        bench = Bench(folder, service, limit, list(started), other, effort)
        stack.enter_context(bench.closing)
        yield bench


def _is_durable(rival: rivals.Rival) -> bool | None:
    """Whether it forces uploads to the disk; None if it could not be watched."""
    try:
        return rivals.forces_to_disk(rival)
    except FAILURES as error:
        _say(f"{rival.name}: {error}")
        return None


def _about(options: argparse.Namespace) -> dict[str, Any]:
    """When, where and of what."""
    options.scratch.mkdir(parents=True, exist_ok=True)
    nginx = programs.find_or_install("nginx")
    about: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"), "mode": "full" if options.full else "quick",
        "commit": _commit(PROJECT), "machine": processes.describe(options.scratch).as_json(),
        "nginx": f"nginx {nginx.version_text}" if nginx else "no nginx", "busy_share": processes.busy_share(),
        "load": os.getloadavg()[0]}
    if options.against:
        about["other"] = _commit(options.against)
    return about


def _check_quiet(options: argparse.Namespace, about: dict[str, Any]) -> None:
    """Warn of a machine that is not fit for figures; RuntimeError if they are to be accepted."""
    problems = []
    if about["busy_share"] > processes.QUIET_SHARE:
        problems.append(f"the machine is busy: others use {about['busy_share']:.0%} of its processors")
    if shutil.disk_usage(options.scratch).free < ROOM_BYTES:
        problems.append(f"less than {ROOM_BYTES >> 30} GiB are free on the disk")
    if about["machine"]["file_system"].startswith(("tmpfs", "ramfs")):
        problems.append("the data would be in memory: choose a disk with --scratch")
    for problem in problems:
        _say(f"warning: {problem}")
    if problems and options.accept:
        raise RuntimeError("such figures are not accepted")


def _measure(bench: Bench, row: Row) -> Result:
    """All rounds of a row: everybody in turn, in another order each time, after one run that does not count."""
    bench.failures.clear()
    for service in bench.services:
        service.login()
    runners = row.runners(bench)
    samples: dict[str, list[Sample]] = {runner.name: [] for runner in runners}
    for number in range(-1, min(bench.effort.rounds, row.max_rounds)):
        turn = [runner for runner in runners if not runner.is_rival or number < bench.effort.rival_rounds]
        bench.random.shuffle(turn)
        for service in bench.services:
            service.freshen()
        for runner in turn:
            found = _measure_one(bench, runner)
            if number >= 0:
                samples[runner.name] += found
    counted = {name: found for name, found in samples.items() if name not in bench.failures}
    return Result.of(row, counted, [runner.name for runner in runners if runner.is_rival], bench.failures)


def _measure_one(bench: Bench, runner: Runner) -> list[Sample]:
    """One run; none if it is that of a rival that has failed, now or before."""
    if runner.name in bench.failures:
        return []
    try:
        return [runner.measure()]
    except FAILURES as error:
        if not runner.is_rival:
            raise
        bench.failures[runner.name] = str(error)
        _say(f"{runner.name}: {error}")
        return []


def _run(options: argparse.Namespace) -> Report:
    about = _about(options)
    _check_quiet(options, about)
    found = Report(about)
    chosen = [name for name in ROWS if (name in options.rows.split(",") if options.rows
                                        else options.full or name not in ONLY_FULL)]
    with _started(options, about) as bench:
        for name in chosen:
            start, row = time.monotonic(), ROWS[name]
            if isinstance(row, Row):
                found.rows[name] = _measure(bench, row)
                _say(_summary(found.rows[name]))
            for seen in row.observe(bench):
                found.observations[seen.name] = seen
                _say(f"{seen.name}: {seen.value:z.2f} {seen.unit}")
            _say(f"    {name} took {time.monotonic() - start:.0f} s")
    about["busiest_row"] = max((result.foreign_share for result in found.rows.values()), default=0.0)
    return found


def _summary(result: Result) -> str:
    """A row in a line."""
    text = f"{result.name}: {result.ratio.median:.2f} ({result.ratio.lowest:.2f}-{result.ratio.highest:.2f})"
    if "other" in result.samples:
        change = ratios(result.samples[result.subject], result.samples["other"])
        text += f"; against the other checkout {change.median:.2f} ({change.lowest:.2f}-{change.highest:.2f})"
    parts = ", ".join(f"{name} {report.cpu_text(result.unit, value)}"
                      for name, value in cpu_parts(result.samples[result.subject]).items())
    cpu = ", ".join(f"{name} {report.cpu_text(result.unit, value)}" for name, value in result.cpu.items())
    return f"{text}; processor time: {cpu} ({result.subject}: {parts}); others used {result.foreign_share:.0%}"


def main() -> int:
    """Measure, print, compare, accept; the exit code."""
    options = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that everybody is ended
    try:
        found = _run(options)
    except FAILURES as error:
        _say(f"error: {error}")
        return 2
    BUILD.mkdir(exist_ok=True)
    (BUILD / "bench.json").write_text(found.as_json(), encoding="utf-8")
    print(report.render(found))
    accepted = Report.read(ACCEPTED)
    lines, has_failed = report.compare(found, accepted)
    print("\n" + "\n".join(lines))
    if options.accept:
        newer = accepted.updated(found)
        ACCEPTED.write_text(newer.as_json(with_samples=False), encoding="utf-8")
        report.write_between(README, report.render(newer))
        _say("accepted, and written into README.md")
        return 0
    return 1 if has_failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
