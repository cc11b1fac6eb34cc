"""The rules of the house, asked of every file: imports, style, types, sizes, words, nothing of one machine."""

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 50
# what a thing is called that nobody has thought about (design notes, 8.2)
BANNED = ("util", "utils", "helper", "helpers", "manager", "managers", "common", "misc", "stuff")
# folders of one machine; put together here so that this file may name them
OF_ONE_MACHINE = re.compile("|".join("/" + folder for folder in (
    r"home/(?!app\b|user\b)\w+", r"root/(?!\.)\w+", r"Users/\w+", "work/(?:main|shared)", r"tmp/t/", r"\.pyenv/")))
SOURCES = sorted(PROJECT.glob("service/**/*.py"))
TESTS = sorted(PROJECT.glob("tests/**/*.py"))
TEXTS = sorted(path for pattern in ("*", ".ci/*", "service/**/*", "sql/**/*", "tests/**/*", "nginx/**/*", "docker/**/*",
                                    "docs/**/*", "bench/**/*")
               for path in PROJECT.glob(pattern) if path.is_file() and "__pycache__" not in path.parts
               and path.name not in (".coverage",) and "secrets" not in path.parts)


def name_of(path: object) -> str:
    """A file as the reports show it."""
    return str(path.relative_to(PROJECT)) if isinstance(path, Path) else str(path)


def run(*arguments: str) -> None:
    """Run a program of this environment in the project; fail with what it says."""
    done = subprocess.run([sys.executable, *arguments], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# --- the tools ---

def test_imports_go_down_and_never_up_or_sideways() -> None:
    run("-c", "from importlinter.cli import lint_imports_command; lint_imports_command()")


def test_style_has_nothing_to_say() -> None:
    run("-m", "flake8")


def test_types_fit() -> None:
    run("-m", "mypy")


def test_bandit_finds_nothing_of_medium_or_high_severity() -> None:
    run("-m", "bandit", "-q", "-r", "service", "-ll")


@pytest.mark.parametrize(("layer", "forbidden"), [
    ("domain", "from aiohttp import web\n"), ("db", "from service.domain import content\n"),
    ("storage", "from service.db import files\n"), ("api", "import service.run.nginx\n")])
def test_import_against_the_direction_is_found(tmp_path: Path, layer: str, forbidden: str) -> None:
    """The contracts are of use only if they fail: a copy of the service with one wrong import does not pass them."""
    for path in SOURCES:
        copy = tmp_path / path.relative_to(PROJECT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    (tmp_path / "setup.cfg").write_bytes((PROJECT / "setup.cfg").read_bytes())
    module = next(path for path in sorted((tmp_path / "service" / layer).glob("*.py")) if path.name != "__init__.py")
    module.write_text(forbidden + module.read_text(encoding="utf-8"), encoding="utf-8")
    done = subprocess.run([sys.executable, "-P", "-c",
                           "import sys; sys.path.insert(0, '.'); "
                           "from importlinter.cli import lint_imports_command; lint_imports_command(['--no-cache'])"],
                          cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "BROKEN" in done.stdout, done.stdout + done.stderr


# --- sizes ---

def test_every_file_can_be_read_in_one_go() -> None:
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert {name: length for name, length in lengths.items() if length > MAX_FILE_LINES} == {}


def test_every_function_fits_on_a_screen() -> None:
    too_long = [f"{name_of(path)}: {node.name}: {length}" for path in SOURCES for node in functions_in(path)
                if (length := (node.end_lineno or node.lineno) - node.lineno + 1) > MAX_FUNCTION_LINES]
    assert too_long == []


def functions_in(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function of a file, also those in others."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


# --- words ---

def names_in(path: Path) -> Iterator[str]:
    """What a file, its folders, its classes and, in the service, its functions are called."""
    yield path.stem
    yield from (parent.name for parent in path.relative_to(PROJECT).parents)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            yield node.name
    if path in SOURCES:
        yield from (node.name for node in functions_in(path))


def words_of(name: str) -> list[str]:
    """snake_case and CamelCase taken apart."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]


def test_names_say_what_things_are() -> None:
    empty = {f"{name_of(path)}: {name}" for path in SOURCES + TESTS for name in names_in(path)
             if set(words_of(name)) & set(BANNED)}
    assert empty == set()


@pytest.mark.parametrize(("name", "words"), [
    ("FileManager", ["file", "manager"]), ("path_utils", ["path", "utils"]), ("HTTPHelper", ["http", "helper"]),
    ("COMMON", ["common"]), ("_misc2", ["misc"])])
def test_words_are_taken_out_of_names_of_both_kinds(name: str, words: list[str]) -> None:
    assert words_of(name) == words


def test_no_test_of_a_file_hides_another_one() -> None:
    hidden = []
    for path in TESTS:
        found = Counter(node.name for node in ast.parse(path.read_text(encoding="utf-8")).body
                        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef))
        hidden += [f"{name_of(path)}: {name}" for name, count in found.items() if count > 1]
    assert hidden == []


def test_every_folder_of_tests_is_a_package() -> None:
    """Without an __init__.py two files of one name in different folders hide each other."""
    folders = {path.parent for path in TESTS}
    assert [name_of(folder) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


# --- nothing of one machine ---

def test_no_file_names_a_folder_of_one_machine() -> None:
    found = []
    for path in TEXTS:
        data = path.read_bytes()
        if b"\0" not in data and (match := OF_ONE_MACHINE.search(data.decode("utf-8"))):
            found.append(f"{name_of(path)}: {match[0]}")
    assert found == []


@pytest.mark.parametrize(("text", "is_found"), [
    ("see /" + "home/alice/x", True), ("/" + "root/notes", True), ("/" + "work/main", True),
    ("C:/" + "Users/bob", True), ("/srv/files", False), ("https://example.org/" + "homepage", False),
    ("framework/main.py", False)])
def test_folders_of_one_machine_are_recognised(text: str, is_found: bool) -> None:
    assert (OF_ONE_MACHINE.search(text) is not None) == is_found
