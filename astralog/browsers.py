"""Requests from web pages of other origins: CORS, and tokens in the query.

A page may send to this service if its origin is listed (ASTRALOG_CORS_ORIGINS), and only with a
token that reads nothing, since anyone who opens the page sees the token. `navigator.sendBeacon`
sets no headers, so that such a token may also be in the query. Requests without an `Origin`, and
those of this service's own pages, are not affected.

Source: https://fetch.spec.whatwg.org/#http-cors-protocol.
"""

import re
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from astralog.errors import ORIGIN_FORBIDDEN, ORIGIN_TOKEN_FORBIDDEN, Rejection
from astralog.tokens_file import Scope, Token

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse

#: The token that the query of a request contained, in the request's environ.
QUERY_TOKEN = "astralog.query_token"  # nosec B105  # not a token

#: Seconds for which a browser may keep the response to a preflight.
MAX_AGE_SECONDS = 7200

#: The headers that a browser lets a page send and read. A wildcard does not cover `Authorization`,
#: and counts as a name in a request with credentials, as of sendBeacon.
SENT_HEADERS = "Authorization, Content-Type, Content-Encoding, Idempotency-Key, *"
READ_HEADERS = "Retry-After, Idempotency-Replayed"

_TOKEN_PARAMETER = re.compile(r"(?:^|&)token=([^&]*)")

#: A request as WSGI has it.
Environ = Mapping[str, Any]


class Origins:
    """The origins whose pages may send."""

    def __init__(self, listed: Collection[str]) -> None:
        self._listed = frozenset(listed)

    def is_listed(self, environ: Environ) -> bool:
        """Return whether a request comes from a page of a listed origin."""
        return environ.get("HTTP_ORIGIN") in self._listed

    def check(self, environ: Environ, token: Token) -> None:
        """Raise Rejection `forbidden_scope` if a page may not send the request with its token."""
        if not is_foreign(environ):
            return
        if not self.is_listed(environ):
            raise Rejection(*ORIGIN_FORBIDDEN)
        if Scope.READ in token.scopes:
            raise Rejection(*ORIGIN_TOKEN_FORBIDDEN)


def is_foreign(environ: Environ) -> bool:
    """Return whether a request comes from a page of another origin.

    A page can forge neither `Origin` nor `Sec-Fetch-Site`. The latter counts first: behind a proxy,
    `Host` may be another name than the page's.
    """
    origin = environ.get("HTTP_ORIGIN")
    if origin is None or environ.get("HTTP_SEC_FETCH_SITE") == "same-origin":
        return False
    host = str(origin).partition("://")[2]
    return not host or host.lower() != str(environ.get("HTTP_HOST", "")).lower()


def is_preflight(environ: Environ) -> bool:
    """Return whether a browser asks if it may send a request."""
    is_asking = "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in environ
    return is_asking and environ["REQUEST_METHOD"] == "OPTIONS"


def permit(environ: Environ, start_response: "StartResponse") -> "StartResponse":
    """Return a `start_response` that lets the page of a listed origin read the response."""
    cors = [
        ("Access-Control-Allow-Origin", environ["HTTP_ORIGIN"]),
        ("Access-Control-Allow-Credentials", "true"),
        ("Access-Control-Expose-Headers", READ_HEADERS),
        ("Vary", "Origin"),
    ]

    def start(
        status: str, headers: list[tuple[str, str]], *error: Any
    ) -> Callable[[bytes], object]:
        return start_response(status, [*headers, *cors], *error)

    return start


def answer_preflight(start_response: "StartResponse") -> list[bytes]:
    """Respond to a preflight with the headers that permit its request."""
    headers = [
        ("Access-Control-Allow-Methods", "POST"),
        ("Access-Control-Allow-Headers", SENT_HEADERS),
        ("Access-Control-Max-Age", str(MAX_AGE_SECONDS)),
    ]
    start_response("204 No Content", headers)
    return []


def hide_query_token(environ: dict[str, Any]) -> dict[str, Any]:
    """Move the token in a request's query to QUERY_TOKEN, and return the new environ.

    Nothing behind this can log or repeat the token. A query with several tokens stays as it is, and
    is rejected for a parameter that no path has.
    """
    query = environ.get("QUERY_STRING", "")
    tokens = _TOKEN_PARAMETER.findall(query)
    if len(tokens) != 1 or "HTTP_AUTHORIZATION" in environ:
        return environ
    token = unquote_to_bytes(tokens[0].replace("+", " ")).decode("latin-1")
    rest = _TOKEN_PARAMETER.sub("", query).removeprefix("&")
    return {**environ, "QUERY_STRING": rest, QUERY_TOKEN: token}
