"""The API's description in OpenAPI 3.1: static/openapi.json, completed from the service's lists.

The format is https://spec.openapis.org/oas/v3.1.0. The file has every operation. `describe` adds

- the codes of rejections;
- to a parameter or a header what `x-parameters` and `x-headers` have under its name;
- a response for each status of an operation's `x-codes`, in which `batches` stands for all codes of
  batches. Its body is a `Rejection`, or the one of `x-bodies` that `x-body` names.

A text of several lines is a list of them in the file.
"""

import json
from collections.abc import Collection
from http import HTTPStatus
from typing import Any

from astralog.api.drain import NDJSON_TYPES
from astralog.errors import MEANING_OF_CODE, RETRIED_STATUSES, STATUS_OF_CODE

Json = dict[str, Any]

#: Codes of requests that store nothing.
NOT_OF_BATCHES = ("not_found", "method_not_allowed", "status_busy", "search_busy")

REJECTED_BATCH = {
    "status": "rejected",
    "code": "invalid_batch",
    "message": "1 of 500 logs are invalid; nothing was stored",
    "errors": {"logs": {"3": {"level": ["Must not be empty."]}}},
}


def describe(template: bytes, version: str, *, has_status: bool = True) -> Json:
    """Return the document that describes the API of this version; `template` is the file."""
    document: Json = json.loads(template, object_hook=_join_lines)
    parameters, headers, bodies = (
        document.pop(name) for name in ("x-parameters", "x-headers", "x-bodies")
    )
    document["info"]["version"] = version
    rejection = document["components"]["schemas"]["Rejection"]
    rejection["properties"]["code"]["enum"] = list(STATUS_OF_CODE)
    paths = document["paths"]
    if not has_status:
        for path in [path for path in paths if path.startswith("/status")]:
            del paths[path]
    content = paths["/v1/drain"]["post"]["requestBody"]["content"]
    content |= dict.fromkeys(NDJSON_TYPES, content["application/x-ndjson"])
    for operation in (each for path in paths.values() for each in path.values()):
        if "parameters" in operation:
            operation["parameters"] = [
                parameters.get(each["name"], {}) | each for each in operation["parameters"]
            ]
        body = bodies.get(operation.pop("x-body", None))
        operation["responses"] |= _describe_rejections(operation.pop("x-codes", ()), body)
        for response in operation["responses"].values():
            for name, header in response.get("headers", {}).items():
                header.update(headers.get(name, {}))
    bulk = paths["/elasticsearch/_bulk"]
    bulk["put"] = bulk["post"] | {"operationId": "putBulk"}
    return document


def _join_lines(value: Json) -> Json:
    """Join the lines of a text in an object of the file."""
    for name in ("description", "example"):
        if isinstance(lines := value.get(name), list):
            value[name] = "".join(f"{line}\n" for line in lines)
    return value


def _describe_rejections(codes: Collection[str], body: Json | None) -> Json:
    """Return a response for each status that the codes have."""
    by_status: dict[HTTPStatus, list[str]] = {}
    for code, status in STATUS_OF_CODE.items():
        is_of_batches = code not in (*NOT_OF_BATCHES, "invalid_protobuf")
        if code in codes or (is_of_batches and "batches" in codes):
            by_status.setdefault(status, []).append(code)
    return {
        str(int(status)): _describe_rejection(status, by_status[status], body)
        for status in sorted(by_status)
    }


def _describe_rejection(status: HTTPStatus, codes: list[str], body: Json | None) -> Json:
    lines = [f"- `{code}`: {MEANING_OF_CODE[code]}" for code in codes]
    first = {"status": "rejected", "code": codes[0], "message": MEANING_OF_CODE[codes[0]]}
    example = REJECTED_BATCH if "invalid_batch" in codes else first
    schema = {"$ref": "#/components/schemas/Rejection"}
    response: Json = {
        "description": "\n".join([f"{status.phrase}.", "", *lines]),
        "content": body or {"application/json": {"schema": schema, "example": example}},
    }
    if status in RETRIED_STATUSES:
        response["headers"] = {"Retry-After": {}}
    if status == HTTPStatus.UNAUTHORIZED:
        response["headers"] = {"WWW-Authenticate": {}}
    return response
