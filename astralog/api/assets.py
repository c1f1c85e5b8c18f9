"""The files that pages are made of, in memory: the disk may stall."""

import zlib
from collections.abc import Mapping
from http import HTTPStatus
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import PurePath
from typing import Any, NamedTuple

from flask import Response
from werkzeug.exceptions import NotFound

from astralog.api.negotiation import has_current

OWN = files("astralog.api") / "static"

KINDS = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}

#: Nothing on a page comes from, or goes to, another host, and nothing runs but its own files.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "form-action 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)


class Asset(NamedTuple):
    """A file of a page."""

    content: bytes
    kind: str
    etag: str


def load(path: Traversable) -> Asset:
    """Read a file, whose name's ending tells what kind it is."""
    content = path.read_bytes()
    kind = KINDS[PurePath(path.name).suffix]
    return Asset(content, kind, f"{zlib.crc32(content):08x}-{len(content):x}")


def send(asset: Asset) -> Response:
    """Return a response with a file."""
    response = Response(asset.content, content_type=asset.kind)
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.set_etag(asset.etag)
    return response


def send_page(page: Asset, policy: str = CONTENT_SECURITY_POLICY) -> Response:
    """Return a response with a page."""
    response = send(page)
    response.headers["Content-Security-Policy"] = policy
    response.headers["Referrer-Policy"] = "no-referrer"
    return response


def send_one_of(assets: dict[str, Asset], name: str, environ: Mapping[str, Any]) -> Response:
    """Return a response with a file of a page, without it if the client has it; raises NotFound."""
    if name not in assets:
        raise NotFound
    response = send(assets[name])
    response.headers["Cache-Control"] = "no-cache"
    if has_current(environ.get("HTTP_IF_NONE_MATCH", ""), assets[name].etag):
        response.status_code = HTTPStatus.NOT_MODIFIED
        response.set_data(b"")
    return response
