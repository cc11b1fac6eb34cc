"""The benchmark itself: what it computes, what it says of a change, and that a wrong answer is never counted."""

import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.bench import __main__ as bench, processes, report, rows_lists, transfers, wrk
from tests.bench.contenders import Contender, sha256
from tests.bench.figures import (
    Sample, Spread, Timed, WrongAnswer, cpu_parts, cpu_per_unit, has_fallen, is_below, rates, ratios)
from tests.bench.report import Report, Result
from tests.bench.rows import Observation, Runner
from tests.bench.transfers import Source

README = Path(__file__).parents[2] / "README.md"
ABOUT = {"date": "2020-09-11", "mode": "quick", "commit": "abc", "nginx": "nginx 1.2.3", "busy_share": 0.01,
         "busiest_row": 0.02,
         "machine": {"processor": "one", "cores": 2, "memory_gib": 4, "kernel": "5", "file_system": "ext4 (rw)"},
         "rivals": {"rival": {"version": "1", "is_durable": False}, "gone": {"missing": "no such package"}}}


def sample(rate: float, *, seconds: float = 2.0, cpu_seconds: float = 1.0) -> Sample:
    """A run at this rate."""
    return Sample(rate * seconds, seconds, cpu_seconds, 0.0)


def result(ratio: float, at_least: float | None = 0.5) -> Result:
    """A row with this ratio in every round."""
    found = {"service": [sample(100 * ratio)] * 3, "limit": [sample(100)] * 3, "rival": [sample(50)]}
    shown = Spread(ratio, ratio, ratio)
    return Result("row", "a row", "requests", at_least, "service", "limit", shown,
                  {name: rates(samples) for name, samples in found.items()},
                  {name: cpu_per_unit(samples) for name, samples in found.items()}, 0.0, ["rival"])


# --- what it computes ---

def test_ratio_is_taken_within_a_round() -> None:
    """A machine that is half as fast in one round changes nothing; ratios of medians would."""
    service, limit = [sample(40), sample(20), sample(45)], [sample(100), sample(50), sample(100)]
    assert ratios(service, limit) == Spread(0.4, 0.4, 0.45)


def test_rounds_have_to_be_complete() -> None:
    with pytest.raises(ValueError):
        ratios([sample(1), sample(2)], [sample(1)])


def test_rate_and_processor_time() -> None:
    samples = [sample(10, seconds=1, cpu_seconds=1), sample(30, seconds=1, cpu_seconds=1)]
    assert rates(samples) == Spread(20, 10, 30)
    assert cpu_per_unit(samples) == 2 / 40


def test_processor_time_by_program() -> None:
    samples = [Sample(10, 1, 1, 0, {"a": 0.25, "b": 0.75}), Sample(10, 1, 1, 0, {"b": 0.5, "c": 0.0})]
    assert list(cpu_parts(samples).items()) == [("b", 1.25 / 20), ("a", 0.25 / 20)]


@pytest.mark.parametrize(("now", "accepted", "has"), [(0.90, 1.0, False), (0.89, 1.0, True), (0.1, None, False)])
def test_fall_is_more_than_a_tenth(now: float, accepted: float | None, has: bool) -> None:
    assert has_fallen(now, accepted) is has


def test_mark_is_reached_when_it_is_met() -> None:
    assert not is_below(0.5, 0.5) and is_below(0.49, 0.5) and not is_below(0.1, None)


# --- what it says ---

@pytest.mark.parametrize(("now", "before", "has_failed", "text"), [
    (0.45, 0.60, True, "FELL"), (0.55, 0.70, False, "FELL"), (0.45, 0.46, False, "accepted"),
    (0.60, 0.50, False, "+20%")])
def test_fall_below_the_mark_fails(now: float, before: float, has_failed: bool, text: str) -> None:
    lines, failed = report.compare(Report(ABOUT, {"row": result(now)}), Report(ABOUT, {"row": result(before)}))
    assert failed is has_failed and text in lines[0]


def test_row_that_nobody_has_accepted_is_told() -> None:
    lines = ["row: 0.10, nothing was accepted"]
    assert report.compare(Report(ABOUT, {"row": result(0.1)}), Report({})) == (lines, False)


def test_accepted_figures_are_read_as_they_were_written(tmp_path: Path) -> None:
    written = Report(ABOUT, {"row": result(0.4)}, {"seen": Observation("seen", "memory", 2.0, "MiB", 1.0)})
    path = tmp_path / "accepted.json"
    path.write_text(written.as_json(with_samples=False), encoding="utf-8")
    text = report.render(Report.read(path))
    assert text == report.render(written)
    for part in (
            "**0.40**", "0.50 (missed)", "2.00 MiB | 1 (missed)", "rival 1, does not force", "gone: cannot be had"):
        assert part in text


