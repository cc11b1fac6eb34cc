"""What is asked of the kernel about processes: start one that cannot outlive us, find those of a killed supervisor."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO

LAUNCHER = Path(__file__).with_name("launch.py")
PROC = Path("/proc")
POLL_SECONDS = 0.05


class StartError(Exception):
    """A part of the service cannot be started; the message is a sentence for the person who started it."""


def launch_command(command: Sequence[str | Path], *, on_parent_death: signal.Signals = signal.SIGTERM,
                   identity: str = "same") -> list[str]:
    """The command that becomes `command` and gets a signal when this process ends, however it ends.

    Start it from the main thread: the kernel takes the end of the starting thread for that of the parent (prctl(2)).
    """
    return [sys.executable, "-I", "-S", str(LAUNCHER), str(os.getpid()), str(int(on_parent_death)), identity,
            *map(str, command)]


def own_program() -> str:
    """The name of the Python that runs this, as `find_working_in` takes it."""
    return os.path.basename(os.readlink(PROC / "self" / "exe"))


def run(command: Sequence[str | Path], *, identity: str = "same", timeout_seconds: float = 60,
        environment: Mapping[str, str] | None = None) -> str:
    """Run a short program to its end and return what it printed; raise StartError with its complaint if it fails."""
    try:
        done = subprocess.run(launch_command(command, identity=identity), stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                              timeout=timeout_seconds, env=environment)
    except subprocess.TimeoutExpired:
        raise StartError(f"{command[0]} took longer than {timeout_seconds:.0f} s") from None
    if done.returncode != 0:
        raise StartError(f"{command[0]} failed with exit code {done.returncode}: {done.stdout.strip()[-2000:]}")
    return done.stdout


def start(command: Sequence[str | Path], *, on_parent_death: signal.Signals, identity: str = "same",
          stderr: IO[bytes] | int | None = None) -> "subprocess.Popen[bytes]":
    """Start a long-running program in a process group of its own, so that a Ctrl-C in the terminal reaches only us."""
    return subprocess.Popen(launch_command(command, on_parent_death=on_parent_death, identity=identity),
                            stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr, start_new_session=True)


def wait_until(is_done: Callable[[], bool], timeout_seconds: float) -> bool:
    """Ask again and again; whether it was so before the time was up."""
    deadline = time.monotonic() + timeout_seconds
    while not is_done():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _all_pids() -> list[int]:
    return [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit()]


def _is_zombie(pid: int) -> bool:
    stat = (PROC / str(pid) / "stat").read_bytes()
    return stat.rpartition(b")")[2].split()[0] in (b"Z", b"X")


def _runs(pid: int, program: str) -> bool:
    """Whether the process runs a file of this name; False too if it is gone or not ours to look at."""
    try:
        executable = os.readlink(PROC / str(pid) / "exe").removesuffix(" (deleted)")
        return os.path.basename(executable) == program and not _is_zombie(pid)
    except OSError:
        return False


def find_working_in(folder: Path, program: str) -> list[int]:
    """The processes of `program` whose current folder is `folder`."""
    def works_there(pid: int) -> bool:
        try:
            return os.path.samefile(PROC / str(pid) / "cwd", folder)
        except OSError:
            return False
    return [pid for pid in _all_pids() if works_there(pid) and _runs(pid, program)]


def listens(pid: int, port: int) -> bool:
    """Whether the process listens on this TCP port."""
    own = set()
    try:
        for entry in (PROC / str(pid) / "fd").iterdir():
            own.add(os.readlink(entry))
    except OSError:  # the process has ended, or closes a file while we look: ask again
        return False
    for table in ("tcp", "tcp6"):
        try:
            rows = [row.split() for row in (PROC / "net" / table).read_text(encoding="ascii").splitlines()[1:]]
        except OSError:
            continue
        # the columns: proc_pid_net(5); state 0A is LISTEN
        if any(row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port and f"socket:[{row[9]}]" in own
               for row in rows):
            return True
    return False


def send(pids: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to those that are still there."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def stop_all(find: Callable[[], list[int]], steps: Sequence[tuple[signal.Signals, float]]) -> bool:
    """Send each signal in turn to whatever `find` finds, waiting that many seconds; whether nothing is left."""
    for number, seconds in steps:
        if not (pids := find()):
            return True
        send(pids, number)
        if wait_until(lambda: not find(), seconds):
            return True
    return not find()
