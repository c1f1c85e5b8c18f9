"""The parts of the API's description: texts, examples, parameters, rejections, OTLP and status."""

from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any

from astralog.api.otlp import OTHER_SIGNALS, PARAMETERS, PROTOBUF_TYPES
from astralog.errors import (
    MEANING_OF_CODE,
    RETRIED_STATUSES,
    STATUS_OF_CODE,
)
from astralog.intake.options import (
    CONSTANTS,
    DEFAULTS,
    FIELD_PARAMETERS,
    MAX_DEFAULT_CHARACTERS,
    MAX_FIELD_CHARACTERS,
    MAX_KEY_CHARACTERS,
)

Json = dict[str, Any]

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

To try it on this page, put the token under *Authorize*. Send 100 to 500 logs per batch over several
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

A sender that cannot write these fields asks for them in the query:

```
curl -s "http://localhost:8080/v1/drain?project_id=org-xyz&level=info&unknown=metadata" \\
  -H "Authorization: Bearer $(cat data/token)" \\
  -d '{{"logs": [{{"timestamp": "2024-05-31", "service": "shell", "message": "", "pid": 7}}]}}'
```

A batch with a key is stored once, however often it is sent: give each batch a new one, and send it
again with the same one until the answer is 200.

```
curl -s http://localhost:8080/v1/drain \\
  -H "Authorization: Bearer $(cat data/token)" \\
  -H 'Idempotency-Key: "9b2f6c1e-0b7a-4f43-8d55-0d6f1f3f7a10"' --data-binary @batch.json
```

A body of one log a line is told by its Content-Type:

