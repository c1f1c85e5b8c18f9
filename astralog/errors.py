"""Every refusal: its code, its status and the one JSON shape."""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from flask import Flask, Response
from werkzeug.exceptions import HTTPException, MethodNotAllowed

log = logging.getLogger(__name__)

RETRY_AFTER_SECONDS = 1

#: Every code with its HTTP status. The code is also the counter's label, so it never changes.
STATUS_OF_CODE: Mapping[str, HTTPStatus] = {
    "unauthorized": HTTPStatus.UNAUTHORIZED,
    "invalid_json": HTTPStatus.BAD_REQUEST,
    "invalid_batch": HTTPStatus.BAD_REQUEST,
    "invalid_encoding": HTTPStatus.BAD_REQUEST,
    "bad_request": HTTPStatus.BAD_REQUEST,
    "forbidden_project": HTTPStatus.FORBIDDEN,
    "not_found": HTTPStatus.NOT_FOUND,
    "method_not_allowed": HTTPStatus.METHOD_NOT_ALLOWED,
    "body_timeout": HTTPStatus.REQUEST_TIMEOUT,
    "body_too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "unsupported_encoding": HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    "queue_full": HTTPStatus.SERVICE_UNAVAILABLE,
    "storage_full": HTTPStatus.SERVICE_UNAVAILABLE,
    "storage_failed": HTTPStatus.SERVICE_UNAVAILABLE,
    "commit_timeout": HTTPStatus.SERVICE_UNAVAILABLE,
    "stopping": HTTPStatus.SERVICE_UNAVAILABLE,
    "internal": HTTPStatus.INTERNAL_SERVER_ERROR,
}


class Refusal(Exception):
    """A request is refused whole.

    `code` is a key of STATUS_OF_CODE, `message` one sentence for the client, and `errors` the
    marshmallow structure that says what is malformed where.
    """

    def __init__(self, code: str, message: str, errors: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.status = STATUS_OF_CODE[code]
        self.message = message
        self.errors = errors

    def response(self) -> Response:
        """Return the refusal as the one JSON shape."""
        body: dict[str, Any] = {"status": "rejected", "code": self.code, "message": self.message}
        if self.errors is not None:
            body["errors"] = self.errors
        response = json_response(body, self.status)
        if self.status == HTTPStatus.UNAUTHORIZED:
            response.headers["WWW-Authenticate"] = "Bearer"
        if self.status == HTTPStatus.SERVICE_UNAVAILABLE:
            response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
        return response


def json_response(body: Mapping[str, Any], status: int = HTTPStatus.OK) -> Response:
    """Return `body` as a JSON response."""
    return Response(msgspec.json.encode(body), status=status, content_type="application/json")


def init_app(app: Flask) -> None:
    """Turn every refusal, and every error that is none, into the one JSON shape."""
    app.register_error_handler(Refusal, Refusal.response)
    app.register_error_handler(HTTPException, _refuse_http_error)
    app.register_error_handler(Exception, _refuse_internal_error)


def _refuse_http_error(error: HTTPException) -> Response:
    if isinstance(error, MethodNotAllowed):
        methods = ", ".join(sorted(error.valid_methods or ()))
        response = Refusal("method_not_allowed", f"This path takes {methods}.").response()
        response.headers["Allow"] = methods
        return response
    if error.code == HTTPStatus.NOT_FOUND:
        return Refusal("not_found", "No such path; logs go to POST /v1/drain.").response()
    return Refusal("bad_request", error.description or "The request is malformed.").response()


def _refuse_internal_error(error: Exception) -> Response:
    log.error("request failed", exc_info=error)
    return Refusal("internal", "The service failed; its own log says why.").response()
