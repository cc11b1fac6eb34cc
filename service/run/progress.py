"""What commands write to a terminal: sizes, names, and how far they are: a line that is written over and over."""

import sys
import time

EVERY_SECONDS = 0.2


def format_bytes(count: int) -> str:
    """Such as 512 B or 3.4 GiB."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def printable(text: str) -> str:
    """No character of a name does anything to a terminal."""
    return "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in text)


class Progress:
    """The line of one command, nothing where nobody looks; its methods are called from one thread at a time."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._is_seen = sys.stderr.isatty()
        self._next = time.monotonic()

    def show(self, done: int, total: int, done_bytes: int, total_bytes: int) -> None:
        """How many blobs, and how many bytes."""
        percent = 100 * done_bytes // total_bytes if total_bytes else 100
        self.tell(f"{done} of {total} blobs, {format_bytes(done_bytes)} of {format_bytes(total_bytes)} ({percent} %)")

    def tell(self, text: str) -> None:
        """Write the line anew, unless that was a moment ago."""
        if not self._is_seen or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + EVERY_SECONDS
        print(f"\r\x1b[K{self._what} {text}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Leave nothing of it on the terminal."""
        if self._is_seen:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
