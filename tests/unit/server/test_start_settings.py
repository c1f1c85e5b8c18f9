"""gunicorn settings that the service does not support stop the start with an explanation."""

from typing import Any

import pytest
from gunicorn.config import Config

from astralog.server.start import APPLICATIONS, FIXED, LEAST, check_gunicorn_settings
from astralog.server.worker import Worker
from astralog.settings import InvalidSettings


@pytest.fixture
def cfg() -> Config:
    """Return gunicorn's settings as the service sets them."""
    made = Config()
    made.set("worker_class", Worker)
    made.set("http_parser", "python")
    return made


#: Another value than the one that a setting may have.
OTHERS: dict[str, Any] = {
    "accesslog": "-",
    "dirty_workers": 1,
    "http2_cleartext": "upgrade",
    "http_parser": "fast",
    "http_protocols": "h2,h1",
    "logconfig": "log.ini",
    "logconfig_json": "log.json",
    "max_requests": 1000,
    "preload_app": True,
    "protocol": "uwsgi",
    "proxy_protocol": "v1",
    "reuse_port": True,
    "statsd_host": "localhost:8125",
    "syslog": True,
    "threads": 4,
}


def test_own_settings_are_accepted(cfg: Config) -> None:
    """Also others that do not affect any promise."""
    check_gunicorn_settings(cfg, APPLICATIONS[0])
    cfg.set("timeout", 60)
    cfg.set("backlog", 100)
    cfg.set("worker_connections", 1)
    cfg.set("keepalive", 1)
    check_gunicorn_settings(cfg, APPLICATIONS[0])


@pytest.mark.parametrize("name", FIXED)
def test_unsupported_settings_are_rejected(cfg: Config, name: str) -> None:
    """Each setting is named, with the reason."""
    cfg.set(name, OTHERS[name])
    with pytest.raises(InvalidSettings) as error:
        check_gunicorn_settings(cfg, APPLICATIONS[0])
    (problem,) = error.value.problems
    value, reason = FIXED[name]
    assert f"gunicorn's {name}: Must stay {value!r}: {reason}." == problem


@pytest.mark.parametrize("name", LEAST)
def test_settings_that_serve_no_request_are_rejected(cfg: Config, name: str) -> None:
    """A timeout of zero, or no connections, would let the service serve no request."""
    cfg.set(name, LEAST[name] - 1)
    with pytest.raises(InvalidSettings, match=f"gunicorn's {name}: Must be at least {LEAST[name]}"):
        check_gunicorn_settings(cfg, APPLICATIONS[0])


def test_all_wrong_settings_are_named_at_once(cfg: Config) -> None:
    """Another worker class would keep none of the promises."""
    cfg.set("worker_class", "sync")
    cfg.set("threads", 1)
    cfg.set("max_requests", 7)
    with pytest.raises(InvalidSettings) as error:
        check_gunicorn_settings(cfg, APPLICATIONS[0])
    assert ["max_requests", "worker_class"] == [
        problem.partition(": ")[0].removeprefix("gunicorn's ") for problem in error.value.problems
    ]


@pytest.mark.parametrize("app_uri", ["wsgi:other", "mine:app"])
def test_other_application_is_rejected(cfg: Config, app_uri: str) -> None:
    for known in APPLICATIONS:
        check_gunicorn_settings(cfg, known)
    with pytest.raises(InvalidSettings, match="gunicorn's application: Must be wsgi:app"):
        check_gunicorn_settings(cfg, app_uri)
