"""Whether a recorded history of a few paths has a legal order (I3): each change and each look at one moment within its
request, in an order that explains every answer.

The search is that of Wing and Gong with remembered states.  What had no answer may have happened at any later time, or
not at all.  Histories of paths that no request has in common can be judged apart (Herlihy and Wing: locality).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["put", "delete", "get", "move", "list"]
Value = str | None
State = tuple[Value, ...]


@dataclass(frozen=True)
class Operation:
    """One request: what was asked for, when it began, when its answer came (never: infinity), what the answer said.

    `at` and `to` are numbers of paths.  `found` tells whether a deletion or a move found something.  `value` is what
    was put or seen, `values` what a list showed.
    """

    kind: Kind
    start: float
    end: float
    at: int = 0
    to: int = 0
    value: Value = None
    values: State = ()
    found: bool = True

    @property
    def is_certain(self) -> bool:
        """Whether there was an answer."""
        return self.end < math.inf

    def apply(self, state: State) -> State | None:
        """The state after it; None if its answer does not fit the state before."""
        if self.kind == "put":
            return _with(state, self.at, self.value)
        if self.kind == "get":
            return state if state[self.at] == self.value else None
        if self.kind == "list":
            return state if state == self.values else None
        is_there = state[self.at] is not None
        if self.is_certain and is_there != self.found:
            return None
        if not is_there:
            return state
        after = _with(state, self.at, None)
        return _with(after, self.to, state[self.at]) if self.kind == "move" else after


def _with(state: State, index: int, value: Value) -> State:
    return (*state[:index], value, *state[index + 1:])


def is_linearizable(history: Sequence[Operation], initial: State) -> bool:
    """Whether there is a legal order."""
    operations = sorted((operation for operation in history
                         if operation.is_certain or operation.kind not in ("get", "list")),
                        key=lambda operation: operation.start)
    required = sum(1 << index for index, operation in enumerate(operations) if operation.is_certain)
    todo = [((1 << len(operations)) - 1, initial)]
    seen = set(todo)
    while todo:
        remaining, state = todo.pop()
        if not remaining & required:
            return True
        for index in _candidates(operations, remaining):
            after = operations[index].apply(state)
            node = (remaining & ~(1 << index), after)
            if after is not None and node not in seen:
                seen.add(node)  # type: ignore[arg-type]
                todo.append(node)  # type: ignore[arg-type]
    return False


def _candidates(operations: Sequence[Operation], remaining: int) -> list[int]:
    """What may have come first of all that remain: whatever began before any other of them ended."""
    found, first_end, rest = [], math.inf, remaining
    while rest:
        index = (rest & -rest).bit_length() - 1
        rest &= rest - 1
        operation = operations[index]
        if operation.start > first_end:
            break
        found.append(index)
        first_end = min(first_end, operation.end)
    return found
