"""The responses of the API: JSON, and one shape for every rejection."""

import logging
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound

from astralog.api.dispatch import Note, Reject
from astralog.errors import ORIGIN_FORBIDDEN, RETRIED_STATUSES, Rejection
from astralog.intake.body import Environ
from astralog.intake.decoder import InvalidLogs
from astralog.log import log_exception

log = logging.getLogger(__name__)

#: The header of a response to a batch that an earlier try with its Idempotency-Key stored.
REPLAYED_HEADERS = {"Idempotency-Replayed": "true"}

WHERE_LOGS_GO = "logs go to POST /v1/drain, those of OpenTelemetry to POST /v1/logs"

#: Invalid logs that a message describes.
DESCRIBED_LOGS = 3

#: Returns a rejection in the form of a protocol.
Render = Callable[[Rejection, Environ], Response]


def json_response(body: Mapping[str, Any], status: int = HTTPStatus.OK) -> Response:
    return Response(msgspec.json.encode(body), status=status, content_type="application/json")


def private_response(body: bytes | Iterable[bytes], content_type: str) -> Response:
    """Return a response with logs or numbers: not cached, and never rendered as a page."""
    response = Response(body, content_type=content_type)
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.cache_control.no_store = True
    return response


def reject(rejection: Rejection) -> Response:
    """Return the rejection as the one JSON shape."""
    body: dict[str, Any] = {
        "status": "rejected",
        "code": rejection.code,
        "message": rejection.message,
    }
    if rejection.errors is not None:
        body["errors"] = rejection.errors
    return json_response(body, rejection.status)


def _as_rejection(error: Exception, environ: Mapping[str, Any]) -> Rejection:
    """Return the rejection for an error of a request with WSGI's `environ`.

    An error that nobody expected is logged, and becomes `internal`.
    """
    if isinstance(error, Rejection):
        return error
    if isinstance(error, MethodNotAllowed):
        return Rejection("method_not_allowed", _explain_method(error, environ))
    if isinstance(error, NotFound):
        return Rejection("not_found", f"This path does not exist; {WHERE_LOGS_GO}.")
    if isinstance(error, HTTPException) and error.code and error.code < 500:
        return Rejection("bad_request")
    log_exception(log, "request failed")
    return Rejection("internal")


def make_rejecter(
    note: Note, render: Render = lambda rejection, environ: reject(rejection)
) -> Reject:
    """Return a function that logs an error with `note`, and returns its response.

    By default, `render` makes JSON; the headers are the same for every protocol.
    """

    def reject_error(error: Exception, environ: Environ) -> Response:
        rejection = _as_rejection(error, environ)
        note(rejection, environ)
        response = render(rejection, environ)
        if rejection.status == HTTPStatus.UNAUTHORIZED:
            response.headers["WWW-Authenticate"] = "Bearer"
        if rejection.status in RETRIED_STATUSES:
            response.headers["Retry-After"] = str(rejection.retry_after)
        if isinstance(error, MethodNotAllowed):  # RFC 9110, 15.5.6
            response.headers["Allow"] = _allowed(error)
        return response

    return reject_error


def describe_rejection(rejection: Rejection) -> str:
    """Return the code, the message and the errors of the first logs as one text.

    The index of a log counts from 0.
    """
    text = f"{rejection.code}: {rejection.message}"
    errors = (rejection.errors or {}).get("logs", {})
    first = list(errors.items())[:DESCRIBED_LOGS]
    return "; ".join(
        [text]
        + [
            f"log {number}: {field}: {' '.join(texts)}"
            for number, fields in first
            for field, texts in fields.items()
        ]
    )


def left_out(invalid: InvalidLogs, logs: str = "logs") -> Rejection:
    """Return the rejection of a batch's invalid logs, whose others were stored."""
    message = f"{invalid.count} {logs} are invalid; the others were stored"
    return Rejection("invalid_batch", message, {"logs": invalid.errors})


def init_app(app: Flask, reject_error: Reject) -> None:
    """Turn every error, also those of the framework, into a response."""
    for kind in (HTTPException, Exception):
        app.register_error_handler(kind, lambda error: reject_error(error, request.environ))


def _explain_method(error: MethodNotAllowed, environ: Mapping[str, Any]) -> str:
    allowed = f"This path supports {_allowed(error)}"
    if "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in environ:
        return f"{allowed}. {ORIGIN_FORBIDDEN.message}"
    if environ["REQUEST_METHOD"] == "POST":
        return f"{allowed}; {WHERE_LOGS_GO}."
    return f"{allowed}."


def _allowed(error: MethodNotAllowed) -> str:
    return ", ".join(sorted(error.valid_methods or ()))
