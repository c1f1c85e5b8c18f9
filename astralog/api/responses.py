"""The responses of the API: JSON, and one shape for every rejection."""

import logging
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from astralog.errors import RETRIED_STATUSES, RETRY_AFTER_SECONDS, Rejection

log = logging.getLogger(__name__)

#: What an answer says where an earlier try with the same Idempotency-Key has stored the batch.
REPLAYED_HEADERS = {"Idempotency-Replayed": "true"}

#: Takes note of a rejected request; its second argument is WSGI's environ.
Note = Callable[[Rejection, dict[str, Any]], None]


def json_response(body: Mapping[str, Any], status: int = HTTPStatus.OK) -> Response:
    """Return `body` as a JSON response."""
    return Response(msgspec.json.encode(body), status=status, content_type="application/json")


def reject(rejection: Rejection) -> Response:
    """Return the rejection as the one JSON shape."""
    body: dict[str, Any] = {
        "status": "rejected",
        "code": rejection.code,
        "message": rejection.message,
    }
    if rejection.errors is not None:
        body["errors"] = rejection.errors
    response = json_response(body, rejection.status)
    add_headers(response, rejection)
    return response


def add_headers(response: Response, rejection: Rejection) -> None:
    """Add what a response to a rejected request says in its headers, in whatever shape it is."""
    if rejection.status == HTTPStatus.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = "Bearer"
    if rejection.status in RETRIED_STATUSES:
        response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)


def as_rejection(error: Exception) -> Rejection:
    """Return an error as a rejection; one that is none is logged, and becomes `internal`."""
    if isinstance(error, Rejection):
        return error
    log.error("request failed", exc_info=error)
    return Rejection("internal", "The service failed; its own log says why.")


def init_app(app: Flask, note: Note) -> None:
    """Turn every rejection, and every error that is none, into the one JSON shape."""

    def noted(rejection: Rejection) -> Response:
        note(rejection, request.environ)
        return reject(rejection)

    def reject_http_error(error: HTTPException) -> Response:
        response = noted(_rejection_of(error))
        if isinstance(error, MethodNotAllowed):
            response.headers["Allow"] = _allowed(error)
        return response

    def reject_internal_error(error: Exception) -> Response:
        return noted(as_rejection(error))

    app.register_error_handler(Rejection, noted)
    app.register_error_handler(HTTPException, reject_http_error)
    app.register_error_handler(Exception, reject_internal_error)


def _rejection_of(error: HTTPException) -> Rejection:
    if isinstance(error, MethodNotAllowed):
        return Rejection("method_not_allowed", f"This path takes {_allowed(error)}.")
    if error.code == HTTPStatus.NOT_FOUND:
        return Rejection("not_found", "No such path; logs go to POST /v1/drain.")
    return Rejection("bad_request", error.description or "The request is invalid.")


def _allowed(error: MethodNotAllowed) -> str:
    return ", ".join(sorted(error.valid_methods or ()))
