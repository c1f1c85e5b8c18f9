"""How OpenAPI describes the status page and what it asks for."""

from collections.abc import Callable, Iterable
from typing import Any

Json = dict[str, Any]

_OBJECT = {"type": "object"}
_TEXT = {"type": "string", "minLength": 1}
_CURSOR = {"type": "string", "pattern": "^[A-Za-z0-9_-]+$"}

#: The parameters of a look at the logs; none need be there.
_FILTERS = {
    "project": "Only logs of this project.",
    "service": "Only logs of this service.",
    "level": "Only logs of this level or worse.",
    "q": "Only logs with this text in the message or the metadata, in any case.",
    "after": "Only logs that came since the answer that had this `after`.",
}

_LOG = {
    "type": "object",
    "required": ["id", "project_id", "timestamp", "level", "service", "message", "metadata"],
    "description": "`metadata` is JSON as a text, empty where there is none.",
}

_LOGS = {
    "type": "object",
    "required": ["logs", "after", "is_all", "searched_bytes"],
    "properties": {
        "logs": {
            "type": "array",
            "maxItems": 100,
            "items": _LOG,
            "description": "Newest first. Long texts are cut (`is_shortened`).",
        },
        "after": {"type": "string", "description": "What to ask for next."},
        "is_all": {
            "type": "boolean",
            "description": "Whether no others match; else older ones do, or were not looked for. "
            "A token that is bound to projects is not told with its first look.",
        },
        "searched_bytes": {
            "type": ["integer", "null"],
            "minimum": 0,
            "description": "Null for a token that is bound to projects.",
        },
    },
}


def describe_status(rejections: Callable[[Iterable[str]], Json]) -> dict[str, Json]:
    """Return the operations by path; `rejections` describes the responses of codes."""
    known = ("unauthorized", "internal")
    looks = ("unauthorized", "bad_request", "storage_failed", "status_busy", "internal")
    about = {
        "numbers": "Of a token that is bound to projects: these, the version and the readiness.",
        "history": "Of a token that is bound to projects: its own rejections alone.",
        "logs": "Of a token that is bound to projects: their logs alone.",
    }
    parameters = [_parameter(name, words) for name, words in _FILTERS.items()]
    parameters[-1]["schema"] = _CURSOR
    ids = [_parameter("id", "The log's `id`.") | {"required": True}]
    return {
        "/status": {
            "tags": ["Status"],
            "summary": "Show the status page",
            "responses": {"200": {"description": "The page.", "content": {"text/html": {}}}},
        },
        "/status/{asset}": _file(rejections),
        "/status/data": _get(
            "Show the numbers of now", about["numbers"], _OBJECT, rejections(known)
        ),
        "/status/history": _get(
            "Show the numbers of the last hour", about["history"], _OBJECT, rejections(known)
        ),
        "/status/logs": _get("Show the newest logs", about["logs"], _LOGS, rejections(looks))
        | {"parameters": parameters},
        "/status/log": _get(
            "Show a whole log", about["logs"], _LOG, rejections([*looks, "not_found"])
        )
        | {"parameters": ids},
    }


def _get(summary: str, description: str, schema: Json, rejections: Json) -> Json:
    content = {"application/json": {"schema": schema}}
    return {
        "tags": ["Status"],
        "summary": summary,
        "description": description,
        "security": [{"token": []}],
        "responses": {"200": {"description": summary + ".", "content": content}, **rejections},
    }


def _file(rejections: Callable[[Iterable[str]], Json]) -> Json:
    kinds = ("text/css", "text/javascript", "image/svg+xml")
    content: Json = {kind: {} for kind in kinds}
    name = {"name": "asset", "in": "path", "required": True, "schema": {"type": "string"}}
    return {
        "tags": ["Status"],
        "summary": "Return a file of the status page",
        "parameters": [name],
        "responses": {
            "200": {"description": "The file.", "content": content},
            **rejections(["not_found"]),
        },
    }


def _parameter(name: str, description: str) -> Json:
    return {"name": name, "in": "query", "description": description, "schema": _TEXT}
