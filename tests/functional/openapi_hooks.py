"""Hooks with the facts that schemathesis cannot read in the OpenAPI document.

Loaded by `SCHEMATHESIS_HOOKS`; the document itself is the service's own.
"""

import json
from typing import Any
from urllib.parse import quote

import schemathesis
from hypothesis import strategies as st
from schemathesis import Case, HookContext
from schemathesis.core.parameters import ParameterLocation

NDJSON_TYPES = ("application/x-ndjson", "application/ndjson", "application/jsonl")
ASSETS = {
    "/docs/{asset}": ("docs.css", "docs.js", "swagger-ui.css"),
    "/status/{asset}": ("status.css", "status.js", "icon.svg"),
}

#: The path of Elasticsearch's bulk, whose NDJSON has a line for the action of each log.
BULK = "/elasticsearch/_bulk"

#: What the values of a query may take of a request line, which may have 4,094 bytes.
REQUEST_LINE_BYTES = 3800

NAMES = ("project_id", "level", "service", "message")

#: Parameters that make a body valid which the document alone calls invalid.
LENIENT = (
    *("project_id", "level", "service", "timestamp", "unknown", "partial", "invalid"),
    *(f"{name}_field" for name in (*NAMES, "timestamp")),
)

timestamps = st.datetimes().map(str) | st.sampled_from(
    ["2024-05-31T15:30:45.123456789Z", "20240531T153045,5+0200", "2024-152", "2024-W22-5T15"]
)
logs = st.fixed_dictionaries(
    {name: st.text(min_size=1) for name in NAMES} | {"timestamp": timestamps},
    optional={"metadata": st.dictionaries(st.text(), st.integers() | st.text() | st.none())},
)
lines = st.lists(logs.map(json.dumps)).map("\n".join)

schemathesis.openapi.format("timestamp", timestamps)
for kind in NDJSON_TYPES:
    schemathesis.openapi.media_type(kind, lines.map(str.encode))


@schemathesis.hook
def before_load_schema(context: HookContext, raw_schema: dict[str, Any]) -> None:
    """Declare which texts are timestamps, how NDJSON is encoded, and which files exist."""
    log = raw_schema["components"]["schemas"]["Log"]
    log["properties"]["timestamp"]["format"] = "timestamp"
    content = raw_schema["paths"]["/v1/drain"]["post"]["requestBody"]["content"]
    for kind in NDJSON_TYPES:
        del content[kind]["example"]
    push = raw_schema["paths"]["/loki/api/v1/push"]["post"]["requestBody"]["content"]
    for operation in raw_schema["paths"][BULK].values():
        del operation["requestBody"]["content"]["application/x-ndjson"]["example"]
    streams = push["application/json"]["schema"]["properties"]["streams"]
    streams["items"]["properties"]["values"] = {"type": "array", "maxItems": 0}
    search = raw_schema["paths"]["/v1/search"]["get"]  # a stream has no end that it could wait for
    search["parameters"] = [one for one in search["parameters"] if one["name"] != "follow"]
    for path, names in ASSETS.items():
        (asset,) = raw_schema["paths"][path]["get"]["parameters"]
        asset["schema"]["enum"] = list(names)


@schemathesis.hook
def map_case(context: HookContext, case: Case[Any]) -> Case[Any]:
    """Remove from a batch that must be rejected everything that could make it valid.

    Also send batches without a key, and log queries without a cursor, unless these are under test.
    """
    if case.meta and case.meta.is_negative_at(ParameterLocation.BODY):
        for name in LENIENT:
            (case.query or {}).pop(name, None)
    elif case.path == BULK and isinstance(case.body, bytes):
        documents = case.body.split(b"\n")
        case.body = b"".join(b'{"create":{}}\n%s\n' % (text or b"{}") for text in documents)
        if case.meta and case.meta.generation.mode.is_negative:
            case.body = b"{}\n"  # schemathesis would reject a header more, or one less
    elif case.path == "/v1/logs" and isinstance(case.body, dict):
        # The document leaves OTLP's members to OTLP; an export of others alone is invalid.
        resources = case.body.get("resourceLogs")
        count = len(resources) if isinstance(resources, list) else 0
        case.body = {"resourceLogs": [{} for _ in range(count)]}
    is_negative = case.meta and case.meta.is_negative_at(ParameterLocation.HEADER)
    if case.headers and not is_negative:
        case.headers.pop("Idempotency-Key", None)  # it would be another batch's, too
    if case.query and not (case.meta and case.meta.is_negative_at(ParameterLocation.QUERY)):
        for name in ("after", "before"):  # only an answer of the service has one
            case.query.pop(name, None)
        _drop_conflicts(case.query)
    _shorten(case.query or {})
    return case


def _shorten(query: dict[str, Any]) -> None:
    """Keep the request line within its limit: beyond it, the path and its form are unknown."""
    left = REQUEST_LINE_BYTES
    for name, value in query.items():
        text = str(value)
        while len(quote(text)) > left:
            text = query[name] = text[: len(text) // 2]
        left -= len(quote(text))


def _drop_conflicts(query: dict[str, Any]) -> None:
    """Remove parameters that exclude each other: OpenAPI describes each one alone."""
    if query.get("timestamp") == "now":
        query.pop("once", None)
    if "project_id" not in query:
        query.pop("invalid", None)
    if "since" in query:
        query.pop("until", None)  # which may be earlier
