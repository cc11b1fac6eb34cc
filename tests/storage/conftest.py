"""A store in a folder of the test, and what nginx would have put beside it."""

from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from service.model import Staged
from service.storage.local import LocalStore

EPOCH = UUID("825a1116-d383-4b83-93cb-9e7051de5ef0")  # the same in every process that collects the tests


class Spool:
    """What nginx does: bodies in numbered files of a folder that is new at each of its starts."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.start = uuid4().hex
        self.count = 0

    def restart(self) -> None:
        """Another start: its own folder, and the numbers begin again."""
        self.start, self.count = uuid4().hex, 0

    def take(self, body: bytes) -> Path:
        """Spool a body."""
        self.count += 1
        number = f"{self.count:010}"
        file = self.root / "spool" / self.start / "body" / number[-1] / number[-3:-1] / number
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(body)
        file.chmod(0o600)
        return file


@pytest.fixture(scope="session")
def shared_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root for many tests: making and removing its 256 folders each time would take longer than they do."""
    return tmp_path_factory.mktemp("storage") / "data"


@pytest.fixture
def root(shared_root: Path) -> Path:
    """The data root, empty but for folders that may be there."""
    for path in sorted(shared_root.rglob("*"), reverse=True):
        if not path.is_dir() or path.is_symlink():
            path.unlink()
        elif "spool" in path.relative_to(shared_root).parts[:-1]:
            path.rmdir()
    return shared_root


@pytest.fixture
def fresh_root(tmp_path: Path) -> Path:
    """A data root that is not there yet."""
    return tmp_path / "data"


@pytest.fixture
def store(root: Path) -> Iterator[LocalStore]:
    """An open store."""
    opened = LocalStore(root)
    opened.open(EPOCH)
    yield opened
    opened.close()


@pytest.fixture
def spool(store: LocalStore, root: Path) -> Spool:
    """nginx's side of the store."""
    return Spool(root)


def stage(store: LocalStore, data: bytes) -> Staged:
    """A body that came through the connection."""
    writer = store.writer()
    writer.write(data)
    return writer.finish()


def found_in(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def epoch() -> UUID:
    """The id of the database that the store of the fixture belongs to."""
    return EPOCH