def test_row_that_was_not_measured_again_says_where_it_comes_from() -> None:
    before = Report(ABOUT, {"row": result(0.4), "kept": result(0.7)})
    after = before.updated(Report({**ABOUT, "commit": "def", "rivals": {}}, {"row": result(0.6)}))
    assert after.rows["row"].ratio.median == 0.6 and after.rows["kept"].ratio.median == 0.7
    text = report.render(after)
    assert "commit def" in text and "Of earlier runs: kept (abc)." in text and "rival 1" in text
    again = after.updated(Report({**ABOUT, "commit": "ghi"}, {"row": result(0.6), "kept": result(0.8)}))
    assert "earlier" not in report.render(again)


def test_table_is_written_between_its_comments_only(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nbehind\n", encoding="utf-8")
    report.write_between(path, "new \\1")
    assert path.read_text(encoding="utf-8") == f"before\n{report.BEGIN}\nnew \\1\n{report.END}\nbehind\n"
    path.write_text("no place", encoding="utf-8")
    with pytest.raises(ValueError):
        report.write_between(path, "new")


def test_readme_shows_what_was_accepted() -> None:
    shown = README.read_text(encoding="utf-8").partition(report.BEGIN)[2].partition(report.END)[0].strip()
    accepted = Report.read(bench.ACCEPTED)
    assert shown == (report.render(accepted) if accepted.rows else "No run was accepted yet.")


# --- what it watches ---

def test_processes_below_are_found_and_their_time_is_counted() -> None:
    with subprocess.Popen(["sh", "-c", "cat; :"], stdin=subprocess.PIPE) as child:
        assert child.pid in processes.tree(os.getpid())
    before = processes.cpu_seconds(os.getpid())
    subprocess.run(["sh", "-c", "i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done"], check=True)
    assert processes.cpu_seconds(os.getpid()) > before


# --- wrong answers ---

@dataclass
class Fake(Contender):
    """A contender that is a function of this file."""

    def command(self) -> list[str]:
        """Never started."""
        raise NotImplementedError


Answer = Callable[[str, int], tuple[int, bytes]]
"""The status and the body for a target, with the number of the request."""


@contextmanager
def answering(answer: Answer, tmp_path: Path) -> Iterator[Fake]:
    """A server that answers so."""
    count = iter(range(10**9))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            """Read the body, if there is one, and answer."""
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, body = answer(self.path, next(count))
            head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n"
            self.wfile.write(head.encode() + body)
            self.close_connection = self.headers.get("Connection") == "close"

        do_PUT = do_POST = do_GET

        def log_message(self, *_: object) -> None:
            """Nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A client that has gone is no error here."""

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield Fake("fake", tmp_path, port=int(server.server_address[1]))
        finally:
            server.shutdown()
            thread.join()


def test_run_is_checked_before_it_counts() -> None:
    def refuse() -> None:
        raise WrongAnswer("not stored")

    assert Runner("fake", (os.getpid(),), lambda: Timed(10, 2)).measure().rate == 5
    with pytest.raises(WrongAnswer):
        Runner("fake", (os.getpid(),), lambda: Timed(10, 2, check=refuse)).measure()


RIGHT = b"r" * 1024
GOOD = {"requests": 1000, "microseconds": 10**6, "bytes": 1_100_000, "failed": 0, "status": 0}


@pytest.mark.parametrize(("change", "problem"), [
    ({"failed": 1}, None), ({"requests": 0, "bytes": 0}, None), ({"bytes": 900_000}, None),
    ({"bytes": 1_300_000}, None), ({}, "a wrong hash")])
def test_run_with_a_wrong_answer_is_not_counted(change: dict[str, int], problem: str | None) -> None:
    wrk.check_downloads("fake", GOOD, 1100, 32, None)
    with pytest.raises(WrongAnswer):
        wrk.check_downloads("fake", GOOD | change, 1100, 32, problem)


def _download(fake: Fake) -> object:
    return wrk.download(fake, {"/1": sha256(RIGHT)}, connections=2, seconds=1)


def _upload(fake: Fake) -> object:
    return wrk.upload(fake, "/up", "201", size=64, seconds=1)


def _upload_forced(fake: Fake) -> object:
    return wrk.upload(fake, "/up", "201", size=64, seconds=1, is_forced=True)


LOADS: dict[str, tuple[Answer, Callable[[Fake], object]]] = {
    "right": (lambda *_: (200, RIGHT), _download),
    # right at first, then too fast
    "wrong status": (lambda _, number: (404, b"n" * 1024) if number > 50 else (200, RIGHT), _download),
    "no bytes": (lambda _, number: (200, b"") if number > 50 else (200, RIGHT), _download),
    "wrong bytes": (lambda _, number: (200, b"w" * 1024) if number > 50 else (200, RIGHT), _download),
    "stored": (lambda *_: (201, b""), _upload),
    "not taken": (lambda _, number: (507 if number == 40 else 201, b""), _upload),
    "not on the disk": (lambda *_: (201, b""), _upload_forced),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What became of each load; all at once, since wrk measures for a second at least."""
    def run(answer: Answer, load: Callable[[Fake], object]) -> object:
        with answering(answer, tmp_path_factory.mktemp("fake")) as fake:
            try:
                return load(fake)
            except WrongAnswer as error:
                return error

    with ThreadPoolExecutor(len(LOADS)) as threads:
        return dict(zip(LOADS, threads.map(lambda pair: run(*pair), LOADS.values()), strict=True))


@pytest.mark.parametrize("name", LOADS)
def test_load_counts_right_answers_only(outcomes: dict[str, object], name: str) -> None:
    outcome = outcomes[name]
    if name in ("right", "stored"):
        assert isinstance(outcome, Timed) and outcome.units > 0
    else:
        assert isinstance(outcome, WrongAnswer)


@pytest.mark.parametrize("damage", ["none stored", "one lost", "wrong bytes"])
def test_stored_files_are_counted_and_read(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "files" / "up"
    folder.mkdir(parents=True)
    for number in range(0 if damage == "none stored" else 3 if damage == "one lost" else 4):
        filler = b"y" if damage == "wrong bytes" else b"x"
        (folder / f"{number:09d}").write_bytes(f"{number:09d}0000001".encode() + filler * 48)

    def answer(target: str, _: int) -> tuple[int, bytes]:
        return 200, (tmp_path / "files" / target.lstrip("/")).read_bytes()

    with answering(answer, tmp_path) as fake, pytest.raises(WrongAnswer):
        wrk.check_stored(fake, "/up", 64, 4, 4)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """A file of 2 MiB and a little."""
    return Source.make(tmp_path / "large.bin", 2 * 2**20 + 5)


def test_large_download_is_compared(tmp_path: Path, source: Source) -> None:
    right = source.path.read_bytes()
    with answering(lambda *_: (200, right), tmp_path) as fake:
        assert transfers.time_downloads(fake, "/", source, 2).units == 2 * source.size
        transfers.check_download(fake, "/", source)


@pytest.mark.parametrize("change", [
    lambda data: (404, data), lambda data: (200, data[:-1]), lambda data: (200, b"?" + data[1:]),
    lambda data: (200, data + b"?")])
def test_large_download_with_wrong_bytes_is_seen(
        tmp_path: Path, source: Source, change: Callable[[bytes], tuple[int, bytes]]) -> None:
    with answering(lambda *_: change(source.path.read_bytes()), tmp_path) as fake:
        with pytest.raises(WrongAnswer):
            transfers.check_download(fake, "/", source)


def test_large_form_has_to_come_back_with_its_hash(tmp_path: Path, source: Source) -> None:
    with answering(lambda *_: (201, json.dumps({"sha256": "0" * 64}).encode()), tmp_path) as fake:
        with pytest.raises(WrongAnswer):
            transfers.post_form(fake, "/a.bin", source)


def test_stored_large_file_has_to_have_its_hash(tmp_path: Path, source: Source) -> None:
    stored = tmp_path / "files" / "a.bin"
    stored.parent.mkdir()
    with answering(lambda *_: (201, b""), tmp_path) as fake:
        stored.write_bytes(source.path.read_bytes())
        assert transfers.put_checked(fake, "/a.bin", source).units == source.size
        stored.write_bytes(b"something else")
        with pytest.raises(WrongAnswer):
            transfers.put_checked(fake, "/a.bin", source)


def test_list_that_is_cut_off_is_seen() -> None:
    assert rows_lists.unchunk(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n") == b"abcde"
    with pytest.raises(WrongAnswer):
        rows_lists.unchunk(b"3\r\nabc\r\n")
