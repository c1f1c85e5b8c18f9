"""Every path and method of the app, and the answers to each kind of token."""

import io
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import msgspec
import pytest
from flask import Flask
from werkzeug.test import run_wsgi_app

from astralog.api import elasticsearch, hec, loki
from astralog.api.dispatch import Dispatcher
from astralog.app import create_app, services_of
from astralog.settings import Settings
from tests.support.service import make_log, write_tokens

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

#: The scope that each request needs, None if it needs no token. A new route goes here. A request
#: that is missing here is 404 or 405, the same for all.
SCOPES: dict[str, str | None] = {
    "POST /v1/drain": "write",
    "POST /v1/logs": "write",
    "GET /v1/search": "read",
    "GET /health": None,
    "GET /ready": None,
    "GET /metrics": "all projects",
    "GET /": None,
    "GET /docs": None,
    "GET /docs/docs.js": None,
    "GET /openapi.json": None,
    "GET /status": None,
    "GET /status/status.js": None,
    "GET /status/data": "read",
    "GET /status/history": "read",
    "GET /status/logs": "read",
    "GET /status/log": "read",
    **{f"POST {hec.PREFIX}{path}": "write" for path in hec.PATHS - {*hec.HEALTH_PATHS}},
    **{f"OPTIONS {hec.PREFIX}{path}": None for path in hec.PATHS},
    **{f"GET {hec.PREFIX}{path}": None for path in hec.HEALTH_PATHS},
    f"POST {loki.PATH}": "write",
}

#: Paths of the other products that serve reading there, or nothing.
FOREIGN_READING = (
    *("/loki/api/v1/query", "/loki/api/v1/query_range", "/loki/api/v1/labels", "/loki/ready"),
    *("/loki/api/v1/tail", "/loki/api/v1/series", "/loki/api/v1/delete", "/loki"),
    *("/services/collector/mint", "/services/search/jobs", "/services/server/info", "/services"),
)

#: Paths of Elasticsearch: each needs a token that may write, whether it exists or not.
ELASTICSEARCH = (
    *(f"/elasticsearch/{name}" for name in elasticsearch.HANDSHAKE),
    *("/elasticsearch", "/elasticsearch/_search", "/elasticsearch/org-xyz/_search"),
    *("/elasticsearch/_cat/indices", "/elasticsearch/org-xyz/_doc/1", "/elasticsearch/a/b/_bulk"),
)
BULK = ("/elasticsearch/_bulk", "/elasticsearch/org-xyz/_bulk")

#: The paths by which routes with arguments are tried.
ASSETS = {"/docs/<asset>": "/docs/docs.js", "/status/<asset>": "/status/status.js"}

TOKENS = {
    "none": None,
    "wrong": "nobody",
    "write": "writer allow=write",
    "read": "reader allow=read",
    "both": "full",
    "bound write": "bound-writer org-xyz allow=write",
    "bound read": "bound-reader org-xyz allow=read",
    "bound both": "bound-full org-xyz",
}

Answer = tuple[int, bytes]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flask]:
    """Return an app with a token of each kind."""
    directory = tmp_path_factory.mktemp("data")
    lines = "".join(f"{line}\n" for line in TOKENS.values() if line and line != "nobody")
    path = write_tokens(directory / "tokens", lines)
    made = create_app(replace(Settings(data_dir=directory), tokens="", tokens_file=str(path)))
    yield made
    services_of(made).stop(1)


def paths(app: Flask) -> list[str]:
    """Return every path of the app, and some of those that each protocol has below its own."""
    rules = {ASSETS.get(rule.rule, rule.rule) for rule in app.url_map.iter_rules()}
    ours = {f"{hec.PREFIX}{path}" for path in hec.PATHS}
    return sorted({*rules, *ours, loki.PATH, *FOREIGN_READING, *ELASTICSEARCH, *BULK, "/none"})


def scope_of(method: str, path: str) -> str | None:
    if path in ELASTICSEARCH or (path in BULK and method in ("POST", "PUT")):
        return "write"
    known = "GET" if method == "HEAD" else method
    return SCOPES.get(f"{known} {path}")


