"""The API's description in OpenAPI 3.1, made from the schemas and the rejections themselves.

The format is https://spec.openapis.org/oas/v3.1.0.
"""

from typing import Any

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin

from astralog.api.drain import NDJSON_TYPES, SHOWN_LOGS
from astralog.api.openapi_parts import (
    ABOUT,
    DRAIN,
    ERRORS,
    EXAMPLE,
    KEY,
    NDJSON_EXAMPLE,
    PARTIAL_BATCH,
    REJECTION,
    REPLAYED,
    RETRY_AFTER,
    describe_options,
    describe_otlp,
    describe_rejections,
    describe_search,
    describe_status,
)
from astralog.api.openapi_protocols import describe_protocols
from astralog.errors import STATUS_OF_CODE
from astralog.intake.body import INFLATERS
from astralog.intake.schema import BatchSchema, LogSchema

OPENAPI_VERSION = "3.1.0"

#: Rejections that no drained batch gets.
NOT_OF_BATCHES = (
    "not_found",
    "method_not_allowed",
    "invalid_protobuf",
    "status_busy",
    "search_busy",
)

Operation = dict[str, Any]


def describe(version: str, *, has_status: bool = True) -> dict[str, Any]:
    """Return the document that describes the API of this version."""
    spec = APISpec(
        title="AstraLog",
        version=version,
        openapi_version=OPENAPI_VERSION,
        plugins=[MarshmallowPlugin()],
        info={"description": ABOUT},
        servers=[{"url": "/"}],
    )
    token = {
        "type": "http",
        "scheme": "bearer",
        "description": "A token; curl may also send it as it is, without `Bearer`.",
    }
    spec.components.security_scheme("token", token)
    spec.components.schema("Batch", schema=BatchSchema)
    spec.components.schema("Rejection", REJECTION)
    spec.path("/v1/drain", operations={"post": _drain()})
    posted = describe_otlp(describe_options(), describe_rejections)
    for path, operation in posted.items():
        spec.path(path, operations={"post": operation})
    for path, operations in describe_protocols(describe_options(), describe_rejections).items():
        spec.path(path, operations=operations)
    others = _READING | (describe_status(describe_rejections) if has_status else {})
    others["/v1/search"] = describe_search(describe_rejections)
    for path, operation in others.items():
        spec.path(path, operations={"get": operation})
    return spec.to_dict()


def _drain() -> Operation:
    lines = {
        "schema": {"type": "string", "description": "One log a line."},
        "example": NDJSON_EXAMPLE,
    }
    body = {
        "required": True,
        "content": {
            "application/json": {"schema": BatchSchema, "example": EXAMPLE},
            **dict.fromkeys(sorted(NDJSON_TYPES), lines),
        },
    }
    codes = [code for code in STATUS_OF_CODE if code not in NOT_OF_BATCHES]
    return {
        "operationId": "drain",
        "tags": ["Logs"],
        "summary": "Store a batch of logs",
        "description": DRAIN.format(codings=", ".join(INFLATERS)),
        "security": [{"token": []}],
        "parameters": [*describe_options(), KEY],
        "requestBody": body,
        "responses": {"200": _accepted(), **describe_rejections(codes)},
    }


def _accepted() -> dict[str, Any]:
    properties = {
        "status": {"type": "string", "enum": ["accepted", "valid"]},
        "logs": {
            "type": "array",
            "items": LogSchema,
            "maxItems": SHOWN_LOGS,
            "description": "Of a dry run: the first logs, as they would be stored.",
        },
        "rejected": {
            "type": "integer",
            "minimum": 1,
            "description": "With `partial=true`: how many logs are invalid, and not stored.",
        },
        "kept": {
            "type": "integer",
            "minimum": 1,
            "description": "With `invalid=keep`: how many logs are invalid, and stored as text.",
        },
        "errors": ERRORS,
    }
    schema = {"type": "object", "required": ["status"], "properties": properties}
    examples = {
        "accepted": {"summary": "Every log is stored", "value": {"status": "accepted"}},
        "partial": {"summary": "With partial=true, the others are", "value": PARTIAL_BATCH},
        "valid": {"summary": "A dry run", "value": {"status": "valid", **EXAMPLE}},
    }
    content = {"application/json": {"schema": schema, "examples": examples}}
    description = "Every log is stored, or a dry run found no fault."
    return {"description": description, "headers": REPLAYED, "content": content}


def _json(description: str, example: dict[str, Any]) -> dict[str, Any]:
    schema = {
        "type": "object",
        "required": list(example),
        "properties": {
            name: {"type": "object" if isinstance(value, dict) else "string"}
            for name, value in example.items()
        },
    }
    return {
        "description": description,
        "content": {"application/json": {"schema": schema, "example": example}},
    }


def _content(description: str, *kinds: str) -> dict[str, Any]:
    return {"description": description, "content": {kind: {} for kind in kinds}}


def _get(tag: str, summary: str, responses: dict[str, Any], **more: Any) -> Operation:
    return {"tags": [tag], "summary": summary, "responses": responses, **more}


_UNREADY = {
    **_json(
        "Batches would be rejected, with this code.",
        {"status": "unavailable", "reason": "storage_full"},
    ),
    "headers": RETRY_AFTER,
}
_ROOT = {"name": "AstraLog", "version": "1", "links": {"docs": "/docs"}}

#: The operations with GET.
_READING: dict[str, Operation] = {
    "/health": _get(
        "Health",
        "Return whether the process serves",
        {"200": _json("It does.", {"status": "ok"})},
    ),
    "/ready": _get(
        "Health",
        "Return whether a batch would be taken now",
        {"200": _json("It would.", {"status": "ready"}), "503": _UNREADY},
    ),
    "/metrics": _get(
        "Health",
        "Show the metrics, for Prometheus",
        {
            "200": _content(
                "The metrics of all workers.", "text/plain", "application/openmetrics-text"
            ),
            **describe_rejections(["unauthorized", "forbidden_scope", "internal"]),
        },
        description="From the service's own machine no token is needed, unless a proxy forwards.",
        security=[{"token": []}, {}],
    ),
    "/": _get(
        "This page",
        "Redirect a browser to a page, and return links to other clients",
        {
            "200": _json("Links to the pages and paths.", _ROOT),
            "302": {"description": "To `/status`, or to this page if the status page is off."},
        },
    ),
    "/docs": _get("This page", "Show this page", {"200": _content("This page.", "text/html")}),
    "/docs/{asset}": _get(
        "This page",
        "Return a file of this page",
        {
            "200": _content("The file.", "text/css", "text/javascript", "image/png"),
            **describe_rejections(["not_found"]),
        },
        parameters=[
            {"name": "asset", "in": "path", "required": True, "schema": {"type": "string"}}
        ],
    ),
    "/openapi.json": _get(
        "This page",
        "Return a file of this page",
        {"200": _content("This document.", "application/json")},
    ),
}
