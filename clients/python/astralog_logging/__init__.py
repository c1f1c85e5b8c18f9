"""Send log records of Python programs to AstraLog."""

from astralog_logging.handler import AstraLogHandler, __version__

__all__ = ["AstraLogHandler", "__version__"]
