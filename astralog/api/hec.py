"""/services/collector: accept the requests of Splunk's HTTP Event Collector, and answer alike.

Source: https://help.splunk.com/en/splunk-enterprise/get-data-in/collect-http-event-data
("Troubleshoot HTTP Event Collector": the codes and their statuses).
"""

from collections.abc import Callable, Mapping
from functools import partial
from http import HTTPStatus
from typing import Any

from flask import Response
from werkzeug.exceptions import MethodNotAllowed, NotFound

from astralog.api.dispatch import PARTIAL_OPTIONS, FixedResponse, Note, PlainView
from astralog.api.responses import (
    REPLAYED_HEADERS,
    describe_rejection,
    json_response,
    left_out,
    make_rejecter,
)
from astralog.auth import OTHER_SCHEME
from astralog.browsers import QUERY_TOKEN
from astralog.errors import RETRIED_STATUSES, Rejection
from astralog.intake.acceptor import Acceptor
from astralog.intake.body import Environ
from astralog.intake.decoder import Context, Decoded
from astralog.intake.hec import (
    INCORRECT_INDEX,
    INVALID_FORMAT,
    HecRejection,
    InvalidEvent,
    Reply,
    decode_events,
    decode_raw,
)
from astralog.intake.options import parse_query
from astralog.tokens_file import Scope

#: Parameters of the query: the service's own, and HEC's.
DEFAULTS = ("host", "source", "sourcetype", "index", "time")
PARAMETERS = (*PARTIAL_OPTIONS, "channel", "auto_extract_timestamp", *DEFAULTS)

PREFIX = "/services/collector"
EVENT_PATHS = ("", "/event", "/event/1.0")
RAW_PATHS = ("/raw", "/raw/1.0")
HEALTH_PATHS = ("/health", "/health/1.0")
ACK_PATHS = ("/ack", "/ack/1.0")
PATHS = frozenset((*EVENT_PATHS, *RAW_PATHS, *HEALTH_PATHS, *ACK_PATHS))

POST_METHODS, HEALTH_METHODS = ("OPTIONS", "POST"), ("GET", "HEAD", "OPTIONS")

SUCCESS = FixedResponse(b'{"text":"Success","code":0}')
REPLAYED = FixedResponse(b'{"text":"Success","code":0}', headers=REPLAYED_HEADERS)
HEALTHY = Reply("HEC is healthy", 17)
UNHEALTHY = Reply("HEC is unhealthy, queues are full", 18)

TOKEN_REQUIRED = Reply("Token is required", 2)
INVALID_AUTHORIZATION = Reply("Invalid authorization", 3)
INVALID_TOKEN = Reply("Invalid token", 4)
SERVER_ERROR = Reply("Internal server error", 8)
BUSY = Reply("Server is busy", 9)

#: Replies of one code each; any other is answered by its status.
REPLY_OF_CODE = {
    "forbidden_scope": Reply("Token disabled", 1),
    "stopping": Reply("Server is shutting down", 23),
    "body_too_large": Reply("Request entity too large", 27),
    "not_found": Reply("The requested URL was not found on this server.", 404),
    "method_not_allowed": Reply("Method not allowed", 405),
    "internal": SERVER_ERROR,
}

ACK_DISABLED = Reply("ACK is disabled", 14)


def create_view(acceptor: Acceptor, note: Note) -> PlainView:
    def answer(environ: Environ) -> Response:
        """Store events or lines; 200 with code 0 means that all of them are in a segment file."""
        path = environ["PATH_INFO"].removeprefix(PREFIX)
        method = environ["REQUEST_METHOD"]
        if path not in PATHS:
            raise NotFound
        allowed = HEALTH_METHODS if path in HEALTH_PATHS else POST_METHODS
        if method == "OPTIONS":
            return Response(headers={"Allow": ", ".join(allowed)})
        if method not in allowed:
            raise MethodNotAllowed(allowed)
        if path in HEALTH_PATHS:
            if acceptor.queue.unavailable() is None:
                return json_response(HEALTHY._asdict())
            return json_response(UNHEALTHY._asdict(), HTTPStatus.SERVICE_UNAVAILABLE)
        return _store(acceptor, note, path, environ)

    return PlainView(answer, make_rejecter(note, _render))


def _store(acceptor: Acceptor, note: Note, path: str, environ: Environ) -> Response:
    if path in ACK_PATHS:
        acceptor.tokens.authorize(environ, Scope.WRITE)
        raise HecRejection("bad_request", InvalidEvent(ACK_DISABLED, "ack"))
    decode = decode_raw if path in RAW_PATHS else decode_events
    accepted = acceptor.accept(environ, partial(_decode, decode, environ), PARAMETERS)
    if accepted.is_replayed:
        return REPLAYED
    if invalid := accepted.decoded.invalid:
        note(left_out(invalid, "events"), environ)
    return SUCCESS


def _decode(
    decode: Callable[[bytes, Context, Mapping[str, str]], Decoded],
    environ: Environ,
    body: bytes,
    context: Context,
) -> Decoded:
    """Return the batch in a body; the query's members apply to events that lack them."""
    values = parse_query(environ.get("QUERY_STRING", ""), PARAMETERS)
    return decode(body, context, {name: values[name] for name in DEFAULTS if name in values})


def _render(rejection: Rejection, environ: Environ) -> Response:
    """Return a rejection in HEC's form, with the service's own code and message in `detail`."""
    status, reply = _find_reply(rejection, environ)
    body: dict[str, Any] = reply._asdict()
    if isinstance(rejection, HecRejection):
        if rejection.event is not None:
            body["invalid-event-number"] = rejection.event
        body["detail"] = f"{rejection.code}: {rejection.message}"  # which names the event
    else:
        body["detail"] = describe_rejection(rejection)
    return json_response(body, status)


def _find_reply(rejection: Rejection, environ: Environ) -> tuple[int, Reply]:
    if isinstance(rejection, HecRejection):
        return rejection.status, rejection.reply
    if rejection.code == "unauthorized":
        if "HTTP_AUTHORIZATION" not in environ and QUERY_TOKEN not in environ:
            return HTTPStatus.UNAUTHORIZED, TOKEN_REQUIRED
        if rejection.message == OTHER_SCHEME:
            return HTTPStatus.UNAUTHORIZED, INVALID_AUTHORIZATION
        return HTTPStatus.FORBIDDEN, INVALID_TOKEN
    if rejection.code == "forbidden_project":  # HEC knows no other answer to a foreign index
        return HTTPStatus.BAD_REQUEST, INCORRECT_INDEX
    is_retried = rejection.status in RETRIED_STATUSES
    return rejection.status, REPLY_OF_CODE.get(
        rejection.code, BUSY if is_retried else INVALID_FORMAT
    )
