"""gunicorn's settings, made from AstraLog's; the names are gunicorn's."""

import sys
from typing import Any, NoReturn

from gunicorn.glogging import Logger
from gunicorn.workers import base

from astralog.log import LOG_FORMAT, LOG_TIME_FORMAT, configure_logging
from astralog.resources import raise_open_files_limit
from astralog.server import start
from astralog.server.http11_request import MAX_HEADER_BYTES, MAX_HEADERS
from astralog.server.master import Master, end_booting_workers_at_stops, read_state
from astralog.server.worker import STOP_SECONDS, Heartbeat, Worker
from astralog.settings import InvalidSettings, Settings
from astralog.standard_streams import print_errors, reopen_closed_streams


class ServerLogger(Logger):
    """gunicorn's own log, in the service's format."""

    error_fmt = LOG_FORMAT
    datefmt = LOG_TIME_FORMAT


def _exit_for(error: InvalidSettings) -> NoReturn:
    print_errors(error.problems)
    sys.exit(1)


reopen_closed_streams()

try:
    _settings = Settings.from_environ()
except InvalidSettings as error:
    _exit_for(error)

bind = _settings.bind
certfile = _settings.tls_cert or None
keyfile = _settings.tls_key or None
workers = _settings.workers
worker_class = Worker
logger_class = ServerLogger
loglevel = "info" if _settings.log_level == "debug" else "warning"
graceful_timeout = STOP_SECONDS
control_socket_disable = True
http_parser = "python"

# Longer than load balancers usually keep an idle connection, so that they close it first. It also
# bounds the time to send a request's head.
keepalive = 75

# The most connections of a worker, if it may open so many files. Beyond it, those that have waited
# longest for their client are ended, and first those that have shown no token.
worker_connections = 4096
limit_request_fields = MAX_HEADERS
limit_request_field_size = MAX_HEADER_BYTES

# No header of a proxy is used, so it does not matter who may add one.
forwarder_headers = ""
secure_scheme_headers: dict[str, str] = {}
forwarded_allow_ips = "*"

configure_logging(_settings.log_level)
raise_open_files_limit()
base.WorkerTmp = Heartbeat


def on_starting(server: Any) -> None:
    """Prepare the master; end it if an address, the data directory or the tokens are unusable."""
    end_booting_workers_at_stops()
    try:
        start.check_gunicorn_settings(server.cfg, server.app.app_uri)
        if not start.are_inherited():
            name = "ASTRALOG_BIND" if server.cfg.bind == [bind] else "gunicorn's bind"
            start.check_addresses(name, server.cfg.address)
        start.make_missing(_settings)
        Master.adopt(server, read_state(_settings))
    except InvalidSettings as error:
        _exit_for(error)


def when_ready(server: Master) -> None:
    """Log the addresses; they have the real port if the setting has 0."""
    addresses = [listener.sock.getsockname() for listener in server.LISTENERS]
    start.announce(_settings, addresses, is_inherited=server.systemd)


def worker_exit(server: Master, worker: Worker) -> None:
    worker.stop_services()


# gunicorn calls these methods of the master, the first two with a worker.
pre_fork = Master.prepare
child_exit = Master.note_exit
pre_exec = Master.pass_metrics_on
on_exit = Master.finish
