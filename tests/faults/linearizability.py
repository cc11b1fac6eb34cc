"""Whether a recorded history of a few paths has a legal order (I3): each change and each look at one moment within its
request, in an order that explains every answer.

The search is that of Wing and Gong with remembered states.  What had no answer may have happened at any later time, or
not at all.  No two writes have the same value.  Histories of paths that no request has in common can be judged apart
(Herlihy and Wing: locality).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from heapq import heappop, heappush
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


MAX_ORDERS = 3_000_000
DOUBT_COST = 2


class Undecided(Exception):
    """There were too many orders to look through: the history says neither that all is well nor that it is not."""


def is_linearizable(history: Sequence[Operation], initial: State) -> bool:
    """Whether there is a legal order; raise Undecided after so many tries.

    The ways that explain the most answers with the least of what is in doubt are gone on with first.  Where the same
    certain operations have led to the same state, only those are gone on with that have something in doubt left which
    the others have used up.
    """
    operations = sorted((operation for operation in map(partial(_without_doubt, _first_seen(history)), history)
                         if operation.is_certain or operation.kind not in ("get", "list")),
                        key=lambda operation: operation.start)
    required = sum(1 << index for index, operation in enumerate(operations) if operation.is_certain)
    everything = (1 << len(operations)) - 1
    todo: list[tuple[int, int, int, State]] = [(0, 0, everything, initial)]
    seen: dict[tuple[int, State], list[int]] = {(required, initial): [everything & ~required]}
    for number in range(1, MAX_ORDERS):
        if not todo:
            return False
        cost, _, remaining, state = heappop(todo)
        if not remaining & required:
            return True
        for index in _candidates(operations, remaining):
            is_certain = operations[index].is_certain
            after = operations[index].apply(state)
            if after is None or not is_certain and after == state:
                continue
            left = remaining & ~(1 << index)
            if _is_news(seen.setdefault((left & required, after), []), left & ~required):
                # of equals the newest, and those whose answers came first
                heappush(todo, (cost - 1 if is_certain else cost + DOUBT_COST, -number * len(operations) + index,
                                left, after))
    raise Undecided(f"{len(operations)} operations, {len(operations) - required.bit_count()} of them in doubt")


def _first_seen(history: Sequence[Operation]) -> dict[Value, float]:
    """For each value when the first answer came that shows it."""
    seen: dict[Value, float] = {}
    for operation in history:
        if operation.is_certain and operation.kind in ("get", "list"):
            for value in (operation.value, *operation.values):
                seen[value] = min(operation.end, seen.get(value, math.inf))
    return seen


def _without_doubt(seen: dict[Value, float], operation: Operation) -> Operation:
    """A write whose value, which nobody else writes, somebody has seen: it has happened by then."""
    if operation.kind == "put" and not operation.is_certain and operation.value in seen:
        return replace(operation, end=seen[operation.value])
    return operation


def _is_news(known: list[int], doubtful: int) -> bool:
    """Whether no way was known that has at least the same left in doubt; notes it."""
    if any(doubtful & ~each == 0 for each in known):
        return False
    known[:] = [each for each in known if each & ~doubtful != 0]
    known.append(doubtful)
    return True


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
