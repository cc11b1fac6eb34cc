"""Exit code 0 if a worker of this container can serve requests: asks /readyz on its socket, as nginx would.

One is enough: nginx goes round the others, and the supervisor starts them again.
"""

import os
import socket
import sys
from pathlib import Path

TIMEOUT_SECONDS = 4
REQUEST = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def is_ready(address: Path) -> bool:
    """Whether the worker answers with 200; the socket of one that has ended is still there."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(TIMEOUT_SECONDS)
            connection.connect(str(address))
            connection.sendall(REQUEST)
            return connection.recv(64).split()[1:2] == [b"200"]
    except OSError:
        return False


run = Path(os.environ["FILE_STORAGE_DATA_ROOT"], "run")
sys.exit(not any(map(is_ready, sorted(run.glob("worker-*.sock")))))
