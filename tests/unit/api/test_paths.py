"""Unknown paths are 404 in the form of their protocol, and no path is redirected."""

from collections.abc import Iterator

import pytest
from flask.testing import FlaskClient
from google.rpc.status_pb2 import Status

PATHS = [
    *("/", "/docs", "/docs/docs.css", "/openapi.json", "/health", "/ready", "/metrics"),
    *("/status", "/status/status.js", "/status/data", "/status/logs", "/v1/drain"),
]
OTLP_PATHS = ["/v1/logs", "/v1/traces", "/v1/metrics"]
METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "CONNECT", "TRACE", "BREW"]

PREFLIGHT = {"Origin": "http://app.example", "Access-Control-Request-Method": "POST"}


def misspell(path: str) -> Iterator[str]:
    """Yield paths that differ from a known one only in slashes."""
    yield f"/{path}"
    yield f"///{path}"
    if path != "/":
        yield f"{path}/"
        yield f"{path}//"
        yield path.replace("/", "//")
        head, _, name = path.rpartition("/")
        yield f"{head}/////{name}"


@pytest.mark.parametrize("method", METHODS)
def test_a_path_with_other_slashes_is_not_found(client: FlaskClient, method: str) -> None:
    """After a redirect, as werkzeug's, OpenTelemetry's SDK would take a 200 for success."""
    for path in (other for known in PATHS for other in misspell(known)):
        answer = client.open(method=method, environ_overrides={"PATH_INFO": path})
        assert (404, "application/json") == (answer.status_code, answer.content_type), path
        assert "Location" not in answer.headers, path
        assert method == "HEAD" or answer.get_json()["code"] == "not_found", path


@pytest.mark.parametrize("method", METHODS)
def test_a_misspelt_path_of_opentelemetry_has_its_form(client: FlaskClient, method: str) -> None:
    """The exporter gets a google.rpc.Status in its own encoding, which it can show."""
    misspelt = (other for known in OTLP_PATHS for other in misspell(known))
    for path in (*misspelt, "/v1/logs/v1/logs", "/otlp/v1/logs"):
        answer = client.open(method=method, environ_overrides={"PATH_INFO": path})
        assert (404, "application/json") == (answer.status_code, answer.content_type), path
        assert "Location" not in answer.headers, path
        if method != "HEAD":
            assert is_not_found(answer.get_json()), path
            headers = {"Content-Type": "application/x-protobuf"}
            environ = {"PATH_INFO": path}
            protobuf = client.open(method=method, environ_overrides=environ, headers=headers)
            assert answer.get_json()["message"] == Status.FromString(protobuf.data).message


def is_not_found(status: dict[str, str]) -> bool:
    return {"code", "message"} == set(status) and status["message"].startswith("not_found: ")


@pytest.mark.parametrize("method", ["GET", "PUT", "OPTIONS"])
@pytest.mark.parametrize("path", OTLP_PATHS)
def test_another_method_has_the_form_of_opentelemetry(
    client: FlaskClient, path: str, method: str
) -> None:
    """The Allow header lists the methods of the path."""
    answer = client.open(path, method=method)
    assert (405, "POST") == (answer.status_code, answer.headers["Allow"])
    assert answer.get_json()["message"].startswith("method_not_allowed: This path supports POST")


@pytest.mark.parametrize("path", ["/v1/drain", "/v1/logs", "/health"])
def test_preflight_of_an_unlisted_origin_is_explained(client: FlaskClient, path: str) -> None:
    """A browser's developer tools show why the request was not sent."""
    answer = client.options(path, headers=PREFLIGHT)
    assert (405, "application/json") == (answer.status_code, answer.content_type)
    assert (
        "Pages of this origin may not send (ASTRALOG_CORS_ORIGINS)" in answer.get_json()["message"]
    )
    assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize("kind", ["application/json", "application/x-protobuf"])
def test_export_to_the_root_is_answered_with_the_right_path(client: FlaskClient, kind: str) -> None:
    """An exporter with a URL without a path sends to /."""
    answer = client.post("/", data=b'{"resourceLogs":[]}', headers={"Content-Type": kind})
    body = answer.get_json()
    assert (405, "method_not_allowed") == (answer.status_code, body["code"])
    assert "those of OpenTelemetry to POST /v1/logs" in body["message"]


def test_an_empty_path_is_the_root(client: FlaskClient) -> None:
    """`GET http://host` has none (RFC 9110, 4.2.3)."""
    answer = client.get(environ_overrides={"PATH_INFO": ""})
    assert (200, "AstraLog") == (answer.status_code, answer.get_json()["name"])
    answer = client.get(environ_overrides={"PATH_INFO": "", "HTTP_ACCEPT": "text/html"})
    assert (302, "/status") == (answer.status_code, answer.headers["Location"])
    assert "application/json" == answer.content_type


@pytest.mark.parametrize("path", ["/docs/docs.css", "/status/status.js"])
@pytest.mark.parametrize(
    "headers",
    [
        {"If-Modified-Since": "1 Jan 9999999999 0:0:0"},
        {"If-Modified-Since": "Mon, 1 Jan 2024 00:00:00 +" + "9" * 3000},
        {"If-Unmodified-Since": "1 Jan 9999999999 0:0:0"},
        {"Range": "bytes=" + "9" * 5000 + "-", "If-Range": "1 Jan 9999999999 0:0:0"},
        {"If-None-Match": '"' * 3001},
        {"If-Match": "x" * 3000},
    ],
)
def test_file_ignores_unsupported_conditions(
    client: FlaskClient, path: str, headers: dict[str, str]
) -> None:
    """Of all conditions only an ETag is read; a file has no date and no ranges."""
    assert 200 == client.get(path, headers=headers).status_code


@pytest.mark.parametrize(
    "accept", ["application/openmetrics-text; version=abc", "text/plain;version=1", "\xff;,;="]
)
def test_metrics_are_sent_for_any_accept_header(client: FlaskClient, accept: str) -> None:
    """An invalid version is ignored."""
    answer = client.get("/metrics", environ_overrides={"HTTP_ACCEPT": accept})
    assert (200, "text/plain") == (answer.status_code, answer.mimetype)
