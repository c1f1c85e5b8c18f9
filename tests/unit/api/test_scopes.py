"""Every route of the app, with the scope that it needs."""

from dataclasses import replace

import pytest
from flask import Flask
from flask.testing import FlaskClient

from astralog.api.dispatch import Dispatcher
from astralog.app import create_app
from astralog.settings import Settings
from tests.support.service import write_tokens

#: The scope that each route needs: None for a route without a token. A new route goes here.
SCOPES = {
    "POST /v1/drain": "write",
    "POST /v1/logs": "write",
    "POST /v1/traces": None,
    "POST /v1/metrics": None,
    "GET /v1/search": "read",
    "GET /health": None,
    "GET /ready": None,
    "GET /metrics": "read",
    "GET /": None,
    "GET /docs": None,
    "GET /docs/<asset>": None,
    "GET /openapi.json": None,
    "GET /status": None,
    "GET /status/<asset>": None,
    "GET /status/data": "read",
    "GET /status/history": "read",
    "GET /status/logs": "read",
    "GET /status/log": "read",
}

#: The same for the protocols that the dispatcher imports with their first request.
PROTOCOL_SCOPES = {
    "POST /services/collector": "write",
    "POST /services/collector/event": "write",
    "POST /services/collector/raw": "write",
    "GET /services/collector/health": None,
    "POST /loki/api/v1/push": "write",
    "POST /elasticsearch/_bulk": "write",
    "POST /elasticsearch/org-xyz/_bulk": "write",
}

ROUTES = SCOPES | PROTOCOL_SCOPES

TOKENS = {"write": "writer", "read": "reader"}


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Flask:
    """Return an app with a token for each scope."""
    directory = tmp_path_factory.mktemp("data")
    lines = "".join(f"{token} allow={scope}\n" for scope, token in TOKENS.items())
    path = write_tokens(directory / "tokens", lines)
    return create_app(replace(Settings(data_dir=directory), tokens="", tokens_file=str(path)))


def routes(app: Flask) -> set[str]:
    return {
        f"{method} {rule.rule}"
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD"}
    }


def answer_to(client: FlaskClient, route: str, token: str | None) -> tuple[int, str]:
    """Return the status of a request from another machine, and its text."""
    method, path = route.split(" ")
    headers = {"Authorization": token} if token else {}
    peer = {"REMOTE_ADDR": "192.0.2.1"}
    path = path.replace("<asset>", "none")
    answer = client.open(path, method=method, headers=headers, environ_base=peer, data=b"{")
    return answer.status_code, answer.text


def test_every_route_has_a_scope(app: Flask) -> None:
    """A route that is added without one fails here."""
    assert routes(app) == SCOPES.keys()
    protocols = {route.split("/")[1] for route in PROTOCOL_SCOPES}
    assert isinstance(app.wsgi_app, Dispatcher)
    assert app.wsgi_app.protocols.keys() == protocols


@pytest.mark.parametrize("route", ROUTES)
def test_route_is_open_to_its_scope_only(app: Flask, route: str) -> None:
    """The other scope is 403, in the path's own form; without a token it is 401."""
    client, needed = app.test_client(), ROUTES[route]
    for scope, token in TOKENS.items():
        status, text = answer_to(client, route, token)
        is_forbidden = status == 403 and "forbidden_scope" in text
        assert is_forbidden == (needed not in (None, scope))
    assert (answer_to(client, route, None)[0] == 401) == (needed is not None)
