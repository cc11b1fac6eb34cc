"""Programs that tests use and that the service does not: whoever is root gets them from the package manager."""

import os
import shutil
import subprocess


def install(programs: dict[str, str]) -> list[str]:
    """Bring the programs, given with their packages, that are not on PATH; the packages still missing, sorted."""
    wanted = _missing(programs)
    if wanted and os.geteuid() == 0 and shutil.which("apt-get"):
        for command in (["update"], ["install", "-y", "--no-install-recommends", *wanted]):
            subprocess.run(["apt-get", "-qq", *command], capture_output=True, check=False,
                           env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})
    return _missing(programs)


def _missing(programs: dict[str, str]) -> list[str]:
    return sorted({package for program, package in programs.items() if shutil.which(program) is None})
