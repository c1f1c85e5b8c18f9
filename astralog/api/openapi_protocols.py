"""The protocols of other products in the API's description."""

from collections.abc import Callable, Iterable
from typing import Any

from astralog.api.openapi_parts import KEY, REPLAYED
from astralog.errors import STATUS_OF_CODE

#: Rejections that no batch of another protocol gets.
NOT_OF_PROTOCOLS = ("not_found", "method_not_allowed", "invalid_protobuf", "status_busy")

#: The parameters of the service that a protocol accepts.
HEC_OPTIONS = ("project_id", "service", "level", "partial", "once")
LOKI_OPTIONS = ("project_id", "service", "level", "once")
BULK_OPTIONS = LOKI_OPTIONS

Json = dict[str, Any]

_HEC = """\
The events of Splunk's HTTP Event Collector follow one another, and every one of them is stored, or
none. They are also accepted at `/services/collector` and `/services/collector/event/1.0`, and lines
of text at `/services/collector/raw`. `GET /services/collector/health` needs no token.
"""

_EVENT = {
    "type": "object",
    "description": "An event. docs/api.md lists which member becomes which field.",
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
        "code": {"type": "integer", "description": "A code of HEC's; 0 is success."},
        "invalid-event-number": {"type": "integer", "minimum": 0},
        "detail": {"type": "string", "description": "The service's own code and message."},
    },
}

_REPLY_EXAMPLE = {"text": "Invalid data format", "code": 6, "invalid-event-number": 0}

_LOKI = """\
The push of Grafana's Loki. A body of the type `application/json` is JSON, any other is protobuf,
compressed by Snappy. Without `project_id`, the header `X-Scope-OrgID` names the project.
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
                        "description": "Each a Unix time in nanoseconds, a line, and maybe "
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
The bulk of Elasticsearch: an action, `create` or `index`, and its document, each in a line of its
own. Valid documents are stored, and each has its result. It is also accepted at
`/elasticsearch/{index}/_bulk`. `GET /elasticsearch/` and the other requests that clients make
before they send are answered too.
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
        "errors": {"type": "boolean", "description": "Whether a document was not stored."},
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
                "type": {"type": "string", "description": "A type of Elasticsearch's."},
                "reason": {"type": "string", "description": "The service's own code and message."},
            },
        },
        "status": {"type": "integer"},
    },
}

_REASON = "storage_full: The disk is full."
_ERROR_EXAMPLE = {
    "error": {"type": "illegal_argument_exception", "reason": _REASON},
    "status": 503,
}

_TEXT = {"text/plain": {"schema": {"type": "string"}, "example": "storage_full: The disk is full."}}


_STORED = {"description": "Every log is stored.", "headers": REPLAYED}


def describe_protocols(
    options: list[Json], rejections: Callable[[Iterable[str]], Json]
) -> dict[str, dict[str, Json]]:
    """Return the operations by path and method.

    `options` are the parameters of a query, and `rejections` returns the responses to some codes.
    """
    codes = [code for code in STATUS_OF_CODE if code not in NOT_OF_PROTOCOLS]
    responses = rejections(codes)
    bulk = _describe_bulk(options, responses)
    return {
        "/services/collector/event": {"post": _describe_hec(options, responses)},
        "/loki/api/v1/push": {"post": _describe_loki(options, responses)},
        "/elasticsearch/_bulk": {"post": bulk, "put": {**bulk, "operationId": "putBulk"}},
    }


def _describe_hec(options: list[Json], responses: Json) -> Json:
    success = _json(_REPLY, {"text": "Success", "code": 0})
    return {
        "operationId": "collect",
        "tags": ["Logs"],
        "summary": "Store events of Splunk's HTTP Event Collector",
        "description": _HEC,
        "security": [{"token": []}],
        "parameters": _parameters(options, HEC_OPTIONS),
        "requestBody": {"required": True, "content": _json(_EVENT, _EVENT_EXAMPLE)},
        "responses": {
            "200": {**_STORED, "content": success},
            **_with(responses, _json(_REPLY, _REPLY_EXAMPLE)),
        },
    }


def _describe_loki(options: list[Json], responses: Json) -> Json:
    return {
        "operationId": "push",
        "tags": ["Logs"],
        "summary": "Store a push of Grafana's Loki",
        "description": _LOKI,
        "security": [{"token": []}],
        "parameters": _parameters(options, LOKI_OPTIONS, required="project_id"),
        "requestBody": {"required": True, "content": _json(_PUSH, _PUSH_EXAMPLE)},
        "responses": {"204": _STORED, **_with(responses, _TEXT)},
    }


def _describe_bulk(options: list[Json], responses: Json) -> Json:
    lines = {"schema": {"type": "string"}, "example": _BULK_EXAMPLE}
    results = {
        "description": "Each document has its result.",
        "content": _json(_RESULTS, _RESULTS_EXAMPLE),
    }
    return {
        "operationId": "bulk",
        "tags": ["Logs"],
        "summary": "Store documents of Elasticsearch's bulk",
        "description": _BULK,
        "security": [{"token": []}],
        "parameters": _parameters(options, BULK_OPTIONS),
        "requestBody": {"required": True, "content": {"application/x-ndjson": lines}},
        "responses": {"200": results, **_with(responses, _json(_ERROR, _ERROR_EXAMPLE))},
    }


def _parameters(options: list[Json], names: Iterable[str], required: str = "") -> list[Json]:
    """Return the options of some names, of which one may be required, and the key."""
    chosen = (option for option in options if option["name"] in names)
    return [*({**option, "required": option["name"] == required} for option in chosen), KEY]


def _with(responses: Json, content: Json) -> Json:
    """Return the responses with a protocol's own body."""
    return {status: {**response, "content": content} for status, response in responses.items()}


def _json(schema: Json, example: Json) -> Json:
    return {"application/json": {"schema": schema, "example": example}}
