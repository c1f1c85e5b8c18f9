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


#: Codes of requests that store nothing.
NOT_OF_BATCHES = ("not_found", "method_not_allowed", "status_busy", "search_busy")


def codes_of_batches(*, with_protobuf: bool) -> list[str]:
    """Return the codes with which a batch may be rejected, one in protobuf with one more."""
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


RETRY_AFTER = {"Retry-After": _header("Seconds to wait.", {"type": "integer", "minimum": 1})}
