"""Rows with small files: downloads by token and by signed address, durable uploads."""

import itertools
from collections.abc import Iterator
from functools import partial

from tests.bench import wrk
from tests.bench.contenders import Contender, Service, sha256
from tests.bench.figures import Timed, WrongAnswer
from tests.bench.rows import Bench, Row, Run, Runner

CONNECTIONS = 32
DOWNLOAD_BYTES = 1024
UPLOAD_BYTES = 4096
OVERWRITTEN_NAMES = 16
"""For each connection."""


def _content(number: int) -> bytes:
    return f"{number:08d}".encode() * (DOWNLOAD_BYTES // 8)


def _targets(contender: Contender, count: int) -> dict[str, str]:
    """Store so many files; how each is asked for, and its digest."""
    found = {}
    for number in range(count):
        path, data = f"/hot-{count}/{number:04d}.bin", _content(number)
        contender.store(path, data)
        if contender.fetch(path) != data:
            raise WrongAnswer(f"{contender.name}: {path} is not what was stored")
        found[contender.download_target(path)] = sha256(data)
    return found


def _download(bench: Bench, contender: Contender, targets: dict[str, str]) -> Run:
    return partial(wrk.download, contender, targets, connections=CONNECTIONS, seconds=bench.effort.seconds)


class HotDownload(Row):
    """Small files, asked for with a token, with a password or, at the limit, with nothing."""

    unit = "requests"

    def __init__(self, name: str, title: str, count: int, at_least: float, has_rivals: bool) -> None:
        self.name, self.title, self.at_least = name, title, at_least
        self._count = count
        self._has_rivals = has_rivals

    def runners(self, bench: Bench) -> list[Runner]:
        """Everybody has the same files."""
        chosen = bench.contenders if self._has_rivals else [bench.service, bench.limit, *bench.services[1:]]
        return [runner for contender in chosen for runner in bench.runner(
            contender, lambda: _download(bench, contender, _targets(contender, self._count)))]


class SignedDownload(Row):
    """A signed address, which nginx checks by itself."""

    name = "signed"
    title = f"download of 1 KiB by a signed address, {CONNECTIONS} connections"
    unit = "requests"
    at_least = 0.90

    def runners(self, bench: Bench) -> list[Runner]:
        """The same file by its plain name at the limit."""
        found = [self._signed(bench, service) for service in bench.services]
        limit = Runner(bench.limit.name, (bench.limit.pid,), _download(bench, bench.limit, _targets(bench.limit, 1)))
        return [found[0], limit, *found[1:]]

    @staticmethod
    def _signed(bench: Bench, service: Service) -> Runner:
        data = _content(7)
        service.store("/signed.bin", data)
        return Runner(service.name, (service.pid,),
                      _download(bench, service, {service.sign("/signed.bin"): sha256(data)}))


class Upload(Row):
    """Small files, each answered for when it is on the disk; by rivals, when they say so."""

    unit = "requests"
    at_least: float | None

    def __init__(self, name: str, title: str, at_least: float | None, names: int, has_rivals: bool) -> None:
        self.name, self.title, self.at_least = name, title, at_least
        self._names = names
        self._has_rivals = has_rivals

    def runners(self, bench: Bench) -> list[Runner]:
        """Everybody, with a folder for each run of new names, or one folder that is overwritten."""
        chosen = bench.contenders if self._has_rivals else [bench.service, bench.limit, *bench.services[1:]]
        return [runner for contender in chosen
                for runner in bench.runner(contender, lambda: self._run(bench, contender))]

    def _run(self, bench: Bench, contender: Contender) -> Run:
        folders = self._folders()
        if self._names:
            contender.make_folder(f"/{self.name}")
            for connection, number in itertools.product(range(wrk.UPLOAD_CONNECTIONS), range(self._names)):
                name = f"{connection * 1_000_000 + number:09d}"
                contender.store(f"/{self.name}/{name}", name.encode() + b"0000000" + b"x" * (UPLOAD_BYTES - 16))
        return partial(self._upload, bench, contender, folders)

    def _folders(self) -> Iterator[str]:
        """Where each run stores: for new names, a new folder."""
        return itertools.repeat(f"/{self.name}") if self._names else map(f"/{self.name}-{{}}".format, itertools.count())

    def _upload(self, bench: Bench, contender: Contender, folders: Iterator[str]) -> Timed:
        folder = next(folders)
        if not self._names:
            contender.make_folder(folder)
        timed = wrk.upload(
            contender, folder, str(contender.replaced if self._names else contender.created), size=UPLOAD_BYTES,
            seconds=bench.effort.seconds, names=self._names, is_forced=contender is bench.limit)
        files = wrk.UPLOAD_CONNECTIONS * self._names
        # each connection may have had one more on its way
        return timed._replace(check=partial(
            wrk.check_stored, contender, folder, UPLOAD_BYTES, files or int(timed.units),
            files or int(timed.units) + wrk.UPLOAD_CONNECTIONS))


ROWS: tuple[Row, ...] = (
    HotDownload("hot", f"download of a hot 1 KiB file, {CONNECTIONS} connections", 1, 0.40, True),
    HotDownload("hot200", f"download of 200 hot 1 KiB files, {CONNECTIONS} connections", 200, 0.35, False),
    SignedDownload(),
    Upload("upload", f"uploads of 4 KiB, new names, durable, {wrk.UPLOAD_CONNECTIONS} connections", 0.50, 0, True),
    Upload("overwrite", f"uploads of 4 KiB, overwriting, durable, {wrk.UPLOAD_CONNECTIONS} connections", None,
           OVERWRITTEN_NAMES, False),
)
