"""Log lines of the service's own processes: JSON objects on standard error."""

import logging
import re
import socket
import sys
from collections.abc import Callable

import orjson
import structlog

# JSON leaves these as they are; a terminal obeys some of them, and some readers begin a line at others
_UNPRINTABLE = re.compile(rb"\x7f|\xc2[\x80-\x9f]|\xe2\x80[\xa8-\xae]|\xe2\x81[\xa6-\xa9]")


def _to_line(entry: object, default: Callable[[object], object] | None = None) -> bytes:
    return _UNPRINTABLE.sub(lambda match: b"\\u%04x" % ord(match[0].decode()), orjson.dumps(entry, default=default))


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """Not how a look for the name of a host ended that nobody waited for: its time-out was the error, and was told."""
    return not (record.exc_info and isinstance(record.exc_info[1], socket.gaierror)
                and " exception was never retrieved" in record.getMessage())


def configure(level: str) -> None:
    """Begin to log from this level on; to be called once."""
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[structlog.processors.add_log_level, structlog.processors.TimeStamper(fmt="iso"),
                    structlog.processors.format_exc_info, structlog.processors.JSONRenderer(_to_line)],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.BytesLoggerFactory(sys.stderr.buffer), cache_logger_on_first_use=True)
    # what libraries have to say
    formatter = structlog.stdlib.ProcessorFormatter(processors=[
        structlog.stdlib.ProcessorFormatter.remove_processors_meta, structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"), structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer()])
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    handler.addFilter(_is_worth_a_line)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
