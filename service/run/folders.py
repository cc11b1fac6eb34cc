"""What lies under the data root, and the checks that come before anything else is started."""

import errno
import fcntl
import os
import re
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from service.run import memory
from service.run.processes import PROC, StartError
from service.storage.durable import make_folder

MODE = 0o700
MEMORY = "memory"
LOCK_TRIES, LOCK_PAUSE_SECONDS = 11, 0.1
GIVE_WAY_TRIES = 400  # an embedded PostgreSQL may take 30 seconds to stop
GIVES_WAY = "gives way"
# the longest name in the folder of sockets, below the 107 bytes that a socket's path may have (unix(7))
MAX_SOCKET_FOLDER_BYTES = 107 - len("/.s.PGSQL.5432")
PLAIN_PATH = re.compile(r"[A-Za-z0-9/._ +@=-]+")


class InUse(StartError):
    """Another process works on this data root."""


@dataclass(frozen=True, slots=True)
class Folders:
    """The folders of one data root; all but `sockets` and `memory` are always below it."""

    root: Path
    sockets: Path
    memory: Path

    @property
    def blobs(self) -> Path:
        """The files, for ever."""
        return self.root / "blobs"

    @property
    def staging(self) -> Path:
        """Files that a worker has claimed and not yet placed."""
        return self.root / "staging"

    @property
    def spool(self) -> Path:
        """Bodies that nginx takes in, in one folder for each start of nginx."""
        return self.root / "spool"

    @property
    def postgres(self) -> Path:
        """The embedded PostgreSQL."""
        return self.root / "postgres"

    @property
    def log(self) -> Path:
        """What the workers, PostgreSQL and nginx write."""
        return self.root / "log"

    @property
    def run(self) -> Path:
        """What is of use only while the service runs."""
        return self.root / "run"

    @property
    def memory_seen_by_nginx(self) -> str:
        """The folder `memory`, as seen from nginx's prefix if it is below the data root, whose name may be odd."""
        return f"../../run/{MEMORY}" if self.memory.is_relative_to(self.root) else str(self.memory)

    def worker_socket(self, number: int) -> Path:
        """Where a worker listens."""
        return self.sockets / f"worker-{number}.sock"


def _open_folders(root: Path, held: ExitStack, *, containers: bool) -> Folders:
    """Make what is missing; StartError if the data root cannot be used."""
    try:
        make_folder(root, MODE)
        root = root.resolve()  # nginx refuses symlinks on the way to a blob
        folders = Folders(root, root / "run", root / "run" / MEMORY)
        for folder in (folders.blobs, folders.staging, folders.spool, folders.log, folders.run):
            folder.mkdir(mode=MODE, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        raise _unusable(root, error) from None
    _check(folders)
    return Folders(root, _choose_sockets(folders), _choose_memory(folders, held, containers=containers))


def _check(folders: Folders) -> None:
    if folders.root.stat().st_mode & 0o022:
        raise StartError(f"the data root {folders.root} can be written to by other users; "
                         f"run: chmod go-w '{folders.root}'")
    devices = {folder.stat().st_dev for folder in (folders.blobs, folders.staging, folders.spool)}
    if len(devices) > 1:
        raise StartError(f"blobs, staging and spool in {folders.root} have to be on one file system, "
                         "since files are renamed from one to the other")


def _choose_sockets(folders: Folders) -> Path:
    """The run folder, or one under the temporary folder if a socket's path would be too long or odd there.

    The link run/sockets leads to the latter, so that the next start can take it away if this one is killed.
    """
    link = folders.run / "sockets"
    if link.is_symlink():
        _remove_old(link.readlink())
        link.unlink()
    if len(os.fsencode(folders.run)) <= MAX_SOCKET_FOLDER_BYTES and PLAIN_PATH.fullmatch(str(folders.run)):
        return folders.run
    sockets = Path(tempfile.mkdtemp(prefix="file-storage-"))
    link.symlink_to(sockets)
    return sockets


def _choose_memory(folders: Folders, held: ExitStack, *, containers: bool) -> Path:
    """A new folder in the machine's memory, to which the link run/memory leads; or, failing that, a folder there.

    What it holds is written for each change, which must not wait for a disk that others keep busy.  It is there until
    `held` is closed.
    """
    link = folders.run / MEMORY
    if link.is_symlink():
        _forget_memory(link)
    if not containers and not link.exists():
        memory.remove_abandoned()
        try:
            path, file = memory.make(folders.root)
        except OSError:
            pass
        else:
            held.callback(os.close, file)
            link.symlink_to(path)
            return path
    link.mkdir(mode=MODE, exist_ok=True)
    return link


def _forget_memory(link: Path) -> None:
    """Remove the link and the folder in memory that it leads to."""
    memory.remove(link.readlink())
    link.unlink()


def _remove_old(sockets: Path) -> None:
    """Remove a folder of sockets; anything else that bears its name stays."""
    try:
        for entry in sockets.iterdir():
            if entry.is_socket() or entry.name.endswith(".lock"):
                entry.unlink()
        sockets.rmdir()
    except OSError:
        pass


def find_sockets(root: Path) -> Path:
    """Where the sockets of the service are that runs on this data root."""
    link = root / "run" / "sockets"
    return link.readlink() if link.is_symlink() else root / "run"


def empty_staging(folders: Folders) -> None:
    """Remove the bodies that killed workers had on their way; none was ever answered for, and nobody works here yet."""
    for body in folders.staging.iterdir():
        if body.is_file() and not body.is_symlink():
            body.unlink()


@contextmanager
def locked(root: Path, *, containers: bool = False, gives_way: bool = False,
           takes_over: bool = False) -> Iterator[Folders]:
    """The folders, for this process alone while the context lasts; InUse or StartError if that cannot be.

    `containers`: nginx runs in another one, where nothing is shared but the data root.  Who `takes_over` ends a process
    that `gives_way`, which gets a KeyboardInterrupt: a service starts although somebody is looking through its data.
    """
    with ExitStack() as held:
        if gives_way:  # SIGINT is ignored by what a script has put into the background
            held.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, signal.default_int_handler))
        held.callback(os.close, _lock(root, gives_way=gives_way, takes_over=takes_over))
        folders = _open_folders(root, held, containers=containers)
        yield folders
        if folders.sockets != folders.run:
            _remove_old(folders.sockets)
            (folders.run / "sockets").unlink(missing_ok=True)
        if (folders.run / MEMORY).is_symlink():
            _forget_memory(folders.run / MEMORY)


