"""The API's description in OpenAPI 3.1, made from the schemas and the refusals themselves.

The format is https://spec.openapis.org/oas/v3.1.0.
"""

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin

from astralog.body import INFLATERS
from astralog.errors import MEANING_OF_CODE, RETRY_AFTER_SECONDS, STATUS_OF_CODE
from astralog.schemas import BatchSchema

OPENAPI_VERSION = "3.1.0"

ABOUT = """\
A log collector that answers 200 when every line is on disk.

On the service's own machine, with the token of its first start:

```
curl -s http://localhost:8080/v1/drain \\
  -H "Authorization: Bearer $(cat data/token)" \\
  -d '{"logs": [{"project_id": "org-xyz", "timestamp": "2024-05-31T15:30:45Z",
       "level": "info", "service": "api-gateway", "message": "User logged in",
       "metadata": {"user_id": 123, "ip": "1.1.1.1"}}]}'
```

To try it on this page, put the token under *Authorize*. Send 100 to 500 logs a batch over several
connections, and give up after 10 seconds. This page is made of [openapi.json](openapi.json).
"""

DRAIN = """\
Every log of the batch is stored, or none: 200 means that all of them are written and synced.

A body may be compressed, as its Content-Encoding says: {codings}.

```
gzip -c batch.json | curl -s http://localhost:8080/v1/drain \\
  -H "Authorization: Bearer $(cat data/token)" \\
  -H "Content-Encoding: gzip" --data-binary @-
```
"""

EXAMPLE = {
    "logs": [
        {
            "project_id": "org-xyz",
            "timestamp": "2024-05-31T15:30:45Z",
            "level": "info",
            "service": "api-gateway",
            "message": "User logged in",
            "metadata": {"user_id": 123, "ip": "1.1.1.1"},
        }
    ]
}

_REJECTED_BATCH = {
    "status": "rejected",
    "code": "invalid_batch",
    "message": "1 of 500 logs are malformed; nothing was stored",
    "errors": {"logs": {"3": {"level": ["Must not be empty."]}}},
}

#: Refusals that no batch gets.
NOT_OF_BATCHES = ("not_found", "method_not_allowed")

REFUSAL: dict[str, Any] = {
    "type": "object",
    "required": ["status", "code", "message"],
    "properties": {
        "status": {"type": "string", "const": "rejected"},
        "code": {
            "type": "string",
            "enum": list(STATUS_OF_CODE),
            "description": "Why, in a word that never changes.",
        },
        "message": {"type": "string", "description": "Why, in a sentence."},
        "errors": {
            "type": "object",
            "description": "With `invalid_batch`: what is malformed, by index and field of the "
            "first 20 malformed logs.",
        },
    },
}

_REFUSAL = {"$ref": "#/components/schemas/Refusal"}

Operation = dict[str, Any]


def describe(version: str) -> dict[str, Any]:
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
    spec.components.schema("Refusal", REFUSAL)
    spec.path("/v1/drain", operations={"post": _drain()})
    for path, operation in _READING.items():
        spec.path(path, operations={"get": operation})
    return spec.to_dict()


def _drain() -> Operation:
    body = {
        "required": True,
        "content": {"application/json": {"schema": BatchSchema, "example": EXAMPLE}},
    }
    codes = [code for code in STATUS_OF_CODE if code not in NOT_OF_BATCHES]
    accepted = _json("Every log is stored.", {"status": "accepted"})
    return {
        "operationId": "drain",
        "tags": ["Logs"],
        "summary": "Store a batch of logs",
        "description": DRAIN.format(codings=", ".join(INFLATERS)),
        "security": [{"token": []}],
        "requestBody": body,
        "responses": {"200": accepted, **_refusals(codes)},
    }


def _refusals(codes: Iterable[str]) -> dict[str, Any]:
    """Return a response for each status that the codes have."""
    by_status: dict[HTTPStatus, list[str]] = {}
    for code in codes:
        by_status.setdefault(STATUS_OF_CODE[code], []).append(code)
    return {str(int(status)): _refusal(status, by_status[status]) for status in sorted(by_status)}


def _refusal(status: HTTPStatus, codes: list[str]) -> dict[str, Any]:
    lines = [f"- `{code}`: {MEANING_OF_CODE[code]}" for code in codes]
    example = _REJECTED_BATCH if "invalid_batch" in codes else _rejected(codes[0])
    response: dict[str, Any] = {
        "description": "\n".join([f"{status.phrase}.", "", *lines]),
        "content": {"application/json": {"schema": _REFUSAL, "example": example}},
    }
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        response["headers"] = {"Retry-After": _header("Seconds to wait.", RETRY_AFTER_SECONDS)}
    if status == HTTPStatus.UNAUTHORIZED:
        response["headers"] = {"WWW-Authenticate": _header("How to show a token.", "Bearer")}
    return response


def _rejected(code: str) -> dict[str, Any]:
    return {"status": "rejected", "code": code, "message": MEANING_OF_CODE[code]}


def _header(description: str, value: str | int) -> dict[str, Any]:
    kind = "integer" if isinstance(value, int) else "string"
    return {"description": description, "schema": {"type": kind, "const": value}}


def _json(description: str, example: dict[str, Any]) -> dict[str, Any]:
    schema = {
        "type": "object",
        "required": list(example),
        "properties": {name: _schema_of(value) for name, value in example.items()},
    }
    return {
        "description": description,
        "content": {"application/json": {"schema": schema, "example": example}},
    }


def _schema_of(value: object) -> dict[str, Any]:
    return {"type": "object"} if isinstance(value, dict) else {"type": "string"}


def _content(description: str, *kinds: str) -> dict[str, Any]:
    return {"description": description, "content": {kind: {} for kind in kinds}}


def _get(tag: str, summary: str, responses: dict[str, Any], **more: Any) -> Operation:
    return {"tags": [tag], "summary": summary, "responses": responses, **more}


_UNREADY = _json(
    "Batches would be refused, with this code.", {"status": "unavailable", "reason": "storage_full"}
)
_LINKS = {"docs": "/docs", "openapi": "/openapi.json"}

#: What can be asked for with GET.
_READING: dict[str, Operation] = {
    "/health": _get(
        "Health",
        "Tell whether the process serves",
        {"200": _json("It does.", {"status": "ok"})},
    ),
    "/ready": _get(
        "Health",
        "Tell whether a batch would be taken now",
        {"200": _json("It would.", {"status": "ready"}), "503": _UNREADY},
    ),
    "/metrics": _get(
        "Health",
        "Show the metrics, for Prometheus",
        {
            "200": _content("The metrics of all workers.", "text/plain"),
            **_refusals(["unauthorized"]),
        },
        description="From the service's own machine no token is needed, unless a proxy forwards.",
        security=[{"token": []}, {}],
    ),
    "/": _get(
        "This page",
        "Lead a browser to this page, and anything else to what there is",
        {
            "200": _json("What there is.", {"name": "AstraLog", "version": "1", "links": _LINKS}),
            "302": {"description": "To this page."},
        },
    ),
    "/docs": _get("This page", "Show this page", {"200": _content("This page.", "text/html")}),
    "/docs/{asset}": _get(
        "This page",
        "Return a file of this page",
        {
            "200": _content("The file.", "text/css", "text/javascript", "image/png"),
            **_refusals(["not_found"]),
        },
        parameters=[
            {"name": "asset", "in": "path", "required": True, "schema": {"type": "string"}}
        ],
    ),
    "/openapi.json": _get(
        "This page",
        "Return what this page is made of",
        {"200": _content("This document.", "application/json")},
    ),
}
