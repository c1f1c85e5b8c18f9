"""What happens around the serving: the checks and words of the start, and the hooks."""

import logging
import os
import resource
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from gunicorn.glogging import Logger

from astralog.auth import TOKEN_FILE_NAME
from astralog.log import LOG_FORMAT, LOG_TIME_FORMAT
from astralog.server.worker import Worker
from astralog.settings import InvalidSettings, Settings, service_links
from astralog.standard_streams import print_errors
from astralog.store.commit_queue import CommitQueue
from astralog.telemetry import slots
from astralog.telemetry.prometheus import Metrics

log = logging.getLogger(__name__)

#: The master kills a worker that takes longer to stop.
STOP_SECONDS = 9

#: Of these, a worker gives open requests this long, and then the drain this long.
REQUESTS_STOP_SECONDS = 4
DRAIN_STOP_SECONDS = 3

#: What a socket is bound to: a unix socket to a path, any other to a host and a port.
Address = str | tuple[Any, ...]

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


class ServerLogger(Logger):  # type: ignore[misc]
    """gunicorn's own log, in the service's format."""

    error_fmt = LOG_FORMAT
    datefmt = LOG_TIME_FORMAT


def exit_for(error: InvalidSettings) -> NoReturn:
    """End the process with one line for each problem."""
    print_errors(error.problems)
    sys.exit(1)


def raise_open_files_limit() -> None:
    """Allow as many connections as the system does; the usual limit of 1,024 is low."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def end_booting_workers_at_stops() -> None:
    """Let a worker that is only starting hear the signals that stop it.

    Between its fork and gunicorn's own handlers it would have the master's, which do nothing
    there: it would serve on until it is killed.
    """
    os.register_at_fork(
        before=lambda: _mask_stops(signal.SIG_BLOCK),
        after_in_parent=lambda: _mask_stops(signal.SIG_UNBLOCK),
        after_in_child=_end_at_stops,
    )


def _mask_stops(how: int) -> None:
    signal.pthread_sigmask(how, STOP_SIGNALS)


def _end_at_stops() -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: os._exit(0))
    _mask_stops(signal.SIG_UNBLOCK)


def announce(settings: Settings, addresses: Sequence[Address], is_inherited: bool) -> None:
    """Log the start in one line and, where the token was made here, print a line to try it."""
    if ignored := service_links():
        log.info("ignored, since Kubernetes makes them of its Services: %s", ", ".join(ignored))
    log.info(
        "listening on %s, %s, data in %s, sync %s%s",
        " and ".join(_url(settings, address) for address in addresses),
        "1 worker" if settings.workers == 1 else f"{settings.workers} workers",
        settings.data_dir.absolute(),
        settings.sync,
        ", on a socket that was passed in, not on ASTRALOG_BIND" if is_inherited else "",
    )
    if not (settings.tokens or settings.tokens_file):
        print_errors([_first_steps(settings, addresses[0])])


def say_stopped() -> None:
    """Log the end."""
    log.info("stopped")


def _url(settings: Settings, address: Address, host: str | None = None) -> str:
    """Return the service's address as a URL, with another `host` where one is given."""
    if isinstance(address, str):
        return f"unix:{address}"
    scheme = "https" if settings.tls_cert else "http"
    host = host or (f"[{address[0]}]" if ":" in address[0] else address[0])
    return f"{scheme}://{host}:{address[1]}"


def _first_steps(settings: Settings, address: Address) -> str:
    """Return commands that send a log, find it and show the token for the status page.

    The token is read from its file, so that it is not printed.
    """
    data_dir = settings.data_dir.absolute()
    token = shlex.quote(str(data_dir / TOKEN_FILE_NAME))
    if isinstance(address, str):
        target = f"--unix-socket {shlex.quote(address)} http://localhost/v1/drain"
        page = "http://localhost/status, behind a proxy"
    else:
        url = _url(settings, address, "localhost")
        target, page = f"{url}/v1/drain", f"{url}/status"
    if settings.tls_cert:
        target = f"--cacert {shlex.quote(os.path.abspath(settings.tls_cert))} {target}"
    log_line = (
        '{"logs":[{"project_id":"demo","timestamp":"2024-05-31T15:30:45Z","level":"info",'
        '"service":"shell","message":"Hello, AstraLog"}]}'
    )
    command = shlex.quote(str(Path(sys.executable).with_name("astralog")))
    return f"""
Try it:

  curl {target} -H "Authorization: $(cat {token})" -d '{log_line}'

Search:

  {command} tail --data-dir {shlex.quote(str(data_dir))} --grep hello

Status page, {page}, with this token:

  cat {token}
"""


def start_queue(worker: Worker) -> None:
    """Start a worker's queue, and bound the worker's own part of the stop."""
    worker.cfg.set("graceful_timeout", REQUESTS_STOP_SECONDS)
    # gunicorn looks its settings up 20 times for each head that it parses; as plain attributes that
    # is 10 of 75 µs less.
    worker.cfg.__dict__.update({name: item.get() for name, item in worker.cfg.settings.items()})
    _queue_of(worker).start()


def start_tokens(worker: Worker) -> None:
    """Follow the file of tokens in a worker."""
    worker.wsgi.extensions["astralog_tokens"].start()


def stop_queue(worker: Worker) -> None:
    """Store what a worker has queued; gunicorn calls this in the master too."""
    if worker.pid == os.getpid() and hasattr(worker, "wsgi"):
        _queue_of(worker).stop(DRAIN_STOP_SECONDS)
        worker.wsgi.extensions["astralog_rejections"].flush()


def _queue_of(worker: Worker) -> CommitQueue:
    queue: CommitQueue = worker.wsgi.extensions["astralog"]
    return queue


def share_metrics(server: Any) -> None:
    """Make the file through which the workers share what they count; the service can do without."""
    server.app.metrics_fd = None
    server.app.started_at = time.time()
    try:
        server.app.metrics_fd = slots.open_shared_file(os.environ)
    except OSError as error:
        log.error("the workers cannot share their metrics: %s", error)


def pass_metrics_on(server: Any) -> None:
    """Let the next master, which this process becomes, go on with what was counted."""
    if server.app.metrics_fd is not None:
        slots.pass_on(server.app.metrics_fd, server.cfg.env_orig)


def start_metrics(worker: Worker) -> None:
    """Publish what a worker counts, from now on."""
    _metrics_of(worker).start(worker.app.metrics_fd)
    if overview := worker.wsgi.extensions.get("astralog_overview"):
        overview.start(worker.app.metrics_fd, worker.app.started_at)


def stop_metrics(worker: Worker) -> None:
    """Publish what a worker has counted; gunicorn calls this in the master too."""
    if worker.pid == os.getpid() and hasattr(worker, "wsgi"):
        _metrics_of(worker).stop()


def _metrics_of(worker: Worker) -> Metrics:
    metrics: Metrics = worker.wsgi.extensions["astralog_metrics"]
    return metrics