def _lock(root: Path, *, gives_way: bool, takes_over: bool) -> int:
    """An open file that holds the lock; the kernel gives it up when the process ends, however it ends."""
    try:
        make_folder(root, MODE)
        file = os.open(root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unusable(root, error) from None
    if not (_is_taken_soon(file, LOCK_TRIES) or takes_over and _is_handed_over(file)):
        holder, _ = _holder(file)
        os.close(file)
        raise InUse(f"the data root {root} is in use by another service (process {holder or 'unknown'}); "
                    "choose another one with DATA_ROOT=")
    os.ftruncate(file, 0)
    os.pwrite(file, f"{os.getpid()} {GIVES_WAY if gives_way else ''}".encode(), 0)
    return file


def _holder(file: int) -> tuple[str, bool]:
    """Whose the lock is, and whether he gives way."""
    number, _, way = os.pread(file, 40, 0).decode("ascii", "replace").partition(" ")
    return number, way == GIVES_WAY


def _is_handed_over(file: int) -> bool:
    """Whether the lock is ours after its holder was ended, who has said that he may be."""
    holder, gives_way = _holder(file)
    if not (gives_way and _has_open(holder, file)):
        return False
    with suppress(ProcessLookupError):
        os.kill(int(holder), signal.SIGTERM)
    return _is_taken_soon(file, GIVE_WAY_TRIES)


def _has_open(process: str, file: int) -> bool:
    """Whether it is a process that has opened this file: the number may be of another machine or of another time."""
    with suppress(OSError):
        return any(os.path.samestat(os.stat(opened), os.fstat(file)) for opened in (PROC / process / "fd").iterdir())
    return False


def _is_taken_soon(file: int, tries: int) -> bool:
    """Whether the lock is ours, at once or a moment later.

    A service that was killed in the very moment in which it made a process leaves one that holds the lock until it
    has begun its own program.
    """
    for tries_left in reversed(range(tries)):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if tries_left:
                time.sleep(LOCK_PAUSE_SECONDS)
    return False


def _unusable(root: Path, error: OSError) -> StartError:
    return StartError(f"the data root {root} cannot be used: {error.strerror or error}; "
                      "choose another one with DATA_ROOT=")


def check_port(host: str, port: int) -> None:
    """StartError if nothing can listen there."""
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise StartError(f"the address {host} is not known here: {error.strerror}") from None
    for family, kind, protocol, _, address in addresses:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
                probe.listen(1)
            except OSError as error:
                raise StartError(_explain_port(host, port, error)) from None


def _explain_port(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is taken by another program; choose another one with PORT="
    if error.errno == errno.EACCES:
        return f"port {port} needs more rights than this user has; choose one above 1023 with PORT="
    return f"cannot listen on {host} port {port}: {error.strerror}"
