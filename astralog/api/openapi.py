"""The API's description in OpenAPI 3.1, made from the schemas and the rejections themselves.

The format is https://spec.openapis.org/oas/v3.1.0.
"""

from collections.abc import Iterable

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin

from astralog.api.drain import NDJSON_TYPES, SHOWN_LOGS
from astralog.api.openapi_parts import (
    ABOUT,
    DRAIN,
    ERRORS,
    EXAMPLE,
    NDJSON_EXAMPLE,
    PARTIAL_BATCH,
    REJECTION,
    REPLAYED,
    RETRY_AFTER,
    SECURITY,
    Json,
    codes_of_batches,
    describe_options,
    describe_rejections,
    parameter,
    post,
)
from astralog.api.openapi_protocols import describe_protocols
from astralog.intake.body import INFLATERS
from astralog.intake.schema import BatchSchema, LogSchema

OPENAPI_VERSION = "3.1.0"


def describe(version: str, *, has_status: bool = True) -> Json:
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
        "description": "A token. The header may also contain the token alone, without `Bearer`. A "
        "token may be bound to projects: it then sends and reads only logs of these.",
    }
    spec.components.security_scheme("token", token)
    spec.components.schema("Batch", schema=BatchSchema)
    spec.components.schema("Rejection", REJECTION)
    others = _READING | (_describe_status() if has_status else {})
    others["/v1/search"] = _describe_search()
    paths = {"/v1/drain": {"post": _drain()}} | describe_protocols()
    paths |= {path: {"get": operation} for path, operation in others.items()}
    for path, operations in paths.items():
        spec.path(path, operations=operations)
    return spec.to_dict()


def _drain() -> Json:
    lines = {
        "schema": {"type": "string", "description": "One log per line."},
        "example": NDJSON_EXAMPLE,
    }
    content = {
        "application/json": {"schema": BatchSchema, "example": EXAMPLE},
        **dict.fromkeys(sorted(NDJSON_TYPES), lines),
    }
    description = DRAIN.format(codings=", ".join(INFLATERS))
    rejections = describe_rejections(codes_of_batches(with_protobuf=False))
    return post(
        "drain",
        "Store a batch of logs",
        description,
        describe_options(),
        content=content,
        responses={"200": _accepted(), **rejections},
    )


def _accepted() -> Json:
    properties = {
        "status": {"type": "string", "enum": ["accepted", "valid"]},
        "logs": {
            "type": "array",
            "items": LogSchema,
            "maxItems": SHOWN_LOGS,
            "description": "With `dry_run=true`: the first logs in their stored form.",
        },
        "rejected": {
            "type": "integer",
            "minimum": 1,
            "description": "With `partial=true`: the number of invalid logs, which are not stored.",
        },
        "kept": {
            "type": "integer",
            "minimum": 1,
            "description": "With `invalid=keep`: the number of invalid logs, stored as text.",
        },
        "errors": ERRORS,
    }
    schema = {"type": "object", "required": ["status"], "properties": properties}
    examples = {
        "accepted": {"summary": "Every log is stored", "value": {"status": "accepted"}},
        "partial": {
            "summary": "With partial=true, the valid logs are stored",
            "value": PARTIAL_BATCH,
        },
        "valid": {"summary": "A dry run", "value": {"status": "valid", **EXAMPLE}},
    }
    content = {"application/json": {"schema": schema, "examples": examples}}
    description = "Every log is stored, or a dry run found no fault."
    return {"description": description, "headers": REPLAYED, "content": content}


def _json(description: str, example: Json) -> Json:
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


def _content(description: str, *kinds: str) -> Json:
    return {"description": description, "content": {kind: {} for kind in kinds}}


def _get(tag: str, summary: str, responses: Json, **more: object) -> Json:
    return {"tags": [tag], "summary": summary, "responses": responses, **more}


def _file(tag: str, summary: str, *kinds: str) -> Json:
    asset = {"name": "asset", "in": "path", "required": True, "schema": {"type": "string"}}
    responses = {"200": _content("The file.", *kinds), **describe_rejections(["not_found"])}
    return _get(tag, summary, responses, parameters=[asset])


