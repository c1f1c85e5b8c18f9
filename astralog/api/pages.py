"""GET /, /docs and /openapi.json, and the files of pages, which are kept in memory.

No file is read while the service runs, since the disk may stall. Headers that say which response a
client wants are read in linear time: anyone may send them without a token, and werkzeug takes
quadratic time for them and raises errors for some.
"""

import json
import re
import zlib
from collections.abc import Callable, Collection, Mapping
from functools import cache
from http import HTTPStatus
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import PurePath
from typing import Any, NamedTuple

import msgspec
from flask import Blueprint, Response, request
from werkzeug.exceptions import NotFound

from astralog.api.drain import NDJSON_TYPES
from astralog.api.responses import json_response
from astralog.errors import MEANING_OF_CODE, RETRIED_STATUSES, STATUS_OF_CODE

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
    return make_asset(path.name, path.read_bytes())


def make_asset(name: str, content: bytes) -> Asset:
    """Return a file with this content; the suffix of its name determines its media type."""
    kind = KINDS[PurePath(name).suffix]
    return Asset(content, kind, f"{zlib.crc32(content):08x}-{len(content):x}")


def send(asset: Asset) -> Response:
    response = Response(asset.content, content_type=asset.kind)
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.set_etag(asset.etag)
    return response


def send_page(page: Asset, policy: str = CONTENT_SECURITY_POLICY) -> Response:
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


# --- The description of the API

Json = dict[str, Any]

#: Codes of requests that store nothing.
NOT_OF_BATCHES = ("not_found", "method_not_allowed", "status_busy", "search_busy")

REJECTED_BATCH = {
    "status": "rejected",
    "code": "invalid_batch",
    "message": "1 of 500 logs are invalid; nothing was stored",
    "errors": {"logs": {"3": {"level": ["Must not be empty."]}}},
}


def describe(template: bytes, version: str, *, has_status: bool = True) -> Json:
    """Return the document that describes the API of this version in OpenAPI 3.1.

    `template`, the file static/openapi.json, has every operation. Added are

    - the codes of rejections;
    - to a parameter or a header what `x-parameters` and `x-headers` have under its name;
    - a response for each status of an operation's `x-codes`, in which `batches` stands for all
      codes of batches. Its body is a `Rejection`, or the one of `x-bodies` that `x-body` names.

    A text of several lines is a list of them in the file. Source:
    https://spec.openapis.org/oas/v3.1.0.
    """
    document: Json = json.loads(template, object_hook=_join_lines)
    parameters, headers, bodies = (
        document.pop(name) for name in ("x-parameters", "x-headers", "x-bodies")
    )
    document["info"]["version"] = version
    rejection = document["components"]["schemas"]["Rejection"]
    rejection["properties"]["code"]["enum"] = list(STATUS_OF_CODE)
    paths = document["paths"]
    if not has_status:
        for path in [path for path in paths if path.startswith("/status")]:
            del paths[path]
    content = paths["/v1/drain"]["post"]["requestBody"]["content"]
    content |= dict.fromkeys(NDJSON_TYPES, content["application/x-ndjson"])
    for operation in (each for path in paths.values() for each in path.values()):
        if "parameters" in operation:
            operation["parameters"] = [
                parameters.get(each["name"], {}) | each for each in operation["parameters"]
            ]
        body = bodies.get(operation.pop("x-body", None))
        operation["responses"] |= _describe_rejections(operation.pop("x-codes", ()), body)
        for response in operation["responses"].values():
            for name, header in response.get("headers", {}).items():
                header.update(headers.get(name, {}))
    bulk = paths["/elasticsearch/_bulk"]
    bulk["put"] = bulk["post"] | {"operationId": "putBulk"}
    return document


def _join_lines(value: Json) -> Json:
    for name in ("description", "example"):
        if isinstance(lines := value.get(name), list):
            value[name] = "".join(f"{line}\n" for line in lines)
    return value


def _describe_rejections(codes: Collection[str], body: Json | None) -> Json:
    """Return a response for each status that the codes have."""
    by_status: dict[HTTPStatus, list[str]] = {}
    for code, status in STATUS_OF_CODE.items():
        is_of_batches = code not in (*NOT_OF_BATCHES, "invalid_protobuf")
        if code in codes or (is_of_batches and "batches" in codes):
            by_status.setdefault(status, []).append(code)
    return {
        str(int(status)): _describe_rejection(status, by_status[status], body)
        for status in sorted(by_status)
    }


def _describe_rejection(status: HTTPStatus, codes: list[str], body: Json | None) -> Json:
    lines = [f"- `{code}`: {MEANING_OF_CODE[code]}" for code in codes]
    first = {"status": "rejected", "code": codes[0], "message": MEANING_OF_CODE[codes[0]]}
    example = REJECTED_BATCH if "invalid_batch" in codes else first
    schema = {"$ref": "#/components/schemas/Rejection"}
    response: Json = {
        "description": "\n".join([f"{status.phrase}.", "", *lines]),
        "content": body or {"application/json": {"schema": schema, "example": example}},
    }
    if status in RETRIED_STATUSES:
        response["headers"] = {"Retry-After": {}}
    if status == HTTPStatus.UNAUTHORIZED:
        response["headers"] = {"WWW-Authenticate": {}}
    return response


# --- The routes


def load_assets() -> dict[str, Asset]:
    others = ("swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png")
    paths = [OWN / "docs.css", OWN / "docs.js", *(SWAGGER_UI / name for name in others)]
    return {path.name: load(path) for path in paths}


def create_blueprint(version: str, *, has_status: bool) -> Blueprint:
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
        return send_page(page)

    @blueprint.get("/docs/<asset>")
    def show_asset(asset: str) -> Response:
        return send_one_of(files_of_page, asset, request.environ)

    @blueprint.get("/openapi.json")
    def show_document() -> Response:
        return Response(document(), content_type="application/json")

    return blueprint
