import json
import re
from typing import Any

import pytest
from flask.testing import FlaskClient
from marshmallow import RAISE, fields
from marshmallow.validate import Length

from astralog import __version__
from astralog.api.dispatch import OPTIONS, PARTIAL_OPTIONS
from astralog.api.drain import NDJSON_TYPES, SHOWN_LOGS
from astralog.api.otlp import PROTOBUF_TYPES
from astralog.api.pages import CONTENT_SECURITY_POLICY, NOT_OF_BATCHES, load_assets
from astralog.errors import MEANING_OF_CODE, STATUS_OF_CODE
from astralog.intake.body import INFLATERS
from astralog.intake.options import (
    CONSTANTS,
    MAX_DEFAULT_CHARACTERS,
    MAX_FIELD_CHARACTERS,
    MAX_KEY_CHARACTERS,
    PARAMETERS,
)
from astralog.intake.schema import BatchSchema, LogSchema

#: Operations that no route of Flask's has: each belongs to a protocol that routes for itself.
PROTOCOL_OPERATIONS = (
    ("/services/collector/event", "post"),
    ("/loki/api/v1/push", "post"),
    ("/elasticsearch/_bulk", "post"),
    ("/elasticsearch/_bulk", "put"),
)

#: What a browser sends for a page.
BROWSER_ACCEPT = "text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,*/*;q=0.8"


@pytest.fixture
def document(client: FlaskClient) -> dict[str, Any]:
    """Return the document as a client receives it."""
    response = client.get("/openapi.json")
    assert (200, "application/json") == (response.status_code, response.content_type)
    found: dict[str, Any] = response.get_json()
    return found