_UNREADY = {
    **_json(
        "Batches are rejected now, with this code.",
        {"status": "unavailable", "reason": "storage_full"},
    ),
    "headers": RETRY_AFTER,
}
_ROOT = {"name": "AstraLog", "version": "1", "links": {"docs": "/docs"}}

#: The operations with GET, apart from the status page and the search.
_READING: dict[str, Json] = {
    "/health": _get(
        "Health",
        "Check whether the process responds",
        {"200": _json("It responds.", {"status": "ok"})},
    ),
    "/ready": _get(
        "Health",
        "Check whether batches are accepted now",
        {"200": _json("Batches are accepted.", {"status": "ready"}), "503": _UNREADY},
    ),
    "/metrics": _get(
        "Health",
        "Return the metrics for Prometheus",
        {
            "200": _content(
                "The metrics of all workers.", "text/plain", "application/openmetrics-text"
            ),
            **describe_rejections(["unauthorized", "forbidden_scope", "internal"]),
        },
        description="Requests from the service's own machine need no token, unless a proxy "
        "forwards them.",
        security=[*SECURITY, {}],
    ),
    "/": _get(
        "This page",
        "Redirect browsers to a page, and return links to other clients",
        {
            "200": _json("Links to the pages and paths.", _ROOT),
            "302": {"description": "To `/status`, or to this page if the status page is off."},
        },
    ),
    "/docs": _get("This page", "Show this page", {"200": _content("This page.", "text/html")}),
    "/docs/{asset}": _file(
        "This page", "Return a file of this page", "text/css", "text/javascript", "image/png"
    ),
    "/openapi.json": _get(
        "This page",
        "Return a file of this page",
        {"200": _content("This document.", "application/json")},
    ),
}

_OBJECT = {"type": "object"}
_TEXT = {"type": "string", "minLength": 1}
_CURSOR = {"type": "string", "pattern": "^[A-Za-z0-9_-]+$"}

#: The filters of a query for logs, all optional.
_FILTERS = {
    "q": "Only logs with this text in the message or the metadata, ignoring case.",
    "project": "Only logs of this project.",
    "service": "Only logs of this service.",
    "level": "Only logs of this level or worse.",
}

_LOG = {
    "type": "object",
    "required": ["id", "project_id", "timestamp", "level", "service", "message", "metadata"],
    "description": "`metadata` is JSON as text, empty if the log has none.",
}

_LOGS = {
    "type": "object",
    "required": ["logs", "after", "is_all", "searched_bytes", "older"],
    "properties": {
        "logs": {
            "type": "array",
            "maxItems": 200,
            "items": _LOG,
            "description": "Newest first. Long texts are cut (`is_shortened`).",
        },
        "after": {"type": "string", "description": "The cursor of the next request."},
        "is_all": {
            "type": "boolean",
            "description": "True if no other logs match. If false, older ones match or were not "
            "searched, apart from those of `older`.",
        },
        "searched_bytes": {
            "type": ["integer", "null"],
            "minimum": 0,
            "description": "Null for a token that is bound to projects.",
        },
        "older": {
            "type": ["object", "null"],
            "required": ["count", "is_done", "has_more"],
            "properties": {
                "count": {"type": "integer", "minimum": 0, "maximum": 100},
                "is_done": {"type": "boolean"},
                "has_more": {"type": "boolean"},
            },
            "description": "For a token that is bound to projects: the search for older logs, "
            "which continues with the next request unless `is_done`. It found the last `count` of "
            "`logs`. With `has_more`, more logs match, and these are the newest 100.",
        },
    },
}


