"""How OpenAPI describes what OpenTelemetry sends, and what it is answered."""

from collections.abc import Callable, Iterable
from typing import Any

from astralog.api.openapi_options import KEY, REPLAYED
from astralog.api.otlp import OTHER_SIGNALS, PARAMETERS, PROTOBUF_TYPES
from astralog.errors import STATUS_OF_CODE

#: Rejections that no export gets.
NOT_OF_EXPORTS = ("not_found", "method_not_allowed")

Operation = dict[str, Any]

_WORDS = """\
The OTLP/HTTP of OpenTelemetry, [version 1](https://opentelemetry.io/docs/specs/otlp/): SDKs and
collectors send here with `OTEL_EXPORTER_OTLP_ENDPOINT` set to this service and
`OTEL_EXPORTER_OTLP_HEADERS` to `Authorization=TOKEN`. Every log of the export is stored, or none.

A body of the type {types} is protobuf, any other is JSON; the response is of the same encoding.
"""

_EXPORT = {
    "type": "object",
    "description": "An ExportLogsServiceRequest. One without records may have no member that OTLP "
    "does not know.",
    "properties": {"resourceLogs": {"type": ["array", "null"], "items": {"type": "object"}}},
}

_EXAMPLE = {
    "resourceLogs": [
        {
            "resource": {
                "attributes": [
                    {"key": "service.name", "value": {"stringValue": "api-gateway"}},
                    {"key": "project_id", "value": {"stringValue": "org-xyz"}},
                ]
            },
            "scopeLogs": [
                {
                    "logRecords": [
                        {
                            "timeUnixNano": "1717169445000000000",
                            "severityNumber": 9,
                            "severityText": "INFO",
                            "body": {"stringValue": "User logged in"},
                            "attributes": [{"key": "user_id", "value": {"intValue": "123"}}],
                        }
                    ]
                }
            ],
        }
    ]
}

_RESPONSE = {
    "type": "object",
    "description": "An ExportLogsServiceResponse.",
    "properties": {
        "partialSuccess": {
            "type": "object",
            "description": "With `partial=true`: what was not stored, and why.",
            "required": ["rejectedLogRecords", "errorMessage"],
            "properties": {
                "rejectedLogRecords": {"type": "string", "pattern": "^[0-9]+$"},
                "errorMessage": {"type": "string"},
            },
        }
    },
}

_STATUS = {
    "type": "object",
    "description": "A google.rpc.Status, whose message begins with the code of the rejection.",
    "required": ["code", "message"],
    "properties": {"code": {"type": "integer"}, "message": {"type": "string"}},
}


def describe_otlp(
    options: list[dict[str, Any]], rejections: Callable[[Iterable[str]], dict[str, Any]]
) -> dict[str, Operation]:
    """Return the operations of POST by their paths.

    `options` are the parameters of a query, and `rejections` returns the responses that a drain
    gets for some codes.
    """
    codes = [code for code in STATUS_OF_CODE if code not in NOT_OF_EXPORTS]
    logs = {
        "operationId": "export",
        "tags": ["Logs"],
        "summary": "Store an export of OpenTelemetry",
        "description": _WORDS.format(types=" or ".join(f"`{t}`" for t in sorted(PROTOBUF_TYPES))),
        "security": [{"token": []}],
        "parameters": [*(option for option in options if option["name"] in PARAMETERS), KEY],
        "requestBody": {"required": True, "content": _content(_EXPORT, _EXAMPLE)},
        "responses": {
            "200": {
                "description": "Every log is stored, but for those it says are rejected.",
                "headers": REPLAYED,
                "content": _content(_RESPONSE, {}),
            },
            **_with_status(rejections(codes)),
        },
    }
    not_found = _with_status(rejections(["not_found"]))
    others = {f"/v1/{name}": _not_taken(name, not_found) for name in OTHER_SIGNALS}
    return {"/v1/logs": logs, **others}


def _not_taken(signal: str, responses: dict[str, Any]) -> Operation:
    return {
        "operationId": f"export-{signal}",
        "tags": ["Logs"],
        "summary": f"Say that {signal} are not taken",
        "responses": responses,
    }


def _with_status(responses: dict[str, Any]) -> dict[str, Any]:
    """Return the responses with OTLP's own body."""
    content = _content(_STATUS, {"code": 3, "message": "invalid_json: The body is not valid JSON."})
    return {status: {**response, "content": content} for status, response in responses.items()}


def _content(schema: dict[str, Any], example: dict[str, Any]) -> dict[str, Any]:
    return {
        "application/json": {"schema": schema, "example": example},
        **{kind: {} for kind in sorted(PROTOBUF_TYPES)},
    }
