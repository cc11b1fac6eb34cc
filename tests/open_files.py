"""What processes have open."""

from collections.abc import Iterable
from pathlib import Path

from service.run import processes


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
