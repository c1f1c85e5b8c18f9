"""GET /health, /ready and /metrics: for load balancers, orchestrators and Prometheus."""

from http import HTTPStatus
from typing import Any

from flask import Blueprint, Response, request

from astralog.api.dispatch import FixedResponse, Reject, plain_view
from astralog.api.rejection_log import parse_address
from astralog.api.responses import json_response
from astralog.auth import Tokens
from astralog.browsers import is_foreign
from astralog.errors import METRICS_FORBIDDEN, Rejection, retry_after_seconds
from astralog.intake.body import Environ
from astralog.store.commit_queue import CommitQueue
from astralog.telemetry.prometheus import Metrics
from astralog.tokens_file import Scope

OK = FixedResponse(b'{"status":"ok"}')
READY = FixedResponse(b'{"status":"ready"}')


def create_blueprint(
    queue: CommitQueue, tokens: Tokens, numbers: Metrics, reject: Reject
) -> Blueprint:
    """Return the blueprint; `reject` answers the errors of /health and /ready."""
    blueprint = Blueprint("health", __name__)

    @blueprint.get("/health")
    @plain_view(reject)
    def health(environ: Environ) -> Response:
        """Respond while the process serves; the disk is not accessed."""
        return OK

    @blueprint.get("/ready")
    @plain_view(reject)
    def ready(environ: Environ) -> Response:
        """Report whether batches are accepted now, or the code with which they are rejected."""
        reason = queue.unavailable()
        if reason is None:
            return READY
        response = json_response(
            {"status": "unavailable", "reason": reason}, HTTPStatus.SERVICE_UNAVAILABLE
        )
        response.headers["Retry-After"] = str(retry_after_seconds(reason))
        return response

    @blueprint.get("/metrics")
    def show_metrics() -> Response:
        """Return the metrics of all workers; requests from this machine need no token."""
        if not is_local(request.environ):
            token = tokens.authorize(request.environ, Scope.READ)
            if token.projects is not None:
                raise Rejection(*METRICS_FORBIDDEN)
        text, content_type = numbers.render(request.environ.get("HTTP_ACCEPT", ""))
        return Response(text, content_type=content_type)

    return blueprint


#: A proxy marks a forwarded request by a header whose name begins with one of these.
FORWARDING_HEADERS = ("HTTP_X_FORWARDED", "HTTP_FORWARDED", "HTTP_X_REAL_IP", "HTTP_VIA")

#: Host names that a client of the same machine uses; a page in its browser cannot forge them.
LOCAL_HOSTS = ("", "localhost", "127.0.0.1", "[::1]")


def is_local(environ: dict[str, Any]) -> bool:
    """Return whether a request comes from this machine and was not forwarded by a proxy on it."""
    if is_foreign(environ) or any(name.startswith(FORWARDING_HEADERS) for name in environ):
        return False
    host = environ.get("HTTP_HOST", "").lower()
    if host not in LOCAL_HOSTS and host.rpartition(":")[0] not in LOCAL_HOSTS[1:]:
        return False
    peer = environ.get("REMOTE_ADDR", "")
    address = parse_address(peer)
    is_loopback = address is not None and address.is_loopback
    return peer == "" or is_loopback  # a unix socket has no address
