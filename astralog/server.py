"""What gunicorn needs to serve AstraLog: its worker class and the hooks around it."""

import contextlib
import logging
import os
import resource
import shlex
import sys
import time
from collections.abc import Iterator
from typing import Any

import gevent
from gunicorn.glogging import Logger
from gunicorn.workers.ggevent import GeventWorker

from astralog.auth import TOKEN_FILE_NAME, load_tokens
from astralog.directory import make_directory
from astralog.pipeline import Pipeline
from astralog.settings import InvalidSettings, Settings

log = logging.getLogger(__name__)

#: The master kills a worker that takes longer to stop.
STOP_SECONDS = 9

#: Of these, a worker gives open requests this long, and then the drain this long.
REQUESTS_STOP_SECONDS = 4
DRAIN_STOP_SECONDS = 2

#: A connection that is idle when the stop begins gets this long to send one more request.
IDLE_STOP_SECONDS = 0.5

LOG_FORMAT = "%(asctime)s %(levelname)s [%(process)d] %(message)s"
LOG_TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"


class ServerLogger(Logger):  # type: ignore[misc]
    """gunicorn's own log, in the service's format."""

    error_fmt = LOG_FORMAT
    datefmt = LOG_TIME_FORMAT


class Worker(GeventWorker):  # type: ignore[misc]
    """A gevent worker that does not wait for idle connections when it stops."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._idle: set[gevent.Greenlet[..., Any]] = set()

    @contextlib.contextmanager
    def timeout_ctx(self) -> Iterator[None]:
        """Bound the wait for the next request's head, and know who waits."""
        connection = gevent.getcurrent()
        self._idle.add(connection)
        try:
            with gevent.Timeout(self.cfg.keepalive, False):
                yield
        finally:
            self._idle.discard(connection)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Stop accepting, answer what is in flight, and close what is idle."""
        super().handle_exit(sig, frame)
        gevent.spawn(self._close_idle)

    def _close_idle(self) -> None:
        while True:
            gevent.sleep(IDLE_STOP_SECONDS)
            gevent.killall(list(self._idle), block=False)


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
    _pipeline_of(worker).start()


def stop_pipeline(worker: Worker) -> None:
    """Store what a worker has queued; gunicorn calls this in the master too."""
    if worker.pid == os.getpid() and hasattr(worker, "wsgi"):
        _pipeline_of(worker).stop(DRAIN_STOP_SECONDS)


def _pipeline_of(worker: Worker) -> Pipeline:
    pipeline: Pipeline = worker.wsgi.extensions["astralog"]
    return pipeline
