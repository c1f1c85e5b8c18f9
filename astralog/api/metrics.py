"""GET /metrics: the numbers, for Prometheus."""

from ipaddress import IPv6Address, ip_address
from typing import Any

from flask import Blueprint, Response, request

from astralog.auth import Tokens
from astralog.errors import Rejection
from astralog.telemetry.prometheus import Metrics

#: Headers by which a proxy tells that a request is not from its own machine start like this.
FORWARDING_HEADERS = ("HTTP_X_FORWARDED", "HTTP_FORWARDED", "HTTP_X_REAL_IP", "HTTP_VIA")

#: What a client of the same machine calls it; a page in its browser cannot make it say so.
LOCAL_HOSTS = ("", "localhost", "127.0.0.1", "[::1]")


BOUND = "A token that is bound to projects does not open /metrics, which shows the whole service."


def create_blueprint(tokens: Tokens, metrics: Metrics) -> Blueprint:
    """Return the blueprint of the one route that shows numbers."""
    blueprint = Blueprint("metrics", __name__)

    @blueprint.get("/metrics")
    def show_metrics() -> Response:
        """Show the metrics of all workers, to this machine without a token."""
        if not is_local(request.environ):
            token = tokens.authenticate(request.environ.get("HTTP_AUTHORIZATION"))
            if token.projects is not None:
                raise Rejection("forbidden_scope", BOUND)
        text, content_type = metrics.render(request.environ.get("HTTP_ACCEPT", ""))
        return Response(text, content_type=content_type)

    return blueprint


def is_local(environ: dict[str, Any]) -> bool:
    """Return whether a request comes from this machine and was not forwarded by a proxy on it."""
    if any(name.startswith(FORWARDING_HEADERS) for name in environ):
        return False
    host = environ.get("HTTP_HOST", "").lower()
    if host not in LOCAL_HOSTS and host.rpartition(":")[0] not in LOCAL_HOSTS[1:]:
        return False
    peer = environ.get("REMOTE_ADDR", "")
    return peer == "" or _is_loopback(peer)  # a unix socket has no address


def _is_loopback(peer: str) -> bool:
    try:
        address = ip_address(peer)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback
