"""The protocols of other products in the API's description."""

from collections.abc import Iterable

from astralog.api.openapi_parts import (
    REPLAYED,
    Json,
    codes_of_batches,
    describe_options,
    describe_rejections,
    post,
)
from astralog.api.otlp import OTHER_SIGNALS, PROTOBUF_TYPES
from astralog.api.protocols import OPTIONS, PARTIAL_OPTIONS

_EXPORT_WORDS = """\
OpenTelemetry's OTLP/HTTP, [version 1](https://opentelemetry.io/docs/specs/otlp/): SDKs and
collectors send here with `OTEL_EXPORTER_OTLP_ENDPOINT` set to this service and
`OTEL_EXPORTER_OTLP_HEADERS` to `Authorization=TOKEN`. Every log of the export is stored, or none.

A body with Content-Type {types} is protobuf, any other is JSON; the response has the same encoding.
"""

_EXPORT_SCHEMA = {
    "type": "object",
    "description": "An ExportLogsServiceRequest. If it has no records, it must have no unknown "
    "members.",
    "properties": {"resourceLogs": {"type": ["array", "null"], "items": {"type": "object"}}},
}

_EXPORT_EXAMPLE = {
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

_EXPORT_RESPONSE = {
    "type": "object",
    "description": "An ExportLogsServiceResponse.",
    "properties": {
        "partialSuccess": {
            "type": "object",
            "description": "With `partial=true`: the logs that were not stored, and their errors.",
            "required": ["rejectedLogRecords", "errorMessage"],
            "properties": {
                "rejectedLogRecords": {"type": "string", "pattern": "^[0-9]+$"},
                "errorMessage": {"type": "string"},
            },
        }
    },
}

_EXPORT_STATUS = {
    "type": "object",
    "description": "A google.rpc.Status, whose message begins with the code of the rejection.",
    "required": ["code", "message"],
    "properties": {"code": {"type": "integer"}, "message": {"type": "string"}},
}

_HEC = """\
Splunk's HTTP Event Collector. The body has events, one after another. Every event is stored, or
none. The paths `/services/collector` and `/services/collector/event/1.0` accept events too, and
`/services/collector/raw` accepts lines of text. `GET /services/collector/health` needs no token.
"""

_EVENT = {
    "type": "object",
    "description": "An event. docs/api.md maps its members to the fields of a log.",
    "required": ["event", "index"],
    "properties": {
        "event": {"not": {"enum": [None, ""]}},
        "index": {"type": "string", "minLength": 1},
        "fields": {"type": ["object", "null"]},
    },
}

_EVENT_EXAMPLE = {
    "time": 1717169445.123,
    "index": "org-xyz",
    "sourcetype": "api-gateway",
    "event": {"message": "User logged in", "level": "info", "user_id": 123},
}

_REPLY = {
    "type": "object",
    "required": ["text", "code"],
    "properties": {
        "text": {"type": "string"},
        "code": {"type": "integer", "description": "HEC's code; 0 is success."},
        "invalid-event-number": {"type": "integer", "minimum": 0},
        "detail": {"type": "string", "description": "The service's own code and message."},
    },
}

_REPLY_EXAMPLE = {"text": "Invalid data format", "code": 6, "invalid-event-number": 0}

_LOKI = """\
Loki's push API. A body with Content-Type `application/json` is JSON; any other is protobuf that is
compressed with Snappy. The project is `project_id`, else the project of a token that is bound to
exactly one, else the header `X-Scope-OrgID`.
"""

_PUSH = {
    "type": "object",
    "required": ["streams"],
    "properties": {
        "streams": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["stream", "values"],
                "properties": {
                    "stream": {"type": "object", "additionalProperties": {"type": "string"}},
                    "values": {
                        "type": "array",
                        "description": "Lists of a Unix time in nanoseconds, a line, and optional "
                        "structured metadata.",
                        "items": {"type": "array", "minItems": 2, "maxItems": 3},
                    },
                },
            },
        }
    },
}

_PUSH_EXAMPLE = {
    "streams": [
        {
            "stream": {"app": "api-gateway", "level": "info"},
            "values": [["1717169445123456789", "User logged in", {"user_id": "123"}]],
        }
    ]
}

_BULK = """\
Elasticsearch's bulk API: an action, `create` or `index`, and its document, on separate lines.
Valid documents are stored, and the response has a result for each document. Batches are also
accepted at `/elasticsearch/{index}/_bulk`. `GET /elasticsearch/` and the other requests that
clients send at their start are supported too.
"""

_BULK_EXAMPLE = """\
{"create":{"_index":"org-xyz"}}
{"@timestamp":"2024-05-31T15:30:45Z","message":"User logged in","service":{"name":"api-gateway"}}
"""

_RESULTS = {
    "type": "object",
    "required": ["took", "errors", "items"],
    "properties": {
        "took": {"type": "integer", "description": "Milliseconds."},
        "errors": {"type": "boolean", "description": "True if a document was not stored."},
        "items": {
            "type": "array",
            "description": "The result of each document, by its action.",
            "items": {"type": "object", "minProperties": 1, "maxProperties": 1},
        },
    },
}

