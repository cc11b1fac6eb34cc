"""What docs/OPERATIONS.md and the other documents say, as far as a program can tell whether it is true."""

import configparser
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import Metric

from service import metrics
from service.__main__ import _parse
from service.config import PREFIX, Config
from service.run.supervisor import DRAIN_SECONDS
from tests.run.conftest import PROJECT

OPERATIONS = (PROJECT / "docs" / "OPERATIONS.md").read_text(encoding="utf-8")
UNIT = PROJECT / "docs" / "file-storage.service"
DOCUMENTS = sorted([*PROJECT.glob("*.md"), *PROJECT.glob("docs/*.md"), *PROJECT.glob("docker/*.md")])
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", OPERATIONS, re.MULTILINE | re.DOTALL)
ALERTS: list[dict[str, Any]] = [rule for kind, text in BLOCKS if kind == "yaml"
                                for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]


def blocks(kind: str) -> list[str]:
    return [text for found, text in BLOCKS if found == kind]


def anchors(document: Path) -> set[str]:
    """What a link may name in a document: its headings, as web pages of repositories spell them."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def families() -> dict[str, Metric]:
    """Each metric by the names of its samples."""
    found = {}
    for family in metrics._OWN.collect():
        for suffix in ("", "_total", "_sum", "_count", "_bucket"):
            found[family.name + suffix] = family
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(PROJECT)))
def test_links_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", document.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("script", blocks("sh"), ids=lambda text: text.split("\n")[0][:40])
def test_commands_are_a_valid_script(script: str) -> None:
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_commands_of_the_service_are_its_own() -> None:
    lines = re.findall(r"(?:^|`)files (\w[^`#\n]*)", OPERATIONS, re.MULTILINE)
    lines += re.findall(r"-m service ((?!\"\$@)[^`>\n]*\w)", OPERATIONS)
    assert {line.split()[0] for line in lines} == {"backup", "restore", "check", "migrate"}
    for line in lines:
        _parse(line.replace(" N", " 1").split())


def test_blob_that_is_put_back_gets_its_name_when_it_is_whole(tmp_path: Path) -> None:
    """nginx sends the beginning of a file that is being written, and a check sets it aside for its size."""
    [script] = [script for script in blocks("sh") if "/mnt/backup/blobs" in script or "/mnt/backup/$1" in script]
    lines = [line for line in script.splitlines() if line.startswith(("KEY=", "runuser"))]
    command = lines[-1]
    assert command.index("cp ") < command.index("sync ") < command.index("mv ")
    root, pool = tmp_path / "data", tmp_path / "backup" / "blobs" / "ac"
    for folder in (root / "staging", root / "blobs" / "ac", pool):
        folder.mkdir(parents=True)
    key = lines[0].split()[0].removeprefix("KEY=")
    (pool / key).write_bytes(b"good")
    done = "\n".join(lines).replace("runuser -u file-storage -- sh -ec", "sh -exc")
    done = done.replace("/mnt/backup", str(tmp_path / "backup")).replace("/var/lib/file-storage", str(root))
    traced = subprocess.run(["bash", "-e"], input=done, text=True, check=True, capture_output=True).stderr
    [copied] = re.findall(r"^\+ cp \S+ (\S+)$", traced, re.MULTILINE)
    assert Path(copied).parent == root / "staging"  # nothing reads there, and a start empties it
    assert re.findall(r"^\+ mv (\S+) (\S+)$", traced, re.MULTILINE) == [(copied, str(root / "blobs" / "ac" / key))]
    assert (root / "blobs" / "ac" / key).read_bytes() == b"good"
    assert list((root / "staging").iterdir()) == []


def test_settings_that_are_named_exist() -> None:
    known = {name.upper() for name in Config.model_fields}
    named = set(re.findall(PREFIX + r"(\w+)", OPERATIONS + UNIT.read_text(encoding="utf-8")))
    named |= set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+)`", OPERATIONS)) - {"HIGH_WATER"}
    assert named and named <= known


def test_metrics_that_are_named_exist_with_their_labels() -> None:
    known = families()
    named = set(re.findall(r"file_storage_\w+", OPERATIONS)) - {"file_storage_"}
    assert named and named <= known.keys()
    labels = {name: set(getattr(metrics, constant)._labelnames)
              for constant in dir(metrics) for name in [getattr(getattr(metrics, constant), "_name", "")] if name}
    for rule in ALERTS:
        for metric, selector in re.findall(r"(file_storage_\w+)\{([^}]*)\}", rule["expr"]):
            used = set(re.findall(r"(\w+)(?:=|!)", selector))
            assert used and used <= labels[known[metric].name], rule["alert"]


def test_alerts_have_names_and_balanced_expressions() -> None:
    assert len({rule["alert"] for rule in ALERTS}) == len(ALERTS) > 0
    for rule in ALERTS:
        assert rule.keys() <= {"alert", "expr", "for"}
        for opening, closing in ("()", "[]", "{}"):
            assert rule["expr"].count(opening) == rule["expr"].count(closing)


def test_unit_starts_what_there_is_and_waits_for_the_end_of_requests() -> None:
    unit = configparser.ConfigParser(strict=True, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # names in a unit have capitals
    unit.read_string(UNIT.read_text(encoding="utf-8"))
    service = unit["Service"]
    program, *arguments = service["ExecStart"].split()
    assert program == f"{service['WorkingDirectory']}/.venv/bin/python"
    assert arguments[:2] == ["-m", "service"] and _parse(arguments[2:]).command == "run"
    assert service["User"] == "file-storage" and service["NoNewPrivileges"] == "yes"
    assert service["KillMode"] == "mixed"  # a signal to nginx or PostgreSQL by somebody else would cut requests off
    assert int(service["TimeoutStopSec"]) > 3 * DRAIN_SECONDS  # nginx, the workers, PostgreSQL
    for name in ("EnvironmentFile", "StateDirectory", "WorkingDirectory"):
        assert service[name] in OPERATIONS
