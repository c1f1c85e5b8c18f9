"""gunicorn's settings, made from AstraLog's; gunicorn reads this file by itself."""

import contextlib
import os
import secrets
import tempfile
from typing import Any

_memory = "/dev/shm" if os.path.isdir("/dev/shm") else tempfile.gettempdir()  # nosec B108

# prometheus_client shares its numbers between processes only where this is set when it is first
# imported. A reload runs this file again, and the directory stays; an upgraded master inherits
# the variable, and takes a directory of its own.
_metrics_name = f"astralog-metrics-{os.getpid()}-"
if _metrics_name not in os.environ.get("PROMETHEUS_MULTIPROC_DIR", ""):
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = f"{_memory}/{_metrics_name}{secrets.token_hex(8)}"

from astralog.server import first_start, lifecycle  # noqa: E402
from astralog.server.worker import Worker  # noqa: E402
from astralog.settings import InvalidSettings, Settings  # noqa: E402

try:
    _settings = Settings.from_environ()
except InvalidSettings as error:
    lifecycle.exit_for(error)

bind = _settings.bind
certfile = _settings.tls_cert or None
keyfile = _settings.tls_key or None
workers = _settings.workers
worker_class = Worker
logger_class = lifecycle.ServerLogger
loglevel = "info" if _settings.log_level == "debug" else "warning"
graceful_timeout = lifecycle.STOP_SECONDS
control_socket_disable = True

# Longer than the usual load balancer keeps an idle connection, so that it closes first. It also
# bounds the time to send a request's head.
keepalive = 75

# What a connection may cost before it has shown a token: its head is held in memory.
worker_connections = 4096
limit_request_fields = 40
limit_request_field_size = 4094

# Nothing that a proxy adds is used: whoever may add it, it changes nothing.
forwarder_headers = ""
secure_scheme_headers: dict[str, str] = {}
forwarded_allow_ips = "*"

# The heartbeat must not wait for the disk that the segments fill; gunicorn unlinks its file.
worker_tmp_dir = _memory

lifecycle.configure_logging(_settings.log_level)
lifecycle.raise_open_files_limit()


def on_starting(server: Any) -> None:
    """Prepare the master; stop the start where the data directory or the tokens are of no use."""
    lifecycle.end_booting_workers_at_stops()
    try:
        server.app.tokens = first_start.check_start(_settings)
    except InvalidSettings as error:
        lifecycle.exit_for(error)


def on_reload(server: Any) -> None:
    """Keep the newest tokens that were of use, for workers that find their file faulty."""
    with contextlib.suppress(InvalidSettings):
        server.app.tokens = first_start.check_start(_settings)


def ssl_context(config: Any, default_ssl_context_factory: Any) -> Any:
    """Bound the time for setting TLS up."""
    return lifecycle.bound_handshakes(default_ssl_context_factory())


def when_ready(server: Any) -> None:
    """Say where the service listens; the address has the real port where the setting has 0."""
    lifecycle.share_metrics()
    lifecycle.announce(_settings, server.LISTENERS[0].sock.getsockname())


def post_worker_init(worker: Worker) -> None:
    """Start the worker's commit queue."""
    lifecycle.start_queue(worker)
    lifecycle.start_metrics(worker)


def worker_exit(server: Any, worker: Worker) -> None:
    """Stop the worker's commit queue."""
    lifecycle.stop_queue(worker)
    lifecycle.stop_metrics(worker)


def child_exit(server: Any, worker: Worker) -> None:
    """Keep what a dead worker counted."""
    lifecycle.merge_metrics(worker)


def on_exit(server: Any) -> None:
    """Remove what the workers shared."""
    lifecycle.unshare_metrics()
