"""At every step that changes something test_steps.py and test_steps_work.py inject faults, or it is named here.

A function of db with a new query, or a new method of what keeps bytes, fails this test until something is done through
the API, or beside it, that comes by it, or until it is said where its faults are tried.
"""

import os
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from service.db import blobs
from service.run.postgres import EmbeddedPostgres
from service.storage.local import LocalStore
from tests import databases
from tests.faults.changes import ACCOUNTS, BYTES, TREE, Bench, stack_with_steps
from tests.faults.clients import Account
from tests.faults.recorder import Recorder
from tests.faults.steps import Point, chosen_points, find_sites
from tests.faults.test_steps import WITHOUT_NGINX
from tests.faults.test_steps_work import WORKS, begin
from tests.world import open_world

RESTORE = "tests/domain/test_restore.py"  # into an empty place, killed at its steps, and done again as a whole
ELSEWHERE = {
    "backup.delete_unreferred_blobs": RESTORE, "backup.empty_tables": RESTORE, "backup.end_all_sessions": RESTORE,
    "backup.forget_data_root": RESTORE, "backup.set_epoch": RESTORE, "backup.set_sequence": RESTORE,
    "store.probe": "tests/domain/test_writability.py"}
"""Steps that are not swept, and where they are tried."""


@pytest.mark.mutant("E11", "a step that changes something and that no fault is tried at")
def test_new_step_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    before = find_sites()

    async def shred(self: LocalStore) -> None:
        """Nothing that any change comes by."""

    monkeypatch.setattr(LocalStore, "shred", shred, raising=False)
    source = "SHRED = 'DELETE FROM blobs'\nasync def shred(conn): await conn.execute(SHRED)"
    names: dict[str, Any] = {"__name__": blobs.__name__}
    exec(source, names)
    for name in ("SHRED", "shred"):
        monkeypatch.setattr(blobs, name, names[name], raising=False)
    assert find_sites() - before == {"store.shred", "blobs.shred"}
    assert not {"store.shred", "blobs.shred"} & set(ELSEWHERE)


def chosen_steps(points: list[Point]) -> set[str]:
    """Where anything is tried."""
    return {point.step for action in ("kill", "EIO") for point in chosen_points(points, action)}


async def test_every_step_that_changes_something_is_swept(
        postgres: EmbeddedPostgres, session: aiohttp.ClientSession, recorder: Recorder, tmp_path: Path) -> None:
    swept: set[str] = set()
    for nginx, changes in (("auto", [*BYTES, *TREE, *ACCOUNTS]), ("off", list(dict(WITHOUT_NGINX)))):
        (folder := tmp_path / nginx).mkdir()
        with stack_with_steps(folder, NGINX=nginx) as stack:
            bench = Bench(stack, await Account.open(session, stack))
            for change in changes:
                swept |= chosen_steps(await bench.points_of(change))
    for kind in WORKS:
        (folder := tmp_path / kind.__name__ / "steps").mkdir(parents=True)
        dsn = databases.make_shared(postgres, f"work_{os.urandom(8).hex()}")
        async with open_world(dsn, folder.parent / "data", versions_keep=5) as world:
            swept |= chosen_steps(await (await begin(world, kind)).points())
    passed = {step.rpartition(" ")[0] for step in swept}
    sites = find_sites()
    unswept, swept_too = sites - passed - set(ELSEWHERE), set(ELSEWHERE) - (sites - passed)
    assert not unswept, f"no test of faults comes by {', '.join(sorted(unswept))}"
    assert not swept_too, f"swept, or not there any more: {', '.join(sorted(swept_too))}"
    assert all(Path(path).is_file() for path in ELSEWHERE.values())
    recorder.line("F1, F2 steps", note=f"{len(sites)} places change something: {len(sites & passed)} swept, "
                  f"{len(ELSEWHERE)} tried elsewhere; {len(passed - sites)} more only look")
