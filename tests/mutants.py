"""`make mutants`: a table of the mistakes that somebody might make, and of the tests that catch them.

A test with `@pytest.mark.mutant("M5", "removal without a fence")` puts that mistake into the service and passes only if
a check that the service itself passes fails.  So a test that fails, is skipped or cannot run lets its mutant survive.
"""

import re
from collections import defaultdict
from pathlib import Path

import pytest

# The mistakes that have to be caught; `make mutants` fails for each that no test names.
REQUIRED = {
    "M1": "no fsync of the bytes", "M2": "no fsync of the folder", "M3": "the row before the bytes",
    "M4": "bytes removed on an error of COMMIT", "M5": "removal without a fence", "M6": "strays judged by age alone",
    "M7": "the quota read, then written", "M8": "a failed fsync tried again", "M9": "a body claimed after an await",
    "M10": "entity tags of nginx's own making", "M11": "the answer before the commit",
    "M13": "a cache filled without comparing generations", "M14": "COMMIT that does not wait for the disk",
}
NO_CODE = {"M12": "resumable uploads without a lock: there are none"}
KEY = "mutant"


class Results:
    """What became of each mutant, gathered from the reports, which also come from other processes (pytest-xdist)."""

    def __init__(self) -> None:
        self.caught: dict[tuple[str, str, str], bool] = {}

    @pytest.hookimpl
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            item.user_properties += [(KEY, list(marker.args)) for marker in item.iter_markers("mutant")]

    @pytest.hookimpl
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for key, value in report.user_properties:
            if key == KEY:
                assert isinstance(value, list)
                row = (str(value[0]), str(value[1]), report.nodeid)
                # each test has three reports: set-up, call, tear-down; all have to pass
                self.caught[row] = self.caught.get(row, True) and report.outcome == "passed"

    @property
    def survivors(self) -> list[str]:
        """The numbers that some test did not catch, or that no test names."""
        named = {number for number, _, _ in self.caught}
        let_go = {number for (number, _, _), caught in self.caught.items() if not caught}
        return sorted(let_go | REQUIRED.keys() - named, key=_order)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.survivors and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in self.table():
            terminalreporter.write_line(line)

    def table(self) -> list[str]:
        """Markdown: one line for each mistake and each function that catches it."""
        lines = ["", "| mutant | mistake | caught by | caught |", "|---|---|---|---|"]
        rows: dict[tuple[str, str, str], list[bool]] = defaultdict(list)
        for (number, mistake, test), caught in self.caught.items():
            path, _, name = test.partition("::")
            rows[number, mistake, f"{Path(path).relative_to('tests')}: {name.partition('[')[0]}"].append(caught)
        named = {number for number, _, _ in rows}
        for number in REQUIRED.keys() - named:
            rows[number, REQUIRED[number], "no test"] = [False]
        for number, mistake, test in sorted(rows, key=lambda row: (_order(row[0]), row)):
            results = rows[number, mistake, test]
            times = f" ({sum(results)} of {len(results)})" if len(results) > 1 else ""
            lines.append(f"| {number} | {mistake} | {test} | {'yes' if all(results) else '**NO**'}{times} |")
        lines += [f"| {number} | {why} | - | - |" for number, why in NO_CODE.items() if number not in named]
        numbers = named | REQUIRED.keys()
        lines.append(f"\n{len(numbers) - len(self.survivors)} of {len(numbers)} mutants caught")
        return lines


def _order(number: str) -> tuple[str, int]:
    """M2 before M10."""
    match = re.fullmatch(r"([A-Z]+)([0-9]+)", number)
    return (match[1], int(match[2])) if match else (number, 0)


def pytest_configure(config: pytest.Config) -> None:
    """`-p tests.mutants` turns this on."""
    config.pluginmanager.register(Results(), "mutant results")
