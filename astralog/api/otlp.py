"""POST /v1/logs: accept an export of OpenTelemetry, and respond in its encoding.

Source: https://opentelemetry.io/docs/specs/otlp/#otlphttp.
"""

from functools import partial
from http import HTTPStatus
from typing import NoReturn

from flask import Blueprint, Response

from astralog.api import responses
from astralog.api.dispatch import (
    PARTIAL_OPTIONS,
    FixedResponse,
    Note,
    Reject,
    plain_view,
    without_parameters,
)
from astralog.api.responses import REPLAYED_HEADERS, describe_rejection, left_out
from astralog.errors import Rejection
from astralog.intake.acceptor import Acceptor
from astralog.intake.body import Environ
from astralog.intake.otlp import Encoding, decode
from astralog.intake.otlp_json import Json

#: Media types of protobuf; a body of any other type, or of none, is read as JSON.
PROTOBUF_TYPES = {"application/x-protobuf", "application/protobuf"}

PROTOBUF_HINT = "protobuf is sent with the Content-Type application/x-protobuf"

#: Signals that are not accepted, each with the variable that stops an SDK from sending it.
OTHER_SIGNALS = {"traces": "OTEL_TRACES_EXPORTER", "metrics": "OTEL_METRICS_EXPORTER"}

#: The code of google.rpc for each HTTP status.
#: Source: https://github.com/googleapis/googleapis/blob/master/google/rpc/code.proto.
CODE_OF_STATUS = {
    HTTPStatus.BAD_REQUEST: 3,  # INVALID_ARGUMENT
    HTTPStatus.UNAUTHORIZED: 16,  # UNAUTHENTICATED
    HTTPStatus.FORBIDDEN: 7,  # PERMISSION_DENIED
    HTTPStatus.NOT_FOUND: 12,  # UNIMPLEMENTED
    HTTPStatus.METHOD_NOT_ALLOWED: 12,
    HTTPStatus.REQUEST_TIMEOUT: 4,  # DEADLINE_EXCEEDED
    HTTPStatus.CONFLICT: 10,  # ABORTED
    HTTPStatus.LENGTH_REQUIRED: 3,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: 3,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: 3,
    HTTPStatus.UNPROCESSABLE_ENTITY: 9,  # FAILED_PRECONDITION
    HTTPStatus.TOO_MANY_REQUESTS: 8,  # RESOURCE_EXHAUSTED
    HTTPStatus.SERVICE_UNAVAILABLE: 14,  # UNAVAILABLE
    HTTPStatus.INTERNAL_SERVER_ERROR: 13,  # INTERNAL
}

#: The response to an export that is stored, in each encoding: an empty ExportLogsServiceResponse.
EMPTY = {"application/json": b"{}", "application/x-protobuf": b""}
ACCEPTED = {kind: FixedResponse(body, kind) for kind, body in EMPTY.items()}
REPLAYED = {kind: FixedResponse(body, kind, REPLAYED_HEADERS) for kind, body in EMPTY.items()}


def is_otlp_path(path: str) -> bool:
    """Return whether a path is one to which exporters of OpenTelemetry send.

    Exporters join their URL and the signal's path, which makes paths as `/v1//logs`, `/v1/logs/`
    and `/v1/logs/v1/logs`.
    """
    words = [word for word in path.split("/") if word]
    return words[-2:-1] == ["v1"] and words[-1] in ("logs", *OTHER_SIGNALS)


def make_rejecter(note: Note) -> Reject:
    """Return a function that logs an error with `note` and answers with a google.rpc.Status."""
    reject = responses.make_rejecter(note, _render)
    return lambda error, environ: reject(_with_hint(error, environ), environ)


def create_blueprint(acceptor: Acceptor, note: Note, reject: Reject) -> Blueprint:
    blueprint = Blueprint("otlp", __name__)

    @blueprint.post("/v1/logs")
    @plain_view(reject)
    def export_logs(environ: Environ) -> Response:
        """Store an export; 200 means that all its logs except rejected ones are on disk."""
        encoding = _find_encoding(environ)
        accepted = acceptor.accept(environ, partial(decode, encoding), PARTIAL_OPTIONS)
        invalid = accepted.decoded.invalid
        if invalid is None:
            answers = REPLAYED if accepted.is_replayed else ACCEPTED
            return answers[encoding.content_type]
        rejection = left_out(invalid)
        response = _respond(
            encoding.encode_response(invalid.count, describe_rejection(rejection)), encoding
        )
        if accepted.is_replayed:
            response.headers.update(REPLAYED_HEADERS)
        else:
            note(rejection, environ)
        return response

    for signal in OTHER_SIGNALS:
        blueprint.add_url_rule(
            f"/v1/{signal}", signal, partial(_reject_signal, signal), methods=["POST"]
        )
    return blueprint


def _reject_signal(signal: str) -> NoReturn:
    message = (
        f"AstraLog accepts logs at /v1/logs, but no {signal}; "
        f"set {OTHER_SIGNALS[signal]}=none to stop an SDK from sending them."
    )
    raise Rejection("not_found", message)


def _find_encoding(environ: Environ) -> type[Encoding]:
    if without_parameters(environ.get("CONTENT_TYPE", "")) not in PROTOBUF_TYPES:
        return Json
    from astralog.intake.otlp_protobuf import Protobuf  # noqa: PLC0415  # most never need it

    return Protobuf


def _respond(body: bytes, encoding: type[Encoding], status: int = HTTPStatus.OK) -> Response:
    return Response(body, status, content_type=encoding.content_type)


def _with_hint(error: Exception, environ: Environ) -> Exception:
    """Add a hint to the rejection of a protobuf body that was read as JSON."""
    is_invalid_json = isinstance(error, Rejection) and error.code == "invalid_json"
    content_type = without_parameters(environ.get("CONTENT_TYPE", ""))
    if not is_invalid_json or content_type == "application/json":
        return error
    return Rejection("invalid_json", f"{str(error).rstrip('.')}; {PROTOBUF_HINT}")


def _render(rejection: Rejection, environ: Environ) -> Response:
    """Return the rejection as a google.rpc.Status, whose message begins with its code."""
    encoding = _find_encoding(environ)
    body = encoding.encode_status(CODE_OF_STATUS[rejection.status], describe_rejection(rejection))
    return _respond(body, encoding, rejection.status)