def schema_named(document: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = document["components"]["schemas"][name]
    return found


# --- The document


@pytest.mark.slow
def test_the_document_is_openapi(document: dict[str, Any]) -> None:
    """It is valid OpenAPI 3.1 and has the service's version."""
    from openapi_spec_validator import OpenAPIV31SpecValidator, validate  # noqa: PLC0415  # 0.5 s

    validate(document, cls=OpenAPIV31SpecValidator)
    assert re.match(r"3\.1\.", document["openapi"])
    assert __version__ == document["info"]["version"]


def test_the_document_has_every_route(client: FlaskClient, document: dict[str, Any]) -> None:
    """It describes exactly the paths and methods of the service."""
    taken = {
        (re.sub(r"<(\w+)>", r"{\1}", rule.rule), method.lower())
        for rule in client.application.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    taken |= set(PROTOCOL_OPERATIONS)
    described = {(path, method) for path, item in document["paths"].items() for method in item}
    assert taken == described


@pytest.mark.parametrize(
    ("status", "header", "count"),
    [
        ("401", "WWW-Authenticate", 8),
        ("409", "Retry-After", 2),
        ("429", "Retry-After", 2),
        ("503", "Retry-After", 6),
    ],
)
def test_the_document_has_the_headers_of_rejections(
    document: dict[str, Any], status: str, header: str, count: int
) -> None:
    """A header that each response of a status has is required there, for every path."""
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    found = [each["responses"][status] for each in operations if status in each["responses"]]
    assert len(found) == count + len(PROTOCOL_OPERATIONS)
    assert all(response["headers"][header]["required"] for response in found)


@pytest.mark.parametrize(
    ("path", "absent"),
    [
        ("/v1/logs", NOT_OF_BATCHES),
        *(
            (path, (*NOT_OF_BATCHES, "invalid_protobuf"))
            for path in ("/v1/drain", *{path: 0 for path, _ in PROTOCOL_OPERATIONS})
        ),
    ],
)
def test_the_document_has_every_rejection(
    document: dict[str, Any], path: str, absent: tuple[str, ...]
) -> None:
    """Each code is in the rejection's schema, and each code for batches under its status."""
    assert set(STATUS_OF_CODE) == set(MEANING_OF_CODE)
    assert list(STATUS_OF_CODE) == schema_named(document, "Rejection")["properties"]["code"]["enum"]
    responses = document["paths"][path]["post"]["responses"]
    shown = {
        (int(status), code)
        for status, response in responses.items()
        for code in re.findall(r"^- `(\w+)`: ", response["description"], re.MULTILINE)
    }
    expected = {(int(status), code) for code, status in STATUS_OF_CODE.items()}
    hidden = {(int(STATUS_OF_CODE[code]), code) for code in absent}
    assert shown == expected - hidden


def test_operations_that_need_a_token_document_forbidden_scope(document: dict[str, Any]) -> None:
    """Each protocol with its own responses documents the status alone."""
    operations = {
        f"{method} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if operation.get("security") and (path, method) not in PROTOCOL_OPERATIONS
    }
    assert "get /status/history" in operations
    codes = {
        name: operation["responses"].get("403", {}).get("description", "")
        for name, operation in operations.items()
    }
    assert [name for name, text in codes.items() if "`forbidden_scope`" not in text] == []


def test_log_of_the_document_matches_the_schema(document: dict[str, Any]) -> None:
    """Fields, required fields, empty and null values match, and other fields are excluded."""
    log = schema_named(document, "Log")
    declared = LogSchema().fields
    assert declared.keys() == log["properties"].keys()
    assert {name for name, field in declared.items() if field.required} == set(log["required"])
    for name, field in declared.items():
        shown = log["properties"][name]
        kind = "object" if isinstance(field, fields.Dict) else "string"
        assert ([kind, "null"] if field.allow_none else kind) == shown["type"]
        lengths = [rule.min for rule in field.validators if isinstance(rule, Length)]
        assert lengths == ([shown["minLength"]] if "minLength" in shown else [])
        assert shown["description"]
    assert (RAISE, False) == (LogSchema().unknown, log["additionalProperties"])


def test_batch_of_the_document_matches_the_schema(document: dict[str, Any]) -> None:
    """A batch is an object with its logs and nothing else, and the request body is a batch."""
    batch = schema_named(document, "Batch")
    assert list(BatchSchema().fields) == list(batch["properties"]) == batch["required"]
    assert {"$ref": "#/components/schemas/Log"} == batch["properties"]["logs"]["items"]
    assert batch["additionalProperties"] is False
    content = document["paths"]["/v1/drain"]["post"]["requestBody"]["content"]
    assert {"$ref": "#/components/schemas/Batch"} == content["application/json"]["schema"]
    assert NDJSON_TYPES == content.keys() - {"application/json"}


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("/v1/drain", PARAMETERS),
        ("/v1/logs", PARTIAL_OPTIONS),
        ("/services/collector/event", PARTIAL_OPTIONS),
        ("/loki/api/v1/push", OPTIONS),
        ("/elasticsearch/_bulk", OPTIONS),
    ],
)
def test_options_of_the_document_are_those_of_the_service(
    document: dict[str, Any], path: str, options: tuple[str, ...]
) -> None:
    """Their names, their values and their longest texts are, and the one of a key."""
    found = {each["name"]: each["schema"] for each in document["paths"][path]["post"]["parameters"]}
    assert f"{{1,{MAX_KEY_CHARACTERS}}}" in found.pop("Idempotency-Key")["pattern"]
    assert set(options) == found.keys()
    for name, schema in found.items():
        longest = MAX_FIELD_CHARACTERS if name.endswith("_field") else MAX_DEFAULT_CHARACTERS
        limits = (CONSTANTS.get(name), schema.get("maxLength", longest))
        assert limits == (schema.get("enum", [None])[0], longest)


def test_media_types_and_limits_of_the_document_are_those_of_the_service(
    document: dict[str, Any],
) -> None:
    """The media types of an export, the codings of a body, and the logs of a dry run."""
    for signal in ("logs", "traces", "metrics"):
        operation = document["paths"][f"/v1/{signal}"]["post"]
        for each in [*operation["responses"].values(), operation.get("requestBody")]:
            if each:
                assert PROTOBUF_TYPES == each["content"].keys() - {"application/json"}
    drain = document["paths"]["/v1/drain"]["post"]
    assert f"Content-Encoding {', '.join(INFLATERS)}." in drain["description"]
    accepted = drain["responses"]["200"]["content"]["application/json"]["schema"]
    assert SHOWN_LOGS == accepted["properties"]["logs"]["maxItems"]


def test_ndjson_example_of_the_document_is_stored(
    client: FlaskClient, document: dict[str, Any]
) -> None:
    """The example with one log per line is stored."""
    content = document["paths"]["/v1/drain"]["post"]["requestBody"]["content"]
    for kind in NDJSON_TYPES:
        response = client.post(
            "/v1/drain",
            data=content[kind]["example"],
            headers={"Authorization": "test-token", "Content-Type": kind},
        )
        assert 200 == response.status_code


