"""gunicorn's settings, made from AstraLog's; gunicorn reads this file by itself."""

import contextlib
import os
from typing import Any

from astralog import server as astralog_server
from astralog.settings import InvalidSettings, Settings
from astralog.worker import Worker

try:
    _settings = Settings.from_environ()
except InvalidSettings as error:
    astralog_server.exit_for(error)

bind = _settings.bind
certfile = _settings.tls_cert or None
keyfile = _settings.tls_key or None
workers = _settings.workers
worker_class = Worker
logger_class = astralog_server.ServerLogger
loglevel = "info" if _settings.log_level == "debug" else "warning"
graceful_timeout = astralog_server.STOP_SECONDS
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
worker_tmp_dir = "/dev/shm" if os.path.isdir("/dev/shm") else None  # nosec B108

astralog_server.configure_logging(_settings.log_level)
astralog_server.raise_open_files_limit()


def on_starting(server: Any) -> None:
    """Prepare the master; stop the start where the data directory or the tokens are of no use."""
    astralog_server.end_booting_workers_at_stops()
    try:
        server.app.tokens = astralog_server.check_start(_settings)
    except InvalidSettings as error:
        astralog_server.exit_for(error)


def on_reload(server: Any) -> None:
    """Keep the newest tokens that were of use, for workers that find their file faulty."""
    with contextlib.suppress(InvalidSettings):
        server.app.tokens = astralog_server.check_start(_settings)


def ssl_context(config: Any, default_ssl_context_factory: Any) -> Any:
    """Bound the time for setting TLS up."""
    return astralog_server.bound_handshakes(default_ssl_context_factory())


def when_ready(server: Any) -> None:
    """Say where the service listens; the address has the real port where the setting has 0."""
    astralog_server.announce(_settings, server.LISTENERS[0].sock.getsockname())


def post_worker_init(worker: Worker) -> None:
    """Start the worker's pipeline."""
    astralog_server.start_pipeline(worker)


def worker_exit(server: Any, worker: Worker) -> None:
    """Stop the worker's pipeline."""
    astralog_server.stop_pipeline(worker)
