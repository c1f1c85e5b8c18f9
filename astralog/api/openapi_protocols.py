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

_TEXT = {"text/plain": {"schema": {"type": "string"}, "example": "storage_full: The disk is full."}}


def describe_protocols(
    options: list[Json], rejections: Callable[[Iterable[str]], Json]
) -> dict[str, Json]:
    """Return the operations of POST by path.

    `options` are the parameters of a query, and `rejections` returns the responses to some codes.
    """
    codes = [code for code in STATUS_OF_CODE if code not in NOT_OF_PROTOCOLS]
    responses = rejections(codes)
    stored = {"description": "Every log is stored.", "headers": REPLAYED}
    return {
        "/services/collector/event": {
            "operationId": "collect",
            "tags": ["Logs"],
            "summary": "Store events of Splunk's HTTP Event Collector",
            "description": _HEC,
            "security": [{"token": []}],
            "parameters": _parameters(options, HEC_OPTIONS),
            "requestBody": {"required": True, "content": _json(_EVENT, _EVENT_EXAMPLE)},
            "responses": {
                "200": {**stored, "content": _json(_REPLY, {"text": "Success", "code": 0})},
                **_with(responses, _json(_REPLY, _REPLY_EXAMPLE)),
            },
        },
        "/loki/api/v1/push": {
            "operationId": "push",
            "tags": ["Logs"],
            "summary": "Store a push of Grafana's Loki",
            "description": _LOKI,
            "security": [{"token": []}],
            "parameters": _parameters(options, LOKI_OPTIONS, required="project_id"),
            "requestBody": {"required": True, "content": _json(_PUSH, _PUSH_EXAMPLE)},
            "responses": {"204": stored, **_with(responses, _TEXT)},
        },
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
