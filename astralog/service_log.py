"""The service's own log: on stderr, a line for each event, times in UTC."""

import logging
import time

LOG_FORMAT = "%(asctime)s %(levelname)s [%(process)d] %(message)s"
LOG_TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"

#: What a terminal takes to begin its line anew, where a line that renews itself stands in it.
ERASE_LINE = "\r\x1b[K"


def configure_logging(level: str, prefix: str = "") -> None:
    """Send the service's own log to stderr, each line after `prefix`."""
    formatter = logging.Formatter(prefix + LOG_FORMAT, LOG_TIME_FORMAT)
    logging.Formatter.converter = time.gmtime
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logger = logging.getLogger("astralog")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(level.upper())
