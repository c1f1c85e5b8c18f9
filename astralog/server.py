"""What happens around the serving: the checks and words of the start, and the hooks."""

import logging
import os
import resource
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from gunicorn.glogging import Logger

from astralog import metricfiles
from astralog.auth import TOKEN_FILE_NAME, load_tokens
from astralog.directory import make_directory
from astralog.metrics import Metrics
from astralog.pipeline import Pipeline
from astralog.settings import InvalidSettings, Settings
from astralog.worker import Worker

log = logging.getLogger(__name__)

#: The master kills a worker that takes longer to stop.
STOP_SECONDS = 9

#: Of these, a worker gives open requests this long, and then the drain this long.
REQUESTS_STOP_SECONDS = 4
DRAIN_STOP_SECONDS = 2

LOG_FORMAT = "%(asctime)s %(levelname)s [%(process)d] %(message)s"
LOG_TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"


class ServerLogger(Logger):  # type: ignore[misc]
    """gunicorn's own log, in the service's format."""

    error_fmt = LOG_FORMAT
    datefmt = LOG_TIME_FORMAT


def configure_logging(level: str) -> None:
    """Send the service's own log to stderr, one line an event, times in UTC."""
    formatter = logging.Formatter(LOG_FORMAT, LOG_TIME_FORMAT)
    logging.Formatter.converter = time.gmtime
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logger = logging.getLogger("astralog")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(level.upper())


def check_start(settings: Settings) -> None:
    """Make the data directory and the first token, so that what is wrong stops the start.

    Raises InvalidSettings.
    """
    try:
        make_directory(settings.data_dir)
        if not os.access(settings.data_dir, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError("not readable and writable")
        load_tokens(settings)
    except OSError as error:
        problem = f"ASTRALOG_DATA_DIR: {settings.data_dir}: {error.strerror or error}."
        raise InvalidSettings([problem]) from None


def exit_for(error: InvalidSettings) -> None:
    """End the process with one line for each problem."""
    for problem in error.problems:
        print(problem, file=sys.stderr)
    sys.exit(1)


def raise_open_files_limit() -> None:
    """Allow as many connections as the system does; the usual limit of 1,024 is low."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def announce(settings: Settings, address: str | tuple[Any, ...]) -> None:
    """Log the start in one line and, where the token was made here, print a line to try it."""
    log.info(
        "listening on %s, %d workers, data in %s, sync %s",
        _url(address),
        settings.workers,
        settings.data_dir.absolute(),
        settings.sync,
    )
    if not (settings.tokens or settings.tokens_file):
        print(_curl_line(settings, address), file=sys.stderr, flush=True)


def _url(address: str | tuple[Any, ...]) -> str:
    if isinstance(address, str):
        return f"unix:{address}"
    host, port = address[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _curl_line(settings: Settings, address: str | tuple[Any, ...]) -> str:
    """Return a command that sends a log, with the token read from its file."""
    if isinstance(address, str):
        target = f"--unix-socket {shlex.quote(address)} http://localhost/v1/drain"
    else:
        target = f"http://localhost:{address[1]}/v1/drain"
    token = shlex.quote(str((settings.data_dir / TOKEN_FILE_NAME).absolute()))
    log_line = (
        '{"logs":[{"project_id":"demo","timestamp":"2024-05-31T15:30:45Z","level":"info",'
        '"service":"shell","message":"Hello, AstraLog"}]}'
    )
    return f"""\nTry it:\n\n  curl {target} -H "Authorization: $(cat {token})" -d '{log_line}'\n"""


def start_pipeline(worker: Worker) -> None:
    """Start a worker's pipeline, and bound the worker's own part of the stop."""
    worker.cfg.set("graceful_timeout", REQUESTS_STOP_SECONDS)
    # gunicorn looks its settings up 24 times a request; as plain attributes that is 13 µs less.
    worker.cfg.__dict__.update({name: item.get() for name, item in worker.cfg.settings.items()})
    _pipeline_of(worker).start()


def stop_pipeline(worker: Worker) -> None:
    """Store what a worker has queued; gunicorn calls this in the master too."""
    if worker.pid == os.getpid() and hasattr(worker, "wsgi"):
        _pipeline_of(worker).stop(DRAIN_STOP_SECONDS)


def _pipeline_of(worker: Worker) -> Pipeline:
    pipeline: Pipeline = worker.wsgi.extensions["astralog"]
    return pipeline


def share_metrics() -> None:
    """Make the directory through which the workers share what they count."""
    metricfiles.make(_metrics_path())


def start_metrics(worker: Worker) -> None:
    """Write out what a worker counts, from now on."""
    _metrics_of(worker).start()


def stop_metrics(worker: Worker) -> None:
    """Write out what a worker has counted; gunicorn calls this in the master too."""
    if worker.pid == os.getpid() and hasattr(worker, "wsgi"):
        _metrics_of(worker).flush()


def bury_metrics(worker: Worker) -> None:
    """Keep what a dead worker counted."""
    metricfiles.bury(_metrics_path(), worker.pid)


def unshare_metrics() -> None:
    """Remove what the workers shared."""
    metricfiles.remove(_metrics_path())


def _metrics_path() -> Path:
    return Path(os.environ[metricfiles.VARIABLE])


def _metrics_of(worker: Worker) -> Metrics:
    metrics: Metrics = worker.wsgi.extensions["astralog_metrics"]
    return metrics
