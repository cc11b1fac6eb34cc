"""Each SQL constant of service/db fits the migrated schema, says what it is for, and has its one function."""

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import AsyncIterator
from pathlib import Path
from types import CodeType, ModuleType

import asyncpg
import pytest

import service.db
from service.db.pool import Connection
from service.run.postgres import EmbeddedPostgres

MODULES = [importlib.import_module(f"service.db.{found.name}") for found in pkgutil.iter_modules(service.db.__path__)]
QUERIES = [(module, name) for module in MODULES for name, value in vars(module).items()
           if name.isupper() and isinstance(value, str)]
RUNS = ("execute", "executemany", "fetch", "fetchrow", "fetchval", "cursor", "copy_from_query", "prepare")
IDS = [f"{module.__name__.rpartition('.')[2]}.{name}" for module, name in QUERIES]


def test_there_are_queries_in_every_module_but_those_of_the_pool() -> None:
    without = {module.__name__ for module in MODULES} - {module.__name__ for module, _ in QUERIES}
    assert without == {"service.db.pool", "service.db.shares"}
    names = [name for _, name in QUERIES]
    assert len(set(names)) == len(names)


@pytest.fixture
async def template(postgres: EmbeddedPostgres) -> AsyncIterator[Connection]:
    """A connection to the migrated template itself: these tests change nothing, and there are many of them."""
    connection = await asyncpg.connect(postgres.dsn("template_migrated"))
    yield connection
    await connection.close()


@pytest.mark.parametrize(("module", "name"), QUERIES, ids=IDS)
async def test_query_prepares(template: Connection, module: ModuleType, name: str) -> None:
    await template.prepare(getattr(module, name))


@pytest.mark.parametrize("statement", ["SELECT nmae FROM files", "SELECT name FROM fiels",
                                       "SELECT name FROM files WHERE id = 1", "INSERT INTO files (id) VALUES ($1, $2)"])
async def test_query_with_a_mistake_does_not_prepare(template: Connection, statement: str) -> None:
    with pytest.raises(asyncpg.PostgresError):
        await template.prepare(statement)


def test_every_query_begins_with_its_purpose_and_is_one_statement() -> None:
    for module, name in QUERIES:
        lines = getattr(module, name).strip().splitlines()
        assert re.fullmatch(r"-- \S.*", lines[0]), name
        assert not any(";" in line.partition("--")[0] for line in lines), name


def test_parameters_of_every_query_are_numbered_without_a_gap() -> None:
    for module, name in QUERIES:
        numbers = {int(number) for number in re.findall(r"\$(\d+)", getattr(module, name))}
        assert numbers == set(range(1, len(numbers) + 1)), name


def names_in(code: CodeType) -> set[str]:
    """Every global name that a function uses, also in what is nested in it."""
    return set(code.co_names).union(*(names_in(part) for part in code.co_consts if isinstance(part, CodeType)))


def test_function_of_the_same_name_uses_the_query_and_nobody_else_does() -> None:
    for module, name in QUERIES:
        function = getattr(module, name.lower())
        assert inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function), name
        assert function.__doc__, name
        assert next(iter(inspect.signature(function).parameters)) == "conn", name
        users = [found.__name__ for _, found in inspect.getmembers(module, inspect.isfunction)
                 if found.__module__ == module.__name__ and name in names_in(found.__code__)]
        assert users == [name.lower()]


def test_no_statement_is_put_together_from_pieces() -> None:
    for module in MODULES:
        for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in RUNS:
                assert isinstance(node.args[0], ast.Name | ast.Constant), f"{module.__name__}: {node.lineno}"


NAMED = [(module, name) for module, name in QUERIES
         if re.search(r"FROM files\b.*\bname = ", getattr(module, name), re.DOTALL)]


def test_there_are_queries_that_look_for_a_name() -> None:
    assert {name for _, name in NAMED} >= {"WALK", "GET_BY_PATH", "PUT_FILES", "FIND_BELOW", "IS_NAME_TAKEN"}


@pytest.mark.parametrize(("module", "name"), NAMED, ids=[name for _, name in NAMED])
async def test_name_is_found_by_an_index_before_anything_is_known_of_the_tables(
        template: Connection, module: ModuleType, name: str) -> None:
    """A plan is made early and kept: it must not be one that reads all there is, or all that is in the folder."""
    query = getattr(module, name)
    async with template.transaction():
        await template.execute("SET LOCAL plan_cache_mode = force_generic_plan")
        await template.execute(f"PREPARE lookup AS {query}")
        nulls = ", ".join(["NULL"] * len(set(re.findall(r"\$\d+", query))))
        plan = await template.fetch(f"EXPLAIN EXECUTE lookup ({nulls})")
        await template.execute("DEALLOCATE lookup")
    text = "\n".join(row[0] for row in plan)
    scans = re.findall(r"(?:using \S+ on files|Scan on files).*\n(.*)", text)
    assert len(scans) >= 1, text
    for line in scans:
        assert re.search(r"Index Cond: \(\(?(?:parent_id = .* AND \(\(?name\)?(?:::text)? = |id = )", line), text
