"""How OpenAPI describes rejections, by the statuses that they have."""

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from astralog.api.openapi_words import REJECTED_BATCH
from astralog.errors import (
    MEANING_OF_CODE,
    RETRIED_STATUSES,
    RETRY_AFTER_SECONDS,
    STATUS_OF_CODE,
)

ERRORS = {
    "type": "object",
    "description": "What is invalid, by number and field of the first 20 invalid logs; in a list "
    "they are counted from 0, and lines from 1.",
}

REJECTION: dict[str, Any] = {
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


def describe_rejections(codes: Iterable[str]) -> dict[str, Any]:
    """Return a response for each status that the codes have."""
    by_status: dict[HTTPStatus, list[str]] = {}
    for code in codes:
        by_status.setdefault(STATUS_OF_CODE[code], []).append(code)
    return {str(int(status)): _rejection(status, by_status[status]) for status in sorted(by_status)}


def _rejection(status: HTTPStatus, codes: list[str]) -> dict[str, Any]:
    lines = [f"- `{code}`: {MEANING_OF_CODE[code]}" for code in codes]
    first = {"status": "rejected", "code": codes[0], "message": MEANING_OF_CODE[codes[0]]}
    example = REJECTED_BATCH if "invalid_batch" in codes else first
    response: dict[str, Any] = {
        "description": "\n".join([f"{status.phrase}.", "", *lines]),
        "content": {"application/json": {"schema": _REJECTION, "example": example}},
    }
    if status in RETRIED_STATUSES:
        response["headers"] = RETRY_AFTER
    if status == HTTPStatus.UNAUTHORIZED:
        response["headers"] = {"WWW-Authenticate": _header("How to show a token.", "Bearer")}
    return response


def _header(description: str, value: str | int) -> dict[str, Any]:
    kind = "integer" if isinstance(value, int) else "string"
    schema = {"type": kind, "const": value}
    return {"description": description, "required": True, "schema": schema}


RETRY_AFTER = {"Retry-After": _header("Seconds to wait.", RETRY_AFTER_SECONDS)}
