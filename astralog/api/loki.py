"""/loki/api/v1/push: accept pushes to Grafana's Loki, and answer as Loki does.

Source: https://grafana.com/docs/loki/latest/reference/loki-http-api/#ingest-logs.
"""

from functools import partial
from http import HTTPStatus

from flask import Response
from werkzeug.exceptions import MethodNotAllowed, NotFound

from astralog.api.dispatch import OPTIONS, Note, PlainView, decode_wsgi, without_parameters
from astralog.api.responses import REPLAYED_HEADERS, make_rejecter
from astralog.errors import Rejection
from astralog.intake.acceptor import Acceptor, Inflate
from astralog.intake.body import Environ
from astralog.intake.decoder import Decoder
from astralog.intake.loki import MAX_TENANT_CHARACTERS, decode_json

PATH = "/loki/api/v1/push"


def create_view(acceptor: Acceptor, note: Note) -> PlainView:
    def answer(environ: Environ) -> Response:
        """Store a push; 204 means that every entry of it is in a segment file."""
        if environ["PATH_INFO"] != PATH:
            raise NotFound
        if environ["REQUEST_METHOD"] != "POST":
            raise MethodNotAllowed(["POST"])
        decode, inflate = _find_decoder(environ, acceptor.bodies.max_bytes)
        coding = without_parameters(environ.get("HTTP_CONTENT_ENCODING", ""))
        if coding == "snappy":  # as some say of protobuf
            environ = {**environ, "HTTP_CONTENT_ENCODING": ""}
        accepted = acceptor.accept(environ, decode, OPTIONS, inflate)
        headers = REPLAYED_HEADERS if accepted.is_replayed else None
        response = Response(status=HTTPStatus.NO_CONTENT, headers=headers)
        del response.headers["Content-Type"]  # there is no content
        return response

    return PlainView(answer, make_rejecter(note, _render))


def _render(rejection: Rejection, environ: Environ) -> Response:
    text = f"{rejection.code}: {rejection.message}\n"
    return Response(text, rejection.status, content_type="text/plain; charset=utf-8")


def _find_decoder(environ: Environ, max_body_bytes: int) -> tuple[Decoder, Inflate | None]:
    """Return the decoder of a push, and the function that decompresses its body first.

    As in Loki, a body without a JSON Content-Type is protobuf, compressed with Snappy.
    """
    sent: str = environ.get("HTTP_X_SCOPE_ORGID", "")
    tenant = decode_wsgi(sent.strip())
    if len(tenant) > MAX_TENANT_CHARACTERS:
        limit = f"max {MAX_TENANT_CHARACTERS} characters"
        raise Rejection("bad_request", f"X-Scope-OrgID: tenant ID is too long: {limit}")
    if without_parameters(environ.get("CONTENT_TYPE", "")) == "application/json":
        return partial(decode_json, tenant), None
    from astralog.intake import loki_protobuf  # noqa: PLC0415  # takes 50 ms

    decode = partial(loki_protobuf.decode_protobuf, tenant)
    return decode, partial(loki_protobuf.inflate, max_body_bytes)
