"""gunicorn's settings that must stay as they are, though its command line could change them."""

from typing import Any

from astralog.server.worker import Worker
from astralog.settings import InvalidSettings

#: What the service does not do, or only in one way: the one value that a setting may have, and why.
FIXED: dict[str, tuple[Any, str]] = {
    "accesslog": (
        None,
        "there is no access log; the proxy in front writes one, and /metrics counts",
    ),
    "dirty_workers": (0, "there are no other workers than those that take logs"),
    "http2_cleartext": ("off", "the service speaks HTTP/1.1 alone"),
    "http_parser": ("python", "the bounds on a request are those of this parser"),
    "http_protocols": (["h1"], "the service speaks HTTP/1.1 alone"),
    "logconfig": (None, "the service logs to stderr, as ASTRALOG_LOG_LEVEL says"),
    "logconfig_json": (None, "the service logs to stderr, as ASTRALOG_LOG_LEVEL says"),
    "max_requests": (0, "no worker has to be replaced, and that would end its connections"),
    "preload_app": (False, "each worker opens its files for itself"),
    "protocol": ("http", "the service speaks HTTP/1.1 alone"),
    "proxy_protocol": ("off", "the service speaks HTTP/1.1 alone"),
    "reuse_port": (False, "connections that wait for a worker would be lost with it"),
    "statsd_host": (None, "the service is measured through /metrics"),
    "syslog": (False, "the service logs to stderr, as ASTRALOG_LOG_LEVEL says"),
    "threads": (1, "a worker serves all its connections in one thread"),
}

#: The least value that a setting may have.
LEAST = {"keepalive": 1, "worker_connections": 1}


def check_fixed_settings(cfg: Any) -> None:
    """Reject what gunicorn was told and the service would not do.

    Raises InvalidSettings, with a line for each setting.
    """
    problems = [
        f"gunicorn's {name}: Must stay {value!r}: {reason}."
        for name, (value, reason) in FIXED.items()
        if getattr(cfg, name) != value
    ]
    problems += [
        f"gunicorn's {name}: Must be at least {least}."
        for name, least in LEAST.items()
        if getattr(cfg, name) < least
    ]
    if not issubclass(cfg.worker_class, Worker):
        problems.append("gunicorn's worker_class: Must stay AstraLog's own.")
    if problems:
        raise InvalidSettings(problems)
