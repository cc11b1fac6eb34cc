"""The queries of lists, which are put together from parts: each combination fits the schema and uses its index."""

import itertools
from typing import get_args

import asyncpg
import pytest

from service.db import listing
from service.db.listing import Order, Scope
from service.model import FileId, Kind, Sort, new_uuid
from service.run.postgres import EmbeddedPostgres

SORTS: tuple[Sort, ...] = get_args(Sort)
KINDS: tuple[Kind, ...] = get_args(Kind)


def scope(is_recursive: bool) -> Scope:
    return Scope(folder_id=FileId(new_uuid()), prefix="/", is_recursive=is_recursive, pattern=None)


def query(kind: Kind, sort: Sort, is_recursive: bool = False, is_descending: bool = False, has_position: bool = False,
          has_pattern: bool = False) -> str:
    key = listing._key_of(kind, Order(sort=sort, is_descending=is_descending), scope(is_recursive))
    return listing._page_query(kind, is_recursive, key, is_descending, has_position, has_pattern)


async def test_every_combination_prepares(postgres: EmbeddedPostgres) -> None:
    connection = await asyncpg.connect(postgres.dsn("template_migrated"))
    try:
        for kind, sort in itertools.product(KINDS, SORTS):
            for flags in itertools.product((False, True), repeat=4):
                await connection.prepare(query(kind, sort, *flags))
    finally:
        await connection.close()


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("kind", KINDS)
async def test_a_page_of_a_folder_is_a_walk_along_an_index(dsn: str, kind: Kind, sort: Sort) -> None:
    """Not a sort of all children, wherever the page begins."""
    connection = await asyncpg.connect(dsn)
    try:
        # there is nothing in the table, and whether to sort nothing is a matter of taste
        await connection.execute("SET enable_sort = off; SET enable_seqscan = off; SET enable_bitmapscan = off; "
                                 "SET plan_cache_mode = force_generic_plan; SET enable_incremental_sort = off")
        for is_descending, has_position in itertools.product((False, True), repeat=2):
            statement = await connection.prepare(query(kind, sort, False, is_descending, has_position, False))
            arguments = [new_uuid(), "/", 100]
            key, kind_of_key = listing._key_of(kind, Order(sort=sort, is_descending=is_descending), scope(False))
            if has_position:
                sample = {"text": "x", "bigint": 5}.get(kind_of_key) or await connection.fetchval("SELECT now()")
                arguments += [sample, new_uuid()]
            plan = str(await statement.explain(*arguments))
            assert f"files_parent_id_is_folder_{key}_idx" in plan, plan
    finally:
        await connection.close()
