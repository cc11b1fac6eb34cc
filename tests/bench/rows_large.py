"""Rows with a file of 1 GiB: down one at a time and eight at once, up as plain bytes and as a form."""

import itertools
import os
from collections.abc import Callable, Iterator
from functools import partial

from tests.bench import transfers
from tests.bench.contenders import Contender
from tests.bench.figures import Timed, WrongAnswer
from tests.bench.processes import peak_bytes, reset_peak
from tests.bench.rows import Bench, Observation, Row, Run, Runner
from tests.bench.transfers import Source

Transfer = Callable[[Contender, str, Source], Timed]


class LargeDownload(Row):
    """The whole file, by so many clients at once."""

    unit = "bytes"
    at_least = 0.95

    def __init__(self, name: str, title: str, at_once: int, has_rivals: bool) -> None:
        self.name, self.title = name, title
        self._at_once = at_once
        self._has_rivals = has_rivals

    def runners(self, bench: Bench) -> list[Runner]:
        """Everybody has the file; that it comes back is checked before."""
        chosen = bench.contenders if self._has_rivals else [bench.service, bench.limit, *bench.services[1:]]
        return [runner for contender in chosen
                for runner in bench.runner(contender, lambda: self._run(bench, contender))]

    def _run(self, bench: Bench, contender: Contender) -> Run:
        return partial(transfers.time_downloads, contender, bench.place_large(contender), bench.source, self._at_once)


class LargeUpload(Row):
    """The file under a new name; the limit is nginx's DAV, then `sha256sum`, then fsync of file and folder."""

    unit = "bytes"
    max_rounds = 5  # what was deleted leaves the disk an hour later

    def __init__(self, name: str, title: str, at_least: float, transfer: Transfer, has_rivals: bool) -> None:
        self.name, self.title, self.at_least = name, title, at_least
        self._transfer = transfer
        self._has_rivals = has_rivals
        self._before: dict[int, int] = {}

    def runners(self, bench: Bench) -> list[Runner]:
        """Everybody stores it in a folder of this row."""
        self._before = {}
        for pid in bench.service.workers:
            reset_peak(pid)
            self._before[pid] = peak_bytes(pid)
        chosen: list[tuple[Contender, Transfer]] = [
            (bench.service, self._transfer), (bench.limit, transfers.put_checked),
            *((other, self._transfer) for other in bench.services[1:])]
        if self._has_rivals:
            chosen += [(rival, transfers.put) for rival in bench.rivals]
        return [runner for contender, transfer in chosen
                for runner in bench.runner(contender, lambda: self._run(bench, contender, transfer))]

    def _run(self, bench: Bench, contender: Contender, transfer: Transfer) -> Run:
        contender.make_folder(f"/{self.name}")
        return partial(self._upload, bench, contender, transfer,
                       map(f"/{self.name}/{{}}.bin".format, itertools.count()))

    def observe(self, bench: Bench) -> list[Observation]:
        """By how much a worker has grown since before the first of these uploads; what it needs only once is in it."""
        growth = max(peak_bytes(pid) - before for pid, before in self._before.items()) / 2**20
        return [Observation(f"{self.name}-memory", f"{self.title}: growth of a worker's peak memory", growth, "MiB")]

    @staticmethod
    def _upload(bench: Bench, contender: Contender, transfer: Transfer, paths: Iterator[str]) -> Timed:
        path = next(paths)
        os.sync()  # what others have left unwritten is not this one's to wait for
        result = transfer(contender, path, bench.source)
        if contender in bench.rivals and contender.digest(path) != bench.source.sha256:
            raise WrongAnswer(f"{contender.name}: {path} is not what was sent")
        contender.remove(path)
        return result


ROWS: tuple[Row, ...] = (
    LargeDownload("large", "download of 1 GiB", 1, True),
    LargeDownload("large8", "eight downloads of 1 GiB at once", 8, False),
    LargeUpload("put", "PUT of 1 GiB, hashed and durable", 0.90, transfers.put, True),
    LargeUpload("post", "multipart POST of 1 GiB, hashed and durable", 0.75, transfers.post_form, False),
)
