"""What processes have open."""

import os
from collections.abc import Iterable
from pathlib import Path

from service.run import processes

KINDS = ("blobs", "staging", "spool")


def open_files(pids: Iterable[int], root: Path) -> list[str]:
    """What these processes hold open of clients' bytes, and of files that have no name any more."""
    found = []
    for pid in pids:
        folder = processes.PROC / str(pid) / "fd"
        for descriptor in os.listdir(folder):
            try:
                name = os.readlink(folder / descriptor)
            except FileNotFoundError:
                continue  # closed meanwhile
            if name.startswith(tuple(f"{root / kind}/" for kind in KINDS)) or (
                    name.startswith(f"{root}/") and name.endswith(" (deleted)")):
                found.append(name)
    return found


def removed_but_open(pids: Iterable[int], root: Path) -> list[int]:
    """Sizes in bytes of the blobs without a name that some of the processes have open."""
    sizes = []
    for pid in pids:
        for entry in (processes.PROC / str(pid) / "fd").iterdir():
            try:
                target = str(entry.readlink())
                if target.startswith(f"{root}/blobs/") and target.endswith(" (deleted)"):
                    sizes.append(entry.stat().st_size)
            except FileNotFoundError:  # closed by now
                continue
    return sizes