def test_examples_of_the_document_are_right(client: FlaskClient, document: dict[str, Any]) -> None:
    """The example of a batch is stored and gets the documented response."""
    drain = document["paths"]["/v1/drain"]["post"]
    example = drain["requestBody"]["content"]["application/json"]["example"]
    response = client.post("/v1/drain", json=example, headers={"Authorization": "test-token"})
    shown = drain["responses"]["200"]["content"]["application/json"]["examples"]
    assert (200, shown["accepted"]["value"]) == (response.status_code, response.get_json())
    response = client.post(
        "/v1/drain?dry_run=true", json=example, headers={"Authorization": "test-token"}
    )
    assert (200, shown["valid"]["value"]) == (response.status_code, response.get_json())
    export = document["paths"]["/v1/logs"]["post"]
    example = export["requestBody"]["content"]["application/json"]["example"]
    response = client.post("/v1/logs", json=example, headers={"Authorization": "test-token"})
    shown = export["responses"]["200"]["content"]["application/json"]["example"]
    assert (200, shown) == (response.status_code, response.get_json())
    for path in ("/health", "/ready"):
        shown = document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]
        assert shown["example"] == client.get(path).get_json()


@pytest.mark.parametrize(("path", "method"), PROTOCOL_OPERATIONS)
def test_the_documents_example_of_a_protocol_is_stored(
    client: FlaskClient, document: dict[str, Any], path: str, method: str
) -> None:
    """The example body gets the first response of the document."""
    operation = document["paths"][path][method]
    ((kind, content),) = operation["requestBody"]["content"].items()
    example = content["example"]
    response = client.open(
        f"{path}?project_id=org-xyz",
        method=method.upper(),
        data=example if isinstance(example, str) else json.dumps(example),
        headers={"Authorization": "test-token", "Content-Type": kind},
    )
    status, shown = next(iter(operation["responses"].items()))
    assert status == str(response.status_code)
    if "content" in shown:
        ((kind, content),) = shown["content"].items()
        assert (kind, content["example"].keys()) == (response.mimetype, response.get_json().keys())


# --- The page


def test_browser_is_redirected_to_the_status_page(client: FlaskClient) -> None:
    """A client that prefers HTML is redirected to the status page, which links to the docs page."""
    response = client.get("/", headers={"Accept": BROWSER_ACCEPT})
    assert b'href="docs"' in client.get("/status").data
    assert (302, "/status", "Accept") == (
        response.status_code,
        response.location,
        response.headers["Vary"],
    )


@pytest.mark.parametrize("accept", ["*/*", "", "application/json", "application/json, text/html"])
def test_other_clients_get_links(client: FlaskClient, accept: str) -> None:
    """They receive JSON with links that work."""
    response = client.get("/", headers={"Accept": accept})
    assert (200, "application/json") == (response.status_code, response.content_type)
    body: dict[str, Any] = response.get_json()
    assert ("AstraLog", __version__) == (body["name"], body["version"])
    assert [200] * 6 == [client.get(path).status_code for path in body["links"].values()]


def test_page_loads_only_own_files(client: FlaskClient) -> None:
    """Every file that the page names is served, and its policy excludes other hosts."""
    page = client.get("/docs")
    assert (200, "text/html") == (page.status_code, page.mimetype)
    assert CONTENT_SECURITY_POLICY == page.headers["Content-Security-Policy"]
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    names = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert 5 <= len(names)
    for name in names:
        assert not re.match(r"\w+:|//", name)
        assert 200 == client.get(f"/{name}").status_code


@pytest.mark.parametrize("name", load_assets())
def test_a_file_of_the_page_is_sent_once(client: FlaskClient, name: str) -> None:
    """A browser revalidates it and gets 304."""
    first = client.get(f"/docs/{name}")
    assert (200, load_assets()[name].content) == (first.status_code, first.data)
    assert "nosniff" == first.headers["X-Content-Type-Options"]
    again = client.get(f"/docs/{name}", headers={"If-None-Match": first.headers["ETag"]})
    assert (304, b"") == (again.status_code, again.data)


@pytest.mark.parametrize("name", ["", "docs.html", "..%2fapi%2fdocs.py", "swagger-ui.js"])
def test_the_page_has_no_other_files(client: FlaskClient, name: str) -> None:
    """Only the page's own files are served, and the page only at its own path."""
    response = client.get(f"/docs/{name}")
    assert (404, "not_found") == (response.status_code, response.get_json()["code"])
