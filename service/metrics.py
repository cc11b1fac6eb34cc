"""Everything that is counted, by name, for Prometheus; incremented elsewhere, and nothing is decided by it.

Names and units: https://prometheus.io/docs/practices/naming/

The numbers of all workers are added up: each keeps its own in files that it maps into memory, so that whoever is asked
reads those of all, and a worker that is started again goes on with the numbers of the one before.
"""

import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, start_http_server, values
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE
from prometheus_client.multiprocess import MultiProcessCollector

__all__ = [
    "BODIES", "BYTES", "CACHE", "CONTENT_TYPE", "DISK_FAILURES", "FINDINGS", "Gauge", "HELD", "LAST_CHECK", "READ_ONLY",
    "SWEPT", "VERIFIED", "count_request", "count_sweep", "folder_of", "queued", "render", "sample", "serve", "share",
]

_OWN = CollectorRegistry()
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# A hole in a mapped file kills the process that writes to it when the disk is full (SIGBUS), so there must be none, and
# the library must not have to grow a file.  All series there can be take a third of this.
_FILE_BYTES = 2**20
_KINDS = ("counter", "histogram", "gauge_sum", "gauge_max", "gauge_mostrecent")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# from an answer out of the cache to an upload of many gigabytes
_BUCKETS = (.002, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10, 60, 600)

# Every one has labels: then the library makes its values when they are first used, which is after `share`.
REQUESTS = Counter("file_storage_requests", "Answers, by the template of the address", ["route", "method", "status"],
                   registry=_OWN)
DURATION = Histogram("file_storage_request_duration_seconds", "From the head of a request to its answer in a worker",
                     ["route", "method"], buckets=_BUCKETS, registry=_OWN)
BYTES = Counter("file_storage_body_bytes", "Bytes of bodies; out by nginx: those that it was told to send",
                ["direction", "by"], registry=_OWN)
BODIES = Gauge("file_storage_bodies_in_flight", "Requests with a body that are being worked on", ["kind"],
               multiprocess_mode="sum", registry=_OWN)
THROTTLED = Counter("file_storage_throttled_requests", "Refused since there were too many", ["route"], registry=_OWN)
QUEUE = Gauge("file_storage_queue_depth", "Work for threads, waiting or being done", ["queue"],
              multiprocess_mode="sum", registry=_OWN)
POOL = Gauge("file_storage_database_connections", "Connections to PostgreSQL, looked at every few seconds", ["state"],
             multiprocess_mode="sum", registry=_OWN)
CACHE = Counter("file_storage_cache_lookups", "Questions whether a session is open", ["result"], registry=_OWN)
SWEPT = Counter("file_storage_swept", "What housekeeping has removed", ["what"], registry=_OWN)
SWEEPS = Counter("file_storage_sweeps", "Rounds of housekeeping", ["outcome"], registry=_OWN)
LAST_SWEEP = Gauge("file_storage_last_sweep_timestamp_seconds", "When housekeeping last ended", ["outcome"],
                   multiprocess_mode="max", registry=_OWN)
# of the worker whose turn it was last
FINDINGS = Gauge("file_storage_findings", "What the last check found; 0 is right, but for quarantine", ["kind"],
                 multiprocess_mode="mostrecent", registry=_OWN)
HELD = Gauge("file_storage_removals_held", "1: nothing is removed from the disk (clocks: by its age)", ["reason"],
             multiprocess_mode="mostrecent", registry=_OWN)
LAST_CHECK = Gauge("file_storage_last_check_timestamp_seconds", "When a check was last done to its end", ["check"],
                   multiprocess_mode="max", registry=_OWN)
VERIFIED = Counter("file_storage_verified_bytes", "Bytes that were read back and compared", ["by"], registry=_OWN)
DISK_FAILURES = Counter("file_storage_disk_failures", "Errors of the disk under uploads", ["of"], registry=_OWN)
READ_ONLY = Gauge("file_storage_read_only", "1 while a worker refuses uploads since the disk fails", ["of"],
                  multiprocess_mode="max", registry=_OWN)
MEMORY = Gauge("file_storage_resident_memory_bytes", "Memory of a worker, looked at every few seconds", ["worker"],
               multiprocess_mode="sum", registry=_OWN)

_shared: Path | None = None
_worker = "0"


def folder_of(data_root: Path) -> Path:
    """Where the workers of a data root keep their numbers; emptied by the supervisor when it starts."""
    return data_root / "run" / "metrics"


def share(folder: Path, worker: int) -> None:
    """Put the numbers of this process, from now on, beside those of the others; before anything is counted.

    `worker` is a number that no other running process has.  Raises OSError; then they stay in this process.
    """
    global _shared, _worker
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for kind in _KINDS:
        path = folder / f"{kind}_{worker}.db"
        if kind.startswith("gauge"):  # what is so now: the worker before took its own with it
            path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, _FILE_BYTES)
        finally:
            os.close(descriptor)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)  # the library takes it from nowhere else
    # the library has no types here
    values.ValueClass = values.MultiProcessValue(lambda: worker)  # type: ignore[no-untyped-call]
    _shared, _worker = folder, str(worker)


def render() -> bytes:
    """All numbers as text; blocks for some milliseconds."""
    if _shared is None:
        return generate_latest(_OWN)
    return generate_latest(_registry(_shared))


def _registry(folder: Path) -> CollectorRegistry:
    registry = CollectorRegistry()
    # nor here
    MultiProcessCollector(registry, path=str(folder))  # type: ignore[no-untyped-call]
    return registry


def serve(folder: Path, host: str, port: int) -> Callable[[], None]:
    """Answer GET /metrics from a thread of this process, which need not be a worker; a function that ends it.

    Raises OSError if nothing can listen there.
    """
    server, thread = start_http_server(port, addr=host, registry=_registry(folder))

    def end() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return end


@functools.cache
def _series(route: str, method: str, status: int) -> tuple[Counter, Histogram]:
    """Looked up once: the library's own way takes a lock and builds texts each time."""
    return REQUESTS.labels(route, method, status), DURATION.labels(route, method)


def count_request(*, route: str, method: str, status: int, seconds: float, bytes_in: int, bytes_out: int) -> None:
    """A request was answered; `route` is a template, so that the number of series does not grow with the requests."""
    requests, duration = _series(route, method if method in _METHODS else "other", status)
    requests.inc()
    duration.observe(seconds)
    if bytes_in:
        BYTES.labels("in", "worker").inc(bytes_in)
    if bytes_out:
        BYTES.labels("out", "worker").inc(bytes_out)
    if status == 429:
        THROTTLED.labels(route).inc()


def count_sweep(outcome: str) -> None:
    """A round of housekeeping ended, `ok` or `failed`."""
    SWEEPS.labels(outcome).inc()
    LAST_SWEEP.labels(outcome).set(time.time())


def sample(*, connections: int, in_use: int) -> None:
    """Note what is not counted but looked at."""
    POOL.labels("open").set(connections)
    POOL.labels("in_use").set(in_use)
    resident = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    MEMORY.labels(_worker).set(resident * _PAGE_BYTES)


def queued(queue: str) -> Any:
    """A context manager around work for a thread, from before it waits until it is done."""
    return QUEUE.labels(queue).track_inprogress()