def _describe_status() -> dict[str, Json]:
    """Return the operations of the status page by path."""
    known = ("unauthorized", "forbidden_scope", "internal")
    query_codes = (*known, "bad_request", "storage_failed", "status_busy")
    about = {
        "numbers": "Includes the grants of the token: `token`, `projects`, `allow` and `rate`. A "
        "token that is bound to projects receives only these, the version and the readiness.",
        "history": "`tokens` has the volume per token in that hour. A token that is bound to "
        "projects receives only its own row and its own rejections.",
        "logs": "A token that is bound to projects receives only logs of its projects.",
    }
    parameters = [parameter(name, words, _TEXT) for name, words in _FILTERS.items()]
    after = "Only logs that arrived after the response with this `after`."
    parameters.append(parameter("after", after, _CURSOR))
    ids = [parameter("id", "The log's `id`.", _TEXT) | {"required": True}]
    return {
        "/status": _get(
            "Status", "Show the status page", {"200": _content("The page.", "text/html")}
        ),
        "/status/{asset}": _file(
            "Status",
            "Return a file of the status page",
            *("text/css", "text/javascript", "image/svg+xml"),
        ),
        "/status/data": _show("Show the current numbers", about["numbers"], _OBJECT, known),
        "/status/history": _show(
            "Show the numbers of the last hour", about["history"], _OBJECT, known
        ),
        "/status/logs": _show(
            "Show the newest logs", about["logs"], _LOGS, query_codes, parameters=parameters
        ),
        "/status/log": _show(
            "Show a whole log", about["logs"], _LOG, (*query_codes, "not_found"), parameters=ids
        ),
    }


def _show(
    summary: str, description: str, schema: Json, codes: Iterable[str], **more: object
) -> Json:
    content = {"application/json": {"schema": schema}}
    responses = {
        "200": {"description": summary + ".", "content": content},
        **describe_rejections(codes),
    }
    return _get("Status", summary, responses, description=description, security=SECURITY, **more)


_SEARCH_WORDS = """\
Returns logs in their stored form, one per line, newest first. A response ends after `n` logs, 4 MiB
or 5 seconds, or earlier if other searches wait. Its `Link` header then has the URL of the next
response, which may have no logs. A token that is bound to projects reads only logs of its projects.

With `follow=true`, the response is a stream of new logs in the order of their arrival, with a blank
line after 10 seconds without a log. It ends after 5 minutes, or when the service stops.
"""

_MOMENT = {"type": "string", "pattern": "^[1-9][0-9]{0,3}[smhd]$"}

_SEARCH_PARAMETERS: dict[str, tuple[str, Json]] = {
    **{name: (words, _TEXT) for name, words in _FILTERS.items()},
    "field": (
        "Only logs with this value in the metadata: `user.id=123`; dots reach into objects.",
        {"type": "string", "pattern": "^[a-z]{1,9}(\\.[a-z]{1,9}){0,9}=[a-z0-9]*$"},
    ),
    "since": ("Only logs since this time, or younger than a duration: `10m`.", _MOMENT),
    "until": ("Only logs until this time, or older than a duration: `10m`.", _MOMENT),
    "n": (
        "The maximum number of logs.",
        {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100},
    ),
    "before": ("Only older logs: the cursor of the `Link` header.", _CURSOR),
    "follow": (
        "Stream new logs instead of returning stored ones; excludes `n` and `before`.",
        {"type": "boolean", "default": False},
    ),
}


def _describe_search() -> Json:
    """Return the operation of the search."""
    codes = ("bad_request", "unauthorized", "forbidden_scope", "storage_failed", "search_busy")
    link = {"description": "The URL of the next response, if there is one.", "schema": _TEXT}
    searched = {
        "description": "Bytes of segment files that were read; absent for a token that is bound to "
        "projects.",
        "schema": {"type": "integer"},
    }
    unreadable = {
        "description": "Segments that could not be read, or only in part; absent if none.",
        "schema": {"type": "integer"},
    }
    found = {
        "description": "The logs, newest first; with `follow=true`, in the order of their arrival.",
        "headers": {
            "Link": link,
            "Searched-Bytes": searched,
            "Unreadable-Segments": unreadable,
        },
        "content": {"application/x-ndjson": {"schema": {"type": "string"}}},
    }
    return _get(
        "Logs",
        "Search the stored logs",
        {"200": found, **describe_rejections([*codes, "internal"])},
        description=_SEARCH_WORDS,
        security=SECURITY,
        parameters=[
            parameter(name, words, schema) for name, (words, schema) in _SEARCH_PARAMETERS.items()
        ],
    )
