"""GET /, /docs and /openapi.json, and the files of pages, which are kept in memory.

No file is read while the service runs, since the disk may stall. Headers that say which response a
client wants are read in linear time: anyone may send them without a token, and werkzeug takes
quadratic time for them and raises errors for some.
"""

import re
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from http import HTTPStatus
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import PurePath
from typing import Any, NamedTuple

import msgspec
from flask import Blueprint, Response, request
from werkzeug.exceptions import NotFound

from astralog.api.openapi import describe
from astralog.api.responses import json_response

OWN = files("astralog.api") / "static"
SWAGGER_UI = files("flask_swagger_ui") / "dist"

KINDS = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}

#: A page loads from and sends to its own host only, and runs no script except its own files.
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
    """Read a file."""
    return make_asset(path.name, path.read_bytes())


def make_asset(name: str, content: bytes) -> Asset:
    """Return a file with this content; the suffix of its name determines its media type."""
    kind = KINDS[PurePath(name).suffix]
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
    """Return a file of a page, or 304 if the client has its current version; raises NotFound."""
    if name not in assets:
        raise NotFound
    response = send(assets[name])
    response.headers["Cache-Control"] = "no-cache"
    if has_current(environ.get("HTTP_IF_NONE_MATCH", ""), assets[name].etag):
        response.status_code = HTTPStatus.NOT_MODIFIED
        response.set_data(b"")
    return response


#: Characters of a header that are read: more than any browser sends.
MAX_CHARACTERS = 1000

_QUALITY = re.compile(r"[qQ]=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)")


def prefers_html(accept: str) -> bool:
    """Return whether an Accept header ranks text/html above application/json."""
    ranges = _parse(accept)
    return _quality(ranges, "text/html") > _quality(ranges, "application/json")


def has_current(if_none_match: str, etag: str) -> bool:
    """Return whether an If-None-Match header contains the `etag`, given without its quotes."""
    tags = {tag.strip().removeprefix("W/") for tag in if_none_match[:MAX_CHARACTERS].split(",")}
    return not tags.isdisjoint(("*", f'"{etag}"'))


def _parse(accept: str) -> dict[str, float]:
    """Return the quality of each media range (RFC 9110, 12.5.1); parameters are ignored."""
    ranges = {}
    for item in accept[:MAX_CHARACTERS].split(","):
        kind, *parameters = (word.strip() for word in item.split(";"))
        qualities = map(_QUALITY.fullmatch, parameters)
        ranges[kind.lower()] = next((float(found[1]) for found in qualities if found), 1.0)
    return ranges


def _quality(ranges: dict[str, float], kind: str) -> float:
    """Return the quality of the most specific range that a media type is in, 0 without any."""
    family = kind.partition("/")[0] + "/*"
    return next((ranges[name] for name in (kind, family, "*/*") if name in ranges), 0.0)


def load_assets() -> dict[str, Asset]:
    """Return the files of the page, by name."""
    others = ("swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png")
    paths = [OWN / "docs.css", OWN / "docs.js", *(SWAGGER_UI / name for name in others)]
    return {path.name: load(path) for path in paths}


def create_blueprint(version: str, *, has_status: bool) -> Blueprint:
    """Return the blueprint of the routes that describe the API."""
    blueprint = Blueprint("docs", __name__)
    page, files_of_page = load(OWN / "docs.html"), load_assets()
    template = (OWN / "openapi.json").read_bytes()
    document: Callable[[], bytes] = cache(
        lambda: msgspec.json.encode(describe(template, version, has_status=has_status))
    )
    status = {"status": "/status"} if has_status else {}
    links = {
        **status,
        "docs": "/docs",
        "openapi": "/openapi.json",
        "health": "/health",
        "ready": "/ready",
        "metrics": "/metrics",
    }

    @blueprint.get("/")
    def show_links() -> Response:
        """Redirect a browser to a page; return links to other clients."""
        response = json_response({"name": "AstraLog", "version": version, "links": links})
        if prefers_html(request.environ.get("HTTP_ACCEPT", "")):
            response.status_code = HTTPStatus.FOUND
            response.headers["Location"] = status.get("status", "/docs")
        response.headers["Vary"] = "Accept"
        return response

    @blueprint.get("/docs")
    def show_docs() -> Response:
        """Show the page of the API."""
        return send_page(page)

    @blueprint.get("/docs/<asset>")
    def show_asset(asset: str) -> Response:
        """Return a file of the page."""
        return send_one_of(files_of_page, asset, request.environ)

    @blueprint.get("/openapi.json")
    def show_document() -> Response:
        """Return the description of the API in OpenAPI."""
        return Response(document(), content_type="application/json")

    return blueprint
