"""Batches: many changes of the tree, all or nothing."""

from dataclasses import dataclass
from typing import Literal

from service.db.files import lock_tree
from service.db.pool import Connection, Database
from service.domain.files import delete
from service.domain.moves import Allowance, Change, copy, move
from service.domain.places import Place
from service.domain.requests import once
from service.errors import ServiceError
from service.model import Caller, Conditions, File, Folder, UserId


@dataclass(frozen=True, slots=True, kw_only=True)
class Deletion:
    """A deletion as an operation of a batch."""

    place: Place
    permanent: bool = False
    conditions: Conditions = Conditions()


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """A move or a copy as an operation of a batch."""

    kind: Literal["move", "copy"]
    change: Change


Operation = Deletion | Transfer


class Batch:
    """Several operations in one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def run(self, caller: Caller, operations: list[Operation]) -> list[File | Folder | None]:
        """Carry out all in their order; what each came to, None for a deletion.

        The first that fails takes back all others, and its error says which one it was.
        """
        async def work(conn: Connection) -> list[File | Folder | None]:
            # what an operation is about may be the work of one before it, so that nobody knows if it is a folder
            await lock_tree(conn, caller.user_id)
            results, allowance = [], Allowance()
            for number, operation in enumerate(operations):
                try:
                    results.append(await _apply(conn, caller.user_id, operation, allowance))
                except ServiceError as error:
                    error.operation = number
                    raise
            return results

        return await once(self._database, caller, work)


async def _apply(conn: Connection, user_id: UserId, operation: Operation, allowance: Allowance) -> File | Folder | None:
    match operation:
        case Transfer(kind="move", change=change):
            return await move(conn, user_id, change)
        case Transfer(change=change):
            return await copy(conn, user_id, change, allowance)
    await delete(conn, user_id, operation.place, operation.conditions, permanent=operation.permanent, has_tree=True)
    return None