```
curl -s http://localhost:8080/v1/drain \\
  -H "Authorization: Bearer $(cat data/token)" \\
  -H "Content-Type: application/x-ndjson" --data-binary @app.ndjson
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

NDJSON_EXAMPLE = """\
{"project_id":"org-xyz","timestamp":"2024-05-31T15:30:45Z","level":"info","service":"api-gateway","message":"User logged in"}
{"project_id":"org-xyz","timestamp":"2024-05-31T15:30:46Z","level":"info","service":"api-gateway","message":"User logged out"}
"""  # noqa: E501

_ERRORS = {"logs": {"3": {"level": ["Must not be empty."]}}}

PARTIAL_BATCH = {"status": "accepted", "rejected": 1, "errors": _ERRORS}

REJECTED_BATCH = {
    "status": "rejected",
    "code": "invalid_batch",
    "message": "1 of 500 logs are invalid; nothing was stored",
    "errors": _ERRORS,
}


_FLAGS = {
    "partial": "Store the valid logs, and answer 200 with how many are rejected and why.",
    "dry_run": "Check the batch, and store nothing.",
}


_SOURCE = (
    "Moves the value of the first of these names that a log has to `{field}`, in place of its own; "
    "names are separated by commas, and dots reach into objects."
)

_UNIX_TIME = (
    " Numbers, and strings of ten or more digits, are Unix time: below 10¹¹ in seconds, below 10¹⁴ "
    "in milliseconds, below 10¹⁷ in microseconds, else in nanoseconds."
)

_CONSTANTS = {
    "timestamp": "Gives a log that lacks a timestamp the time of its arrival.",
    "unknown": "Moves the unknown fields of a log under `metadata` instead of rejecting it. A log "
    "is invalid if `metadata` has a field of that name too, or is no object. A number or a boolean "
    "in a known field other than `timestamp` becomes text, and a list or an object as `message` "
    "its JSON.",
    "invalid": "Stores an invalid log as text in `message`, with its errors under "
    "`metadata.invalid`. Needs a project: `project_id`, or a token that is bound to one.",
    "once": "Makes the body its own idempotency key, so that a retry of the same bytes is stored "
    "once. While the first try is under way, a retry is answered 503. Excludes `timestamp=now`.",
}


_TIMES = f"{{1,{MAX_KEY_CHARACTERS}}}"

#: The header that gives a batch its key, but for a key with quotes or backslashes in its quotes.
KEY: Json = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "A name that no other batch of this token has, such as a UUID, quoted or not. "
    "A batch that is sent again with its key is stored once. A dry run ignores it.",
    "schema": {
        "type": "string",
        "pattern": rf'^("[!#-\[\]-~]{_TIMES}"|[!#-+\--~]{_TIMES})$',
    },
}

#: The header of a response to a batch that was stored before.
REPLAYED = {
    "Idempotency-Replayed": {
        "description": "Set if an earlier try with this Idempotency-Key stored the batch.",
        "schema": {"type": "string", "const": "true"},
    }
}


def describe_options() -> list[Json]:
    """Return the parameters of the query."""
    text = {"type": "string", "minLength": 1, "maxLength": MAX_DEFAULT_CHARACTERS}
    names = {"type": "string", "minLength": 1, "maxLength": MAX_FIELD_CHARACTERS}
    return [
        *(_parameter(name, f"The `{name}` of a log that lacks one.", text) for name in DEFAULTS),
        *(
            _parameter(
                name, _SOURCE.format(field=field) + _UNIX_TIME * (field == "timestamp"), names
            )
            for name, field in FIELD_PARAMETERS.items()
        ),
        *(
            _parameter(name, _CONSTANTS[name], {"type": "string", "enum": [value]})
            for name, value in CONSTANTS.items()
        ),
        *(
            _parameter(name, words, {"type": "boolean", "default": False})
            for name, words in _FLAGS.items()
        ),
    ]


def _describe_source(field: str) -> str:
    return _SOURCE.format(field=field) + (_UNIX_TIME if field == "timestamp" else "")


def _parameter(name: str, description: str, schema: Json) -> Json:
    return {"name": name, "in": "query", "description": description, "schema": schema}


ERRORS = {
    "type": "object",
    "description": "The errors by number and field of the first 20 invalid logs; in a list "
    "they are counted from 0, and lines from 1.",
}

REJECTION: Json = {
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
        "errors": ERRORS,
    },
}

_REJECTION = {"$ref": "#/components/schemas/Rejection"}


def describe_rejections(codes: Iterable[str]) -> Json:
    """Return a response for each status that the codes have."""
    by_status: dict[HTTPStatus, list[str]] = {}
    for code in codes:
        by_status.setdefault(STATUS_OF_CODE[code], []).append(code)
    return {str(int(status)): _rejection(status, by_status[status]) for status in sorted(by_status)}


def _rejection(status: HTTPStatus, codes: list[str]) -> Json:
    lines = [f"- `{code}`: {MEANING_OF_CODE[code]}" for code in codes]
    first = {"status": "rejected", "code": codes[0], "message": MEANING_OF_CODE[codes[0]]}
    example = REJECTED_BATCH if "invalid_batch" in codes else first
    response: Json = {
        "description": "\n".join([f"{status.phrase}.", "", *lines]),
        "content": {"application/json": {"schema": _REJECTION, "example": example}},
    }
    if status in RETRIED_STATUSES:
        response["headers"] = RETRY_AFTER
    if status == HTTPStatus.UNAUTHORIZED:
        response["headers"] = {"WWW-Authenticate": _header("How to send a token.", _BEARER)}
    return response


_BEARER = {"type": "string", "const": "Bearer"}


def _header(description: str, schema: Json) -> Json:
    return {"description": description, "required": True, "schema": schema}


RETRY_AFTER = {"Retry-After": _header("Seconds to wait.", {"type": "integer", "minimum": 1})}


#: Rejections that no export gets.
NOT_OF_EXPORTS = ("not_found", "method_not_allowed", "status_busy", "search_busy")

_EXPORT_WORDS = """\
The OTLP/HTTP of OpenTelemetry, [version 1](https://opentelemetry.io/docs/specs/otlp/): SDKs and
collectors send here with `OTEL_EXPORTER_OTLP_ENDPOINT` set to this service and
`OTEL_EXPORTER_OTLP_HEADERS` to `Authorization=TOKEN`. Every log of the export is stored, or none.

A body of the type {types} is protobuf, any other is JSON; the response is of the same encoding.
"""

_EXPORT_SCHEMA = {
    "type": "object",
    "description": "An ExportLogsServiceRequest. One without records may have no member that OTLP "
    "does not know.",
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


def describe_otlp(
    options: list[Json], rejections: Callable[[Iterable[str]], Json]
) -> dict[str, Json]:
    """Return the operations of POST by their paths.

    `options` are the parameters of a query, and `rejections` returns the responses that a drain
    gets for some codes.
    """
    codes = [code for code in STATUS_OF_CODE if code not in NOT_OF_EXPORTS]
    logs = {
        "operationId": "export",
        "tags": ["Logs"],
        "summary": "Store an export of OpenTelemetry",
        "description": _EXPORT_WORDS.format(
            types=" or ".join(f"`{t}`" for t in sorted(PROTOBUF_TYPES))
        ),
        "security": [{"token": []}],
        "parameters": [*(option for option in options if option["name"] in PARAMETERS), KEY],
        "requestBody": {"required": True, "content": _content(_EXPORT_SCHEMA, _EXPORT_EXAMPLE)},
        "responses": {
            "200": {
                "description": "Every log is stored, but for those it says are rejected.",
                "headers": REPLAYED,
                "content": _content(_EXPORT_RESPONSE, {}),
            },
            **_with_status(rejections(codes)),
        },
    }
    not_found = _with_status(rejections(["not_found"]))
    others = {f"/v1/{name}": _not_taken(name, not_found) for name in OTHER_SIGNALS}
    return {"/v1/logs": logs, **others}


def _not_taken(signal: str, responses: Json) -> Json:
    return {
        "operationId": f"export-{signal}",
        "tags": ["Logs"],
        "summary": f"Reject {signal}, which are not supported",
        "responses": responses,
    }


def _with_status(responses: Json) -> Json:
    """Return the responses with OTLP's own body."""
    content = _content(
        _EXPORT_STATUS, {"code": 3, "message": "invalid_json: The body is not valid JSON."}
    )
    return {status: {**response, "content": content} for status, response in responses.items()}


def _content(schema: Json, example: Json) -> Json:
    return {
        "application/json": {"schema": schema, "example": example},
        **{kind: {} for kind in sorted(PROTOBUF_TYPES)},
    }


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
    "description": "`metadata` is JSON as a text, empty if there is none.",
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
            "description": "Whether no others match; else older ones do, or were not looked for, "
            "apart from those of `older`.",
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
            "description": "For a token that is bound to projects: a search for older logs that "
            "goes on with the next request unless `is_done`. The last `count` of `logs` are those "
            "that it found; `has_more` says that more match, of which the newest 100 were found.",
        },
    },
}


def describe_status(rejections: Callable[[Iterable[str]], Json]) -> dict[str, Json]:
    """Return the operations by path; `rejections` describes the responses of codes."""
    known = ("unauthorized", "forbidden_scope", "internal")
    looks = (*known, "bad_request", "storage_failed", "status_busy")
    about = {
        "numbers": "With the grants of the token: `token`, `projects`, `allow` and `rate`. A token "
        "that is bound to projects gets these, the version and the readiness.",
        "history": "`tokens` has the volume that each token sent in that hour. A token that is "
        "bound to projects gets its own row, and its own rejections, alone.",
        "logs": "Of a token that is bound to projects: their logs alone.",
    }
    parameters = [_parameter(name, words, _TEXT) for name, words in _FILTERS.items()]
    parameters[-1]["schema"] = _CURSOR
    ids = [_parameter("id", "The log's `id`.", _TEXT) | {"required": True}]
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


_SEARCH_WORDS = """\
Stored logs as they are stored, one per line, newest first. The answer ends after `n` logs, 4 MiB or
5 seconds, or earlier if other searches wait. Its `Link` header then has the URL of the next answer,
which may have no logs. A token that is bound to projects reads their logs alone.

With `follow=true`, the answer is a stream of new logs in the order of their arrival, with a blank
line after 10 seconds without a log. It ends after 5 minutes, or when the service stops.
"""

_MOMENT = {"type": "string", "pattern": "^[1-9][0-9]{0,3}[smhd]$"}

_SEARCH_PARAMETERS: dict[str, tuple[str, Json]] = {
    "q": ("Only logs with this text in the message or the metadata, in any case.", _TEXT),
    "project": ("Only logs of this project.", _TEXT),
    "service": ("Only logs of this service.", _TEXT),
    "level": ("Only logs of this level or worse.", _TEXT),
    "field": (
        "Only logs with this value in the metadata: `user.id=123`; dots reach into objects.",
        {"type": "string", "pattern": "^[a-z]{1,9}(\\.[a-z]{1,9}){0,9}=[a-z0-9]*$"},
    ),
    "since": ("Only logs with this timestamp or a later one, or of so long: `10m`.", _MOMENT),
    "until": ("Only logs with this timestamp or an earlier one.", _MOMENT),
    "n": (
        "The number of logs, at most.",
        {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100},
    ),
    "before": ("Only older logs: the cursor of the `Link` header.", _CURSOR),
    "follow": (
        "Stream new logs as they come, instead of stored ones; without `n` and `before`.",
        {"type": "boolean", "default": False},
    ),
}


def describe_search(rejections: Callable[[Iterable[str]], Json]) -> Json:
    """Return the operation of the search; `rejections` describes the responses of codes."""
    codes = ("bad_request", "unauthorized", "forbidden_scope", "storage_failed", "search_busy")
    link = {"description": "The URL of the next answer, if there is one.", "schema": _TEXT}
    searched = {
        "description": "Bytes of segment files that were read; not if the token is bound.",
        "schema": {"type": "integer"},
    }
    found = {
        "description": "The logs, newest first; with `follow=true`, as they come.",
        "headers": {"Link": link, "Searched-Bytes": searched},
        "content": {"application/x-ndjson": {"schema": {"type": "string"}}},
    }
    return {
        "tags": ["Logs"],
        "summary": "Search the stored logs",
        "description": _SEARCH_WORDS,
        "security": [{"token": []}],
        "parameters": [
            _parameter(name, words, schema) for name, (words, schema) in _SEARCH_PARAMETERS.items()
        ],
        "responses": {"200": found, **rejections([*codes, "internal"])},
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
