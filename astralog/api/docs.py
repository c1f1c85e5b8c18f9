"""GET /, /docs and /openapi.json: the API explains itself, also without a network."""

from collections.abc import Callable
from functools import cache
from http import HTTPStatus
from importlib.resources import files

import msgspec
from flask import Blueprint, Response, request

from astralog.api import assets
from astralog.api.assets import OWN, Asset
from astralog.api.negotiation import prefers_html
from astralog.api.openapi import describe
from astralog.api.responses import json_response

SWAGGER_UI = files("flask_swagger_ui") / "dist"


def load_assets() -> dict[str, Asset]:
    """Return the files that the page is made of, by name."""
    others = ("swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png")
    paths = [OWN / "docs.css", OWN / "docs.js", *(SWAGGER_UI / name for name in others)]
    return {path.name: assets.load(path) for path in paths}


def create_blueprint(version: str, *, has_status: bool) -> Blueprint:
    """Return the blueprint of the routes that tell what the others do."""
    blueprint = Blueprint("docs", __name__)
    page, files_of_page = assets.load(OWN / "docs.html"), load_assets()
    document: Callable[[], bytes] = cache(
        lambda: msgspec.json.encode(describe(version, has_status=has_status))
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
    def lead() -> Response:
        """Lead a browser to a page, and tell anything else what there is."""
        response = json_response({"name": "AstraLog", "version": version, "links": links})
        if prefers_html(request.environ.get("HTTP_ACCEPT", "")):
            response.status_code = HTTPStatus.FOUND
            response.headers["Location"] = status.get("status", "/docs")
        response.headers["Vary"] = "Accept"
        return response

    @blueprint.get("/docs")
    def show_docs() -> Response:
        """Show the API to a person."""
        return assets.send_page(page)

    @blueprint.get("/docs/<asset>")
    def show_asset(asset: str) -> Response:
        """Return a file of the page."""
        return assets.send_one_of(files_of_page, asset, request.environ)

    @blueprint.get("/openapi.json")
    def show_document() -> Response:
        """Show the API to a program."""
        return Response(document(), content_type="application/json")

    return blueprint
