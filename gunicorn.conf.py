"""gunicorn's settings, made from AstraLog's; gunicorn reads this file by itself."""

import contextlib
from typing import Any

from astralog.server import first_start, heartbeat, lifecycle
from astralog.server.worker import Worker
from astralog.service_log import configure_logging
from astralog.settings import InvalidSettings, Settings

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

configure_logging(_settings.log_level)
lifecycle.raise_open_files_limit()
heartbeat.keep_in_memory()


def on_starting(server: Any) -> None:
    """Prepare the master; stop the start where the data directory or the tokens are of no use."""
    lifecycle.end_booting_workers_at_stops()
    try:
        server.app.tokens = first_start.check_start(_settings)
    except InvalidSettings as error:
        lifecycle.exit_for(error)
    lifecycle.share_metrics(server)


def on_reload(server: Any) -> None:
    """Keep the newest tokens that were of use, for workers that find their file faulty."""
    with contextlib.suppress(InvalidSettings):
        server.app.tokens = first_start.check_start(_settings)


def ssl_context(config: Any, default_ssl_context_factory: Any) -> Any:
    """Bound the time for setting TLS up."""
    return lifecycle.bound_handshakes(default_ssl_context_factory())


def when_ready(server: Any) -> None:
    """Say where the service listens; the address has the real port where the setting has 0."""
    lifecycle.announce(_settings, server.LISTENERS[0].sock.getsockname())


def post_worker_init(worker: Worker) -> None:
    """Start the worker's commit queue."""
    lifecycle.start_queue(worker)
    lifecycle.start_metrics(worker)


def worker_exit(server: Any, worker: Worker) -> None:
    """Stop the worker's commit queue."""
    lifecycle.stop_queue(worker)
    lifecycle.stop_metrics(worker)


def pre_exec(server: Any) -> None:
    """Hand what was counted on to the master that this one starts at an upgrade (SIGUSR2)."""
    lifecycle.pass_metrics_on(server)
