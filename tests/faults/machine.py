"""A machine that loses its power: a file system that forgets what was not forced to the disk, processes that are gone.

A disk is a file behind a loop device.  FS_IOC_SHUTDOWN with NOLOGFLUSH ends all writing at once: what the page cache
and the journal in memory held never reaches the file.  Mounting again replays the journal, as a start after a power cut
does.
"""

import asyncio
import fcntl
import os
import signal
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from service.run import processes

FS_IOC_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32) of <linux/fs.h>
NOLOGFLUSH = 2
UMOUNT_SECONDS = 30.0
MKFS = {"ext4": ["mkfs.ext4", "-q", "-F"], "xfs": ["mkfs.xfs", "-q", "-f"]}
SIZE_BYTES = 4 * 2**30  # room for many rounds; the image takes what is written to it only


def run(*command: str | Path) -> None:
    """A short program; RuntimeError with its complaint."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]}: {done.stdout}{done.stderr}")


class LoopDisk:
    """A file system of its own whose power can be cut."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.kind = kind
        self.mount_point = folder / f"{kind}-mounted"
        self._image = folder / f"{kind}.img"
        self._is_mounted = False
        self.mount_point.mkdir(parents=True)
        with self._image.open("wb") as file:
            file.truncate(SIZE_BYTES)
        run(*MKFS[kind], self._image)
        self.mount()

    def mount(self) -> None:
        """Mount it; the journal is replayed if need be."""
        run("mount", "-o", "loop", "-t", self.kind, self._image, self.mount_point)
        self._is_mounted = True

    def cut(self) -> None:
        """The power fails: from now on every write fails, and what was not forced to the disk is lost."""
        descriptor = os.open(self.mount_point, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, FS_IOC_SHUTDOWN, struct.pack("I", NOLOGFLUSH))
        finally:
            os.close(descriptor)

    def umount(self) -> None:
        """Unmount it as soon as the last process has let go of it."""
        deadline = time.monotonic() + UMOUNT_SECONDS
        while self._is_mounted:
            try:
                run("umount", self.mount_point)
                self._is_mounted = False
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def discard(self) -> None:
        """Its image, which many rounds have filled, is gone."""
        self._image.unlink()

    def power_on(self) -> None:
        """After a cut: mount it again."""
        self.umount()
        self.mount()


@contextmanager
def loop_disk(folder: Path, kind: str) -> Iterator[LoopDisk]:
    """A disk while the context lasts."""
    disk = LoopDisk(folder, kind)
    try:
        yield disk
    finally:
        disk.umount()
        disk.discard()


def descendants(pid: int) -> list[int]:
    """All processes below this one."""
    children: dict[int, list[int]] = {}
    for entry in processes.PROC.iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_bytes()
            except OSError:
                continue
            children.setdefault(int(stat.rpartition(b")")[2].split()[1]), []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def is_running(pid: int) -> bool:
    """Whether there is such a process that is not a zombie."""
    try:
        return (processes.PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


async def kill(pids: Sequence[int], number: signal.Signals = signal.SIGKILL) -> None:
    """End them by a signal and wait until they are gone; AssertionError if there is none, or one that does not end."""
    assert any(map(is_running, pids)), f"nothing to kill: {pids}"
    processes.send(pids, number)
    assert await asyncio.to_thread(
        processes.wait_until, lambda: not any(map(is_running, pids)), UMOUNT_SECONDS), f"they do not end: {pids}"


def kill_tree(process: "subprocess.Popen[bytes]") -> None:
    """A process and all below it are gone at once, none of them asked."""
    process.send_signal(signal.SIGSTOP)  # so that it starts nothing more
    doomed = descendants(process.pid)
    processes.send(doomed, signal.SIGKILL)
    process.kill()
    process.wait()
    assert processes.wait_until(lambda: not any(map(is_running, doomed)), UMOUNT_SECONDS), "processes that do not end"


@contextmanager
def tmpfs(folder: Path, options: str) -> Iterator[Path]:
    """A small disk while the context lasts."""
    folder.mkdir()
    run("mount", "-t", "tmpfs", "-o", f"mode=700,{options}", "tmpfs", folder)
    try:
        yield folder
    finally:
        assert processes.wait_until(lambda: _unmount(folder), UMOUNT_SECONDS), f"{folder} cannot be unmounted"


def _unmount(folder: Path) -> bool:
    """Whether it could be; a file that is still open keeps it."""
    return subprocess.run(["umount", folder], capture_output=True).returncode == 0


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """As a kernel leaves a disk that it does not trust."""
    run("mount", "--bind", folder, folder)
    try:
        run("mount", "-o", "remount,bind,ro", folder)
        yield
    finally:
        run("umount", "--lazy", folder)
