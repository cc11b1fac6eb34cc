"""One sweep without any grace, in a process of its own, at whose steps something may happen: see steps.py."""

import asyncio
import sys
from pathlib import Path

from tests.faults import steps
from tests.invariants import sweep

if __name__ == "__main__":
    steps.install()
    asyncio.run(sweep(sys.argv[1], Path(sys.argv[2])))
