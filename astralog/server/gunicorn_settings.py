"""gunicorn's settings, made from AstraLog's; the names are gunicorn's."""

from typing import Any

from astralog.log import configure_logging
from astralog.server import (
    application,
    compressor_process,
    first_start,
    heartbeat,
    inheritance,
    lifecycle,
)
from astralog.server.addresses import are_inherited, check_addresses
from astralog.server.balance import Balance
from astralog.server.fixed_settings import check_fixed_settings
from astralog.server.http11 import MAX_HEADER_BYTES, MAX_HEADERS
from astralog.server.master import Master
from astralog.server.worker import Worker
from astralog.settings import InvalidSettings, Settings
from astralog.standard_streams import reopen_closed_streams

reopen_closed_streams()

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
http_parser = "python"

# Longer than the usual load balancer keeps an idle connection, so that it closes first. It also
# bounds the time to send a request's head.
keepalive = 75

# The most connections of a worker, as far as it may open so many files; beyond it, those are ended
# that have waited longest for their client, and first those that have shown no token.
worker_connections = 4096
limit_request_fields = MAX_HEADERS
limit_request_field_size = MAX_HEADER_BYTES

# Nothing that a proxy adds is used: whoever may add it, it changes nothing.
forwarder_headers = ""
secure_scheme_headers: dict[str, str] = {}
forwarded_allow_ips = "*"

configure_logging(_settings.log_level)
lifecycle.raise_open_files_limit()
heartbeat.keep_in_memory()


def on_starting(server: Any) -> None:
    """Prepare the master; end it if an address, the data directory or the tokens are unusable."""
    lifecycle.end_booting_workers_at_stops()
    Master.adopt(server, _settings)
    server.app.balance = Balance()
    try:
        check_fixed_settings(server.cfg)
        if not are_inherited():
            name = "ASTRALOG_BIND" if server.cfg.bind == [bind] else "gunicorn's bind"
            check_addresses(name, server.cfg.address)
        first_start.make_missing(_settings)
        server.cfg.inherited = inheritance.Inherited.read(_settings)
    except InvalidSettings as error:
        lifecycle.exit_for(error)
    application.hold_code(server.app, _settings)
    lifecycle.share_metrics(server)


def ssl_context(config: Any, default_ssl_context_factory: Any) -> Any:
    """Return the certificate as the master read it."""
    return config.inherited.tls


def when_ready(server: Any) -> None:
    """Say where the service listens; the address has the real port where the setting has 0."""
    lifecycle.announce(
        _settings,
        [listener.sock.getsockname() for listener in server.LISTENERS],
        is_inherited=server.systemd,
    )
    if _settings.compress != "none":
        compressor_process.start(server, _settings)


def pre_fork(server: Master, worker: Worker) -> None:
    """Note the worker, which is freed if its process cannot be started."""
    server.note_unstarted(worker)


def post_worker_init(worker: Worker) -> None:
    """Start what runs in a worker beside its requests."""
    lifecycle.start_queue(worker)
    lifecycle.start_tokens(worker)
    lifecycle.start_metrics(worker)


def worker_exit(server: Any, worker: Worker) -> None:
    """Stop the worker's commit queue."""
    lifecycle.stop_queue(worker)
    lifecycle.stop_metrics(worker)


def child_exit(server: Any, worker: Worker) -> None:
    """Let another worker take the place of one that has ended."""
    server.app.balance.leave(worker.share)


def pre_exec(server: Any) -> None:
    """Hand what was counted on to the master that this one starts at an upgrade (SIGUSR2)."""
    lifecycle.pass_metrics_on(server)


def on_exit(server: Any) -> None:
    """Say that this is the end."""
    compressor_process.stop(server)
    lifecycle.say_stopped()
