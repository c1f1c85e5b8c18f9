"""GET /, /docs and /openapi.json: the API explains itself, also without a network."""

import zlib
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import NamedTuple

import msgspec
from flask import Blueprint, Response, redirect, request
from werkzeug.exceptions import NotFound
from werkzeug.wrappers import Response as AnyResponse

from astralog.api.openapi import describe
from astralog.api.responses import json_response

OWN = files("astralog.api") / "static"
SWAGGER_UI = files("flask_swagger_ui") / "dist"

CSS, HTML = "text/css; charset=utf-8", "text/html; charset=utf-8"
JAVASCRIPT, PNG = "text/javascript; charset=utf-8", "image/png"

#: Nothing on the page comes from, or goes to, another host, and nothing runs but its own files.
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
    """A file of the page, in memory: the disk may stall."""

    content: bytes
    kind: str
    etag: str


def load_assets() -> dict[str, Asset]:
    """Return the files that the page is made of, by name."""
    return {
        "docs.css": _load(OWN / "docs.css", CSS),
        "docs.js": _load(OWN / "docs.js", JAVASCRIPT),
        "swagger-ui.css": _load(SWAGGER_UI / "swagger-ui.css", CSS),
        "swagger-ui-bundle.js": _load(SWAGGER_UI / "swagger-ui-bundle.js", JAVASCRIPT),
        "favicon-32x32.png": _load(SWAGGER_UI / "favicon-32x32.png", PNG),
    }


def _load(path: Traversable, kind: str) -> Asset:
    content = path.read_bytes()
    return Asset(content, kind, f"{zlib.crc32(content):08x}-{len(content):x}")


def create_blueprint(version: str) -> Blueprint:
    """Return the blueprint of the routes that tell what the others do."""
    blueprint = Blueprint("docs", __name__)
    page, assets = _load(OWN / "docs.html", HTML), load_assets()
    document: Callable[[], bytes] = cache(lambda: msgspec.json.encode(describe(version)))

    @blueprint.get("/")
    def lead() -> AnyResponse:
        """Lead a browser to the page, and tell anything else what there is."""
        kinds = request.accept_mimetypes
        if kinds["text/html"] > kinds["application/json"]:
            response: AnyResponse = redirect("/docs")
        else:
            links = {
                "docs": "/docs",
                "openapi": "/openapi.json",
                "health": "/health",
                "ready": "/ready",
                "metrics": "/metrics",
            }
            response = json_response({"name": "AstraLog", "version": version, "links": links})
        response.vary.add("Accept")
        return response

    @blueprint.get("/docs")
    def show_docs() -> Response:
        """Show the API to a person."""
        response = _send(page)
        response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    @blueprint.get("/docs/<asset>")
    def show_asset(asset: str) -> AnyResponse:
        """Return a file of the page."""
        if asset not in assets:
            raise NotFound
        response = _send(assets[asset])
        response.cache_control.no_cache = True
        return response.make_conditional(request)

    @blueprint.get("/openapi.json")
    def show_document() -> Response:
        """Show the API to a program."""
        return Response(document(), content_type="application/json")

    return blueprint


def _send(asset: Asset) -> Response:
    response = Response(asset.content, content_type=asset.kind)
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.set_etag(asset.etag)
    return response
