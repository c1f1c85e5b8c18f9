"""The service's own log: on stderr, one line per event, times in UTC, and no line twice in a row.

A failure that repeats is logged when it begins and when it ends (`LogOnce`); an exception that
nobody expected is logged with its traceback at most once a minute per place (`log_exception`).
"""

import logging
import time
from collections.abc import Hashable
from typing import Any

from astralog.standard_streams import escape

LOG_FORMAT = "%(asctime)s %(levelname)s [%(process)d] %(message)s"
LOG_TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"

#: Moves a terminal's cursor to the start of its line and erases the line.
ERASE_LINE = "\r\x1b[K"

#: Seconds between two tracebacks from one place; those in between are counted.
TRACEBACK_SECONDS = 60.0


class LineFormatter(logging.Formatter):
    """Write an event on one line, even if it repeats text of others; a traceback follows it."""

    def __init__(self, line_format: str, time_format: str | None = None, prefix: str = "") -> None:
        super().__init__(line_format, time_format)
        self._prefix = prefix

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        return self._prefix + escape(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802  # logging's name
        return escape(super().formatException(ei), keep="\n")


def configure_logging(level: str, prefix: str = "") -> None:
    """Send the service's own log to stderr, each line after `prefix`."""
    logging.Formatter.converter = time.gmtime
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter(LOG_FORMAT, LOG_TIME_FORMAT, prefix))
    logger = logging.getLogger("astralog")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(level.upper())


class LogOnce:
    """Log an episode of failures with one line when it begins and one when it ends.

    A failure of another kind within an episode is logged too, since its cause differs. Instances
    are not locked: with several threads, a line may appear twice.
    """

    def __init__(self, logger: logging.Logger, level: int = logging.ERROR) -> None:
        self._logger = logger
        self._level = level
        self._kind: Hashable = None

    def __bool__(self) -> bool:
        """Return whether an episode is under way."""
        return self._kind is not None

    def fail(self, kind: Hashable, message: str, *args: object) -> None:
        """Log the message, unless the last failure of this episode was of the same kind."""
        if kind != self._kind:
            self._kind = kind
            self._logger.log(self._level, message, *args)

    def end(self, message: str = "", *args: object) -> None:
        """End the episode, if one is under way, and log the message, if there is one."""
        if self._kind is not None:
            self._kind = None
            if message:
                self._logger.warning(message, *args)


#: The time of the last traceback per place, and the number of suppressed ones since.
_tracebacks: dict[tuple[str, str], tuple[float, int]] = {}


def log_exception(logger: logging.Logger, message: str) -> None:
    """Log the exception being handled, with its traceback at most once a minute per message.

    The message names the place, so it must be a constant: it never contains client data. With
    several threads, a traceback may appear twice.
    """
    place = (logger.name, message)
    now = time.monotonic()
    logged_at, left_out = _tracebacks.get(place, (-TRACEBACK_SECONDS, 0))
    if now - logged_at < TRACEBACK_SECONDS:
        _tracebacks[place] = (logged_at, left_out + 1)
        return
    _tracebacks[place] = (now, 0)
    more = f" ({left_out} more since the last traceback)" if left_out else ""
    logger.exception(message + more)