_RESULTS_EXAMPLE = {
    "took": 3,
    "errors": False,
    "items": [{"create": {"_index": "org-xyz", "_id": "cxHfVU4Qag0p00000000", "status": 201}}],
}

_ERROR = {
    "type": "object",
    "required": ["error", "status"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["type", "reason"],
            "properties": {
                "type": {"type": "string", "description": "Elasticsearch's type of the error."},
                "reason": {"type": "string", "description": "The service's own code and message."},
            },
        },
        "status": {"type": "integer"},
    },
}

_REASON = "storage_full: The disk is full."
_ERROR_EXAMPLE = {
    "error": {"type": "cluster_block_exception", "reason": _REASON},
    "status": 503,
}

_TEXT = {"text/plain": {"schema": {"type": "string"}, "example": "storage_full: The disk is full."}}


_STORED = {"description": "Every log is stored.", "headers": REPLAYED}


def describe_protocols() -> dict[str, dict[str, Json]]:
    """Return the operations by path and method."""
    options = describe_options()
    responses = describe_rejections(codes_of_batches(with_protobuf=False))
    bulk = _describe_bulk(options, responses)
    return {
        **{path: {"post": operation} for path, operation in _describe_otlp(options).items()},
        "/services/collector/event": {"post": _describe_hec(options, responses)},
        "/loki/api/v1/push": {"post": _describe_loki(options, responses)},
        "/elasticsearch/_bulk": {"post": bulk, "put": {**bulk, "operationId": "putBulk"}},
    }


def _describe_otlp(options: list[Json]) -> dict[str, Json]:
    """Return the operations of POST by path."""
    rejections = describe_rejections(codes_of_batches(with_protobuf=True))
    status = _export_content(
        _EXPORT_STATUS, {"code": 3, "message": "invalid_json: The body is not valid JSON."}
    )
    stored = {
        "description": "Every log is stored except those that the response lists.",
        "headers": REPLAYED,
        "content": _export_content(_EXPORT_RESPONSE, {}),
    }
    logs = post(
        "export",
        "Store an export of OpenTelemetry",
        _EXPORT_WORDS.format(types=" or ".join(f"`{t}`" for t in sorted(PROTOBUF_TYPES))),
        [option for option in options if option["name"] in PARTIAL_OPTIONS],
        content=_export_content(_EXPORT_SCHEMA, _EXPORT_EXAMPLE),
        responses={"200": stored, **_with(rejections, status)},
    )
    not_found = _with(describe_rejections(["not_found"]), status)
    others = {f"/v1/{name}": _not_taken(name, not_found) for name in OTHER_SIGNALS}
    return {"/v1/logs": logs, **others}


def _not_taken(signal: str, responses: Json) -> Json:
    return {
        "operationId": f"export-{signal}",
        "tags": ["Logs"],
        "summary": f"Reject {signal}, which are not supported",
        "responses": responses,
    }


def _export_content(schema: Json, example: Json) -> Json:
    return _json(schema, example) | {kind: {} for kind in sorted(PROTOBUF_TYPES)}


def _describe_hec(options: list[Json], responses: Json) -> Json:
    success = _json(_REPLY, {"text": "Success", "code": 0})
    rejections = _with(responses, _json(_REPLY, _REPLY_EXAMPLE))
    return post(
        "collect",
        "Store events of Splunk's HTTP Event Collector",
        _HEC,
        _parameters(options, PARTIAL_OPTIONS),
        content=_json(_EVENT, _EVENT_EXAMPLE),
        responses={"200": {**_STORED, "content": success}, **rejections},
    )


def _describe_loki(options: list[Json], responses: Json) -> Json:
    return post(
        "push",
        "Store a push for Loki",
        _LOKI,
        _parameters(options, OPTIONS, required="project_id"),
        content=_json(_PUSH, _PUSH_EXAMPLE),
        responses={"204": _STORED, **_with(responses, _TEXT)},
    )


def _describe_bulk(options: list[Json], responses: Json) -> Json:
    lines = {"schema": {"type": "string"}, "example": _BULK_EXAMPLE}
    results = {
        "description": "A result for each document.",
        "content": _json(_RESULTS, _RESULTS_EXAMPLE),
    }
    return post(
        "bulk",
        "Store documents of Elasticsearch's bulk API",
        _BULK,
        _parameters(options, OPTIONS),
        content={"application/x-ndjson": lines},
        responses={"200": results, **_with(responses, _json(_ERROR, _ERROR_EXAMPLE))},
    )


def _parameters(options: list[Json], names: Iterable[str], required: str = "") -> list[Json]:
    """Return the options of some names, of which one may be required."""
    chosen = (option for option in options if option["name"] in names)
    return [{**option, "required": option["name"] == required} for option in chosen]


def _with(responses: Json, content: Json) -> Json:
    """Return the responses with a protocol's own body."""
    return {status: {**response, "content": content} for status, response in responses.items()}


def _json(schema: Json, example: Json) -> Json:
    return {"application/json": {"schema": schema, "example": example}}