def ask(
    app: Flask, method: str, path: str, token: str | None, query: str = "", body: bytes = b"{"
) -> Answer:
    """Return the answer to a request from another machine."""
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "REMOTE_ADDR": "192.0.2.1",
        "SERVER_NAME": "logs.example",
        "SERVER_PORT": "80",
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body),
        "CONTENT_LENGTH": str(len(body)),
        "CONTENT_TYPE": "application/json",
    }
    if token is not None:
        environ["HTTP_AUTHORIZATION"] = token
    content, status, _ = run_wsgi_app(app, environ)
    return int(status.split()[0]), b"".join(content)


def text_of(kind: str) -> str | None:
    line = TOKENS[kind]
    return line.split()[0] if line else None


def may(kind: str, scope: str) -> bool:
    if scope == "all projects":
        return kind in ("read", "both")
    return scope in kind or "both" in kind


def is_denied(path: str, kind: str, answer: Answer) -> bool:
    """Return whether an answer is the one for a token that is missing, unknown or not enough."""
    status, text = answer
    if kind == "none":
        return status == 401
    if kind == "wrong":
        return status == (403 if path.startswith("/services") else 401)
    return status == 403 and b"forbidden_scope" in text


def test_every_path_is_known(app: Flask) -> None:
    """A route or a protocol that is added without a scope fails here."""
    rules = {
        f"{method} {ASSETS.get(rule.rule, rule.rule)}"
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD"}
    }
    assert isinstance(app.wsgi_app, Dispatcher)
    protocols = app.wsgi_app.protocols
    assert protocols.keys() == {"services", "loki", "elasticsearch"}
    ours = {request for request in SCOPES if request.split("/")[1] not in protocols}
    assert rules - {"POST /v1/traces", "POST /v1/metrics"} == ours  # these two are 404 for all


@pytest.mark.parametrize("method", METHODS)
def test_path_is_open_to_its_scope_only(app: Flask, method: str) -> None:
    """A token without it is 403, in the path's own form; any other path is the same for all."""
    for path in paths(app):
        scope = scope_of(method, path)
        answers = {kind: ask(app, method, path, text_of(kind)) for kind in TOKENS}
        if scope is None:
            is_served = f"{'GET' if method == 'HEAD' else method} {path}" in SCOPES
            assert len(set(answers.values())) == 1, (path, answers)
            assert (answers["none"][0] == 200) == is_served, (path, answers)
            assert is_served or answers["none"][0] in (404, 405), (path, answers)
            continue
        for kind, answer in answers.items():
            shown = answer if method != "HEAD" else (answer[0], b"forbidden_scope")
            assert is_denied(path, kind, shown) != may(kind, scope), (path, kind, answer)


@pytest.mark.parametrize("kind", [kind for kind in TOKENS if kind != "none"])
def test_token_in_the_query_writes_only(app: Flask, kind: str) -> None:
    """Only one that may do nothing else counts there."""
    for path, method in product(paths(app), ("GET", "POST")):
        scope = scope_of(method, path)
        answer = ask(app, method, path, None, f"token={text_of(kind)}")
        if scope is None:
            assert answer == ask(app, method, path, None)
        elif "write" in kind and scope == "write":
            assert answer[0] not in (401, 403), (path, answer)
        else:
            assert is_denied(path, kind, answer), (path, answer)


LOG = {"body": {"stringValue": "text"}}

#: A body for each protocol, and the status of its acceptance.
BODIES: dict[str, tuple[Any, int]] = {
    "/v1/drain": ({"logs": [make_log()]}, 200),
    "/v1/logs": ({"resourceLogs": [{"scopeLogs": [{"logRecords": [LOG]}]}]}, 200),
    "/services/collector": ({"event": "text"}, 200),
    "/loki/api/v1/push": ({"streams": [{"stream": {}, "values": [["1", "text"]]}]}, 204),
    "/elasticsearch/org-xyz/_bulk": ({"create": {}}, 200),
}


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("in_query", [False, True])
def test_token_that_only_writes_writes(app: Flask, path: str, in_query: bool) -> None:
    """In each protocol, with the token in the header or in the query."""
    content, expected = BODIES[path]
    body = msgspec.json.encode(content)
    if path in BULK:
        body += b'\n{"message": "text"}\n'
    header, query = (None, "token=bound-writer") if in_query else ("bound-writer", "")
    status, text = ask(app, "POST", path, header, query, body)
    assert (status, b'"errors":true' in text) == (expected, False)
