import logging
from http import HTTPStatus
from typing import Any

import msgspec
import pytest
from flask import Flask, abort

from astralog.api.responses import init_app, json_response, make_rejecter, reject
from astralog.errors import STATUS_OF_CODE, Rejection


@pytest.fixture
def noted() -> list[str]:
    """Return the codes of the app's rejections."""
    return []


@pytest.fixture
def app(noted: list[str]) -> Flask:
    """Return an app that rejects, aborts or fails, depending on the path."""
    app = Flask(__name__, static_folder=None)
    init_app(app, make_rejecter(lambda rejection, environ: noted.append(rejection.code)))

    @app.get("/reject/<code>")
    def reject(code: str) -> str:
        raise Rejection(code, "A sentence.", {"logs": {3: {"level": ["Must not be empty."]}}})

    @app.get("/abort/<int:status>")
    def abort_with(status: int) -> str:
        abort(status)

    @app.get("/fail")
    def fail() -> str:
        raise OSError(5, "secret detail", "/srv/secret/path")

    return app


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("unauthorized", 401),
        ("invalid_json", 400),
        ("invalid_batch", 400),
        ("invalid_encoding", 400),
        ("not_found", 404),
        ("method_not_allowed", 405),
        ("body_timeout", 408),
        ("body_too_large", 413),
        ("unsupported_encoding", 415),
        ("queue_full", 503),
        ("storage_full", 503),
        ("storage_failed", 503),
        ("commit_timeout", 503),
        ("stopping", 503),
        ("internal", 500),
    ],
)
def test_a_code_has_its_status_and_headers(app: Flask, code: str, status: int) -> None:
    """Every code has its documented status; 503 has Retry-After, and 401 the scheme."""
    response = app.test_client().get(f"/reject/{code}")
    assert status == response.status_code
    assert "application/json" == response.content_type
    assert {
        "status": "rejected",
        "code": code,
        "message": "A sentence.",
        "errors": {"logs": {"3": {"level": ["Must not be empty."]}}},
    } == response.json
    seconds = "5" if code in ("storage_full", "storage_failed") else "1"
    assert (seconds if status == 503 else None) == response.headers.get("Retry-After")
    assert ("Bearer" if status == 401 else None) == response.headers.get("WWW-Authenticate")


def test_every_rejection_is_logged(app: Flask, noted: list[str]) -> None:
    """Each is passed to the rejection log once."""
    client = app.test_client()
    for path in ("/reject/queue_full", "/abort/414", "/fail", "/no/such/path"):
        client.get(path)
    client.post("/fail")
    expected = ["queue_full", "bad_request", "internal", "not_found", "method_not_allowed"]
    assert expected == noted


def test_unknown_code_raises() -> None:
    """A rejection can only have a code of the table."""
    with pytest.raises(KeyError):
        Rejection("no_such_code", "A sentence.")
    assert all(code == code.lower() and code.isidentifier() for code in STATUS_OF_CODE)


def test_a_rejection_without_errors_has_none_in_its_body() -> None:
    """`errors` is only present if something is malformed."""
    body = msgspec.json.decode(reject(Rejection("stopping", "Stopping.")).data)
    assert {"status": "rejected", "code": "stopping", "message": "Stopping."} == body


@pytest.mark.parametrize("status", [HTTPStatus.OK, HTTPStatus.SERVICE_UNAVAILABLE])
def test_json_is_answered_with_its_status(status: HTTPStatus) -> None:
    """The body is compact JSON."""
    response = json_response({"status": "ok"}, status)
    assert (status, b'{"status":"ok"}') == (response.status_code, response.data)
    assert "application/json" == response.content_type


def test_an_unknown_path_is_not_found(app: Flask) -> None:
    """The response has the usual form, and names the right path."""
    response = app.test_client().get("/v1/drains")
    body: Any = response.json
    assert (404, "not_found") == (response.status_code, body["code"])
    assert "POST /v1/drain" in body["message"]


def test_another_method_is_not_allowed(app: Flask) -> None:
    """The body and the header list the supported methods."""
    response = app.test_client().post("/fail")
    body: Any = response.json
    assert (405, "method_not_allowed") == (response.status_code, body["code"])
    assert "GET, HEAD, OPTIONS" == response.headers["Allow"]
    assert "GET, HEAD, OPTIONS" in body["message"]


@pytest.mark.parametrize("status", [400, 403, 414, 431])
def test_another_http_error_is_a_bad_request(app: Flask, status: int) -> None:
    """Rejections of the framework have the usual form too."""
    response = app.test_client().get(f"/abort/{status}")
    body: Any = response.json
    assert (400, "rejected", "bad_request") == (response.status_code, body["status"], body["code"])
    assert body["message"]


def test_internal_error_is_logged_but_not_sent(
    app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception that is no rejection is 500 `internal`; only the log has the details."""
    response = app.test_client().get("/fail")
    body: Any = response.json
    assert (500, "internal") == (response.status_code, body["code"])
    assert b"secret" not in response.data
    assert b"Traceback" not in response.data
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "astralog.api.responses" == record.name
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], OSError)
