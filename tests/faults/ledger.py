"""What a service owes to a client: what it has acknowledged has happened, the rest has happened entirely or not at all.

A change is written down before it is sent.  It is acknowledged by a 2xx, refused by an answer that promises that
nothing was done, and in doubt otherwise.  A path that a change in doubt concerns is left alone until somebody has
looked: the change may still happen.
"""

import hashlib
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping

State = Mapping[str, str | None]  # the SHA-256 of what is at a path; None: nothing


def body_of(name: str, size_bytes: int) -> bytes:
    """Bytes that no other name has, again the same for the same name."""
    return random.Random(name).randbytes(size_bytes)


def digest_of(body: bytes) -> str:
    """As lists show it."""
    return hashlib.sha256(body).hexdigest()


class Ledger:
    """The books of one account."""

    def __init__(self) -> None:
        self.known: dict[str, str | None] = {}
        self.acknowledged = 0
        self.tries_in_doubt = 0  # of changes that were then sent again; each may have left its bytes
        self.refused: list[str] = []
        self.on_acknowledged: Callable[[], None] = lambda: None
        self.touched: Counter[str] = Counter()  # how often a change of a path has begun or ended
        self.history: defaultdict[str, list[str]] = defaultdict(list)  # of each path
        self._pending: dict[int, State] = {}
        self._count = 0

    @property
    def in_doubt(self) -> int:
        """How many changes nobody knows the outcome of."""
        return len(self._pending)

    def note(self, paths: Iterable[str], words: str) -> None:
        """Keep it for the history of these paths."""
        for path in paths:
            self.history[path].append(f"{time.strftime('%H:%M:%S')} {words}")

    def begin(self, change: State) -> int:
        """A change is about to be asked for."""
        self._count += 1
        self._pending[self._count] = change
        self.touched.update(change.keys())
        return self._count

    def acknowledge(self, number: int) -> None:
        """It was answered with a 2xx."""
        change = self._pending.pop(number)
        self.known.update(change)
        self.touched.update(change.keys())
        self.acknowledged += 1
        self.on_acknowledged()

    def refuse(self, number: int, answer: str) -> None:
        """It was answered with an error that means that nothing was done."""
        self.forget(number)
        self.refused.append(answer)

    def forget(self, number: int) -> None:
        """It was never sent."""
        self.touched.update(self._pending.pop(number).keys())

    def free_paths(self) -> list[str]:
        """Where there is something, for certain, and nothing is under way."""
        busy = self.busy_paths()
        return [path for path, digest in self.known.items() if digest is not None and path not in busy]

    def busy_paths(self) -> set[str]:
        """What a change concerns that is under way or in doubt."""
        return {path for change in self._pending.values() for path in change}

    def settle(self, actual: Mapping[str, str]) -> list[str]:
        """Compare with what is there while nothing is under way; what is wrong.  What was in doubt is known then."""
        wrong = []
        doubtful = set()
        for change in self._pending.values():
            doubtful |= set(change)
            before = {path: self.known.get(path) for path in change}
            now = {path: actual.get(path) for path in change}
            if now not in (before, dict(change)):
                wrong.append(f"half done: {change}, but there is {now}")
        for path in (set(self.known) | set(actual)) - doubtful:
            if actual.get(path) != self.known.get(path):
                wrong.append(f"{path}: acknowledged {self.known.get(path)}, found {actual.get(path)}; "
                             f"history: {self.history[path]}")
        self._pending.clear()
        self.known = dict(actual)
        return wrong
