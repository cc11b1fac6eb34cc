"""What the kernel knows about processes and about the machine (proc(5))."""

import os
import platform
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
QUIET_SHARE = 0.10
"""A machine is busy if others use more than this part of its processors."""


def tree(pid: int) -> list[int]:
    """A process and all below it; those that end meanwhile are left out."""
    found = [pid]
    for parent in found:
        try:
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += map(int, (task / "children").read_text(encoding="ascii").split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def cpu_by_program(*pids: int) -> dict[str, float]:
    """Processor seconds of some processes, all that are below them and all that were, by the program's name."""
    seconds: dict[str, float] = {}
    for pid in (member for top in pids for member in tree(top)):
        try:
            head, _, tail = Path(f"/proc/{pid}/stat").read_text(encoding="latin-1").rpartition(")")
        except (FileNotFoundError, ProcessLookupError):
            continue
        # utime, stime, and both of children that were waited for
        name = head.partition("(")[2]
        seconds[name] = seconds.get(name, 0.0) + sum(map(int, tail.split()[11:15])) / TICKS
    return seconds


def cpu_seconds(*pids: int) -> float:
    """Processor seconds of some processes, all that are below them and all that were."""
    return sum(cpu_by_program(*pids).values())


def machine_seconds() -> float:
    """What all processors of this machine have worked, and what the host has withheld, since it was started."""
    fields = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:]
    user, nice, system, _, _, irq, softirq, steal = map(int, fields[:8])
    return (user + nice + system + irq + softirq + steal) / TICKS


@dataclass
class Watch:
    """A stopwatch for the processor time of some processes, and of everybody else."""

    pids: tuple[int, ...]

    def __post_init__(self) -> None:
        self._others = machine_seconds() - cpu_seconds(os.getpid())
        self._cpu = cpu_by_program(*self.pids)
        self._start = time.perf_counter()

    def read(self) -> tuple[dict[str, float], float]:
        """Processor seconds by program, and the part of the machine that others have used."""
        elapsed = time.perf_counter() - self._start
        others = machine_seconds() - cpu_seconds(os.getpid()) - self._others
        cpu = {name: seconds - self._cpu.get(name, 0.0) for name, seconds in cpu_by_program(*self.pids).items()}
        return cpu, min(1.0, max(0.0, others / (elapsed * (os.cpu_count() or 1))))


def busy_share(seconds: float = 2.0) -> float:
    """What part of the machine others use, watched for so long."""
    watch = Watch(())
    time.sleep(seconds)
    return watch.read()[1]


def _kib(text: str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) if found else 0


def resident_bytes(pid: int) -> int:
    """Memory of one process; what it shares with others is divided among them."""
    return _kib(Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii"), "Pss") * 1024


def reset_peak(pid: int) -> None:
    """Let `peak_bytes` begin anew."""
    Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")


def peak_bytes(pid: int) -> int:
    """The most memory that one process has had since `reset_peak`."""
    return _kib(Path(f"/proc/{pid}/status").read_text(encoding="utf-8"), "VmHWM") * 1024


def command_of(pid: int) -> str:
    """The command line of a process; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


@dataclass(frozen=True)
class Machine:
    """Where it was measured."""

    processor: str
    cores: int
    memory_gib: int
    kernel: str
    file_system: str
    python: str

    def as_json(self) -> dict[str, object]:
        """For the report."""
        return asdict(self)


def _file_system(folder: Path) -> str:
    """The type and the options of the file system that holds a folder."""
    best = ("", "unknown")
    for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
        _, mount, kind, options, *_ = line.split()
        if folder.is_relative_to(mount) and len(mount) > len(best[0]):
            best = (mount, f"{kind} ({options})")
    return best[1]


def describe(folder: Path) -> Machine:
    """This machine, and the disk under a folder."""
    information = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = re.search(r"^model name\s*: (.*)$", information, re.MULTILINE)
    memory = _kib(Path("/proc/meminfo").read_text(encoding="ascii"), "MemTotal") * 1024
    return Machine(model[1] if model else platform.machine(), os.cpu_count() or 1, round(memory / 2**30),
                   _kernel(), _file_system(folder.resolve()), platform.python_version())


def _kernel() -> str:
    """Its version: what comes after that is of whoever built it."""
    return ".".join(platform.release().split(".")[:2])
