"""The table of promises in tests/README.md names what is there."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_every_test_that_the_table_names_is_there() -> None:
    named = re.findall(r"`([\w/]+\.py): (\w+)`", (TESTS / "README.md").read_text(encoding="utf-8"))
    assert len(named) > 20
    assert [(path, name) for path, name in named if not re.search(
        rf"^(async )?(def|class) {name}\b", (TESTS / path).read_text(encoding="utf-8"), re.MULTILINE)] == []
