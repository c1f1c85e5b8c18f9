"""The parts of the API's description: texts, examples, parameters and rejections."""

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from astralog.errors import MEANING_OF_CODE, RETRIED_STATUSES, STATUS_OF_CODE
from astralog.intake.options import (
    CONSTANTS,
    DEFAULTS,
    FIELD_PARAMETERS,
    MAX_DEFAULT_CHARACTERS,
    MAX_FIELD_CHARACTERS,
    MAX_KEY_CHARACTERS,
)

Json = dict[str, Any]

SECURITY: list[Json] = [{"token": []}]

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

To try requests on this page, enter the token under *Authorize*. Send 100 to 500 logs per batch over
several connections, with a timeout of at least 10 seconds. This page is generated from
[openapi.json](openapi.json).
"""

DRAIN = """\
Every log of the batch is stored, or none: 200 means that all of them are written and synced.

A body may be compressed, with the Content-Encoding {codings}.

```
gzip -c batch.json | curl -s http://localhost:8080/v1/drain \\
  -H "Authorization: Bearer $(cat data/token)" \\
  -H "Content-Encoding: gzip" --data-binary @-
```

A sender that cannot write these fields uses the parameters of the query:

```
curl -s "http://localhost:8080/v1/drain?project_id=org-xyz&level=info&unknown=metadata" \\
  -H "Authorization: Bearer $(cat data/token)" \\
  -d '{{"logs": [{{"timestamp": "2024-05-31", "service": "shell", "message": "", "pid": 7}}]}}'
```

A batch with an Idempotency-Key is stored once, however often it is sent. Use a new key for each
batch, and send the batch with the same key until the response is 200.

```
curl -s http://localhost:8080/v1/drain \\
  -H "Authorization: Bearer $(cat data/token)" \\
  -H 'Idempotency-Key: "9b2f6c1e-0b7a-4f43-8d55-0d6f1f3f7a10"' --data-binary @batch.json
```

A body with one log per line needs this Content-Type:

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

NDJSON_EXAMPLE = "".join(
    f'{{"project_id":"org-xyz","timestamp":"2024-05-31T15:30:{second}Z","level":"info",'
    f'"service":"api-gateway","message":"User logged {way}"}}\n'
    for second, way in ((45, "in"), (46, "out"))
)

_ERRORS = {"logs": {"3": {"level": ["Must not be empty."]}}}

PARTIAL_BATCH = {"status": "accepted", "rejected": 1, "errors": _ERRORS}

REJECTED_BATCH = {
    "status": "rejected",
    "code": "invalid_batch",
    "message": "1 of 500 logs are invalid; nothing was stored",
    "errors": _ERRORS,
}


_FLAGS = {
    "partial": "Stores the valid logs, and responds 200 with the number and the errors of the "
    "others.",
    "dry_run": "Validates the batch, and stores nothing.",
}


_SOURCE = (
    "One or more names, separated by commas; dots reach into objects. The value of the first name "
    "that a log has replaces its `{field}`."
)

_UNIX_TIME = (
    " Numbers, and strings of ten or more digits, are Unix time: below 10¹¹ in seconds, below 10¹⁴ "
    "in milliseconds, below 10¹⁷ in microseconds, else in nanoseconds."
)

_CONSTANTS = {
    "timestamp": "Adds the time of arrival to a log that lacks a timestamp.",
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

#: The header with a batch's key; the pattern leaves out quoted keys with a quote or a backslash.
KEY: Json = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "A text that no other batch of this token has, such as a UUID, quoted or not. "
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
        *(parameter(name, f"The `{name}` of a log that lacks one.", text) for name in DEFAULTS),
        *(
            parameter(name, _describe_source(field), names)
            for name, field in FIELD_PARAMETERS.items()
        ),
        *(
            parameter(name, _CONSTANTS[name], {"type": "string", "enum": [value]})
            for name, value in CONSTANTS.items()
        ),
        *(
            parameter(name, words, {"type": "boolean", "default": False})
            for name, words in _FLAGS.items()
        ),
    ]


def _describe_source(field: str) -> str:
    return _SOURCE.format(field=field) + (_UNIX_TIME if field == "timestamp" else "")


def parameter(name: str, description: str, schema: Json) -> Json:
    """Return a parameter of the query."""
    return {"name": name, "in": "query", "description": description, "schema": schema}


def post(
    name: str,
    summary: str,
    description: str,
    parameters: list[Json],
    *,
    content: Json,
    responses: Json,
) -> Json:
    """Return an operation that stores a batch; `name` is its ID, `content` its body by type."""
    return {
        "operationId": name,
        "tags": ["Logs"],
        "summary": summary,
        "description": description,
        "security": SECURITY,
        "parameters": [*parameters, KEY],
        "requestBody": {"required": True, "content": content},
        "responses": responses,
    }


ERRORS = {
    "type": "object",
    "description": "The errors of the first 20 invalid logs, by index and field; the index counts "
    "from 0 in JSON, and lines from 1 in NDJSON.",
}

REJECTION: Json = {
    "type": "object",
    "required": ["status", "code", "message"],
    "properties": {
        "status": {"type": "string", "const": "rejected"},
        "code": {
            "type": "string",
            "enum": list(STATUS_OF_CODE),
            "description": "The reason, as a word that never changes.",
        },
        "message": {"type": "string", "description": "The reason, as a sentence."},
        "errors": ERRORS,
    },
}

_REJECTION = {"$ref": "#/components/schemas/Rejection"}


#: Codes of requests that store nothing.
NOT_OF_BATCHES = ("not_found", "method_not_allowed", "status_busy", "search_busy")


def codes_of_batches(*, with_protobuf: bool) -> list[str]:
    """Return the codes with which a batch may be rejected; protobuf adds one."""
    absent = NOT_OF_BATCHES if with_protobuf else (*NOT_OF_BATCHES, "invalid_protobuf")
    return [code for code in STATUS_OF_CODE if code not in absent]


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


RETRY_AFTER = {"Retry-After": _header("Seconds until a retry.", {"type": "integer", "minimum": 1})}
