"""Children end when their parent does, however it does."""

import os
import signal
import subprocess
import sys

import pytest

from service.run import processes
from tests.run.conftest import PROJECT, is_alive, wait_for

PARENT = """
import signal, subprocess, sys, time
from service.run import processes
child = processes.start([sys.executable, "-c", "import time; time.sleep(600)"], on_parent_death=signal.SIGINT,
                        identity=sys.argv[1])
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("identity", ["same", pytest.param("nobody", marks=pytest.mark.skipif(
    os.geteuid() != 0, reason="only root takes on another identity"))])
def test_parent_killed_ends_the_child(identity: str) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, identity], stdout=subprocess.PIPE, cwd=PROJECT)
    assert parent.stdout
    try:
        child = int(parent.stdout.readline())
        wait_for(lambda: os.path.basename(os.readlink(f"/proc/{child}/exe")) == processes.own_program(), "child runs")
        assert is_alive(child)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    wait_for(lambda: not is_alive(child), "the child ends")


def test_parent_gone_before_the_start_is_noticed() -> None:
    command = processes.launch_command(["/bin/true"])
    command[4] = "1"  # not our number
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert "the parent is gone" in done.stderr


def test_program_that_does_not_exist_is_named() -> None:
    with pytest.raises(processes.StartError, match="/nowhere/program: .*No such file"):
        processes.run(["/nowhere/program"])


def test_signal_is_sent_only_to_what_is_there() -> None:
    process = subprocess.Popen(["/bin/true"])
    process.wait()
    processes.send([process.pid], signal.SIGTERM)
    assert processes.stop_all(list, [(signal.SIGTERM, 1.0)])
