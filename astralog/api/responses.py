"""The responses of the API: JSON, and one shape for every rejection."""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from flask import Flask, Response
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from astralog.errors import RETRY_AFTER_SECONDS, Rejection

log = logging.getLogger(__name__)


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
    if rejection.status == HTTPStatus.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = "Bearer"
    if rejection.status == HTTPStatus.SERVICE_UNAVAILABLE:
        response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    return response


def init_app(app: Flask) -> None:
    """Turn every rejection, and every error that is none, into the one JSON shape."""
    app.register_error_handler(Rejection, reject)
    app.register_error_handler(HTTPException, _reject_http_error)
    app.register_error_handler(Exception, _reject_internal_error)


def _reject_http_error(error: HTTPException) -> Response:
    if isinstance(error, MethodNotAllowed):
        methods = ", ".join(sorted(error.valid_methods or ()))
        response = reject(Rejection("method_not_allowed", f"This path takes {methods}."))
        response.headers["Allow"] = methods
        return response
    if error.code == HTTPStatus.NOT_FOUND:
        return reject(Rejection("not_found", "No such path; logs go to POST /v1/drain."))
    return reject(Rejection("bad_request", error.description or "The request is invalid."))


def _reject_internal_error(error: Exception) -> Response:
    log.error("request failed", exc_info=error)
    return reject(Rejection("internal", "The service failed; its own log says why."))
