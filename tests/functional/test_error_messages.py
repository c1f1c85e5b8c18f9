"""The messages of a running service are in docs/errors.md, under their codes."""

import gzip
import json
import re
import socket
from collections.abc import Iterator

import pytest

from tests.support.service import ROOT, Service

#: Each code of the document, with its messages; numbers and quoted names vary.
DOCUMENTED = {
    code: {re.sub(r"\d+|'[^']*'", "#", line) for line in block.splitlines()}
    for code, block in re.findall(
        r"^### `(\w+)`\n\n\d+\n\n```\n(.*?)```",
        (ROOT / "docs" / "errors.md").read_text(),
        re.M | re.S,
    )
}

LOG = {
    "project_id": "org-xyz",
    "timestamp": "2024-05-31",
    "level": "info",
    "service": "s",
    "message": "m",
}
BATCH = json.dumps({"logs": [LOG]})
OTHER_BATCH = BATCH.replace('"m"', '"n"')
KEY = {"Idempotency-Key": "k"}
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Origin": "https://a.example"}

#: Code, method, path, body and headers of requests with the token `all`, unless they show another.
REQUESTS: list[tuple[str, str, str, str | bytes, dict[str, str]]] = [
    ("unauthorized", "POST", "/v1/drain", BATCH, {"Authorization": "x"}),
    ("unauthorized", "POST", "/v1/drain", BATCH, {"Authorization": '"all"'}),
    ("unauthorized", "POST", "/v1/drain", BATCH, {"Authorization": "all\\n"}),
    ("unauthorized", "POST", "/v1/drain", BATCH, {"Authorization": "Bearer%20all"}),
    ("unauthorized", "POST", "/v1/drain", BATCH, {"Authorization": "Digest all"}),
    ("unauthorized", "POST", "/v1/drain?token=x", BATCH, {"Authorization": ""}),
    ("forbidden_project", "POST", "/v1/drain", BATCH, {"Authorization": "bound"}),
    ("forbidden_scope", "POST", "/v1/drain", BATCH, {"Authorization": "reader"}),
    ("forbidden_scope", "GET", "/status/data", "", {"Authorization": "writer"}),
    ("forbidden_scope", "GET", "/metrics", "", {"Authorization": "bound", "Via": "proxy"}),
    ("not_found", "POST", "/nowhere", BATCH, {}),
    ("not_found", "GET", "/status/log?id=x", "", {}),
    ("method_not_allowed", "DELETE", "/v1/drain", "", {}),
    ("method_not_allowed", "POST", "/health", BATCH, {}),
    ("method_not_allowed", "OPTIONS", "/v1/drain", "", PREFLIGHT),
    ("bad_request", "POST", "/v1/drain?project_id=a&project_id=b", BATCH, {}),
    ("bad_request", "POST", "/v1/drain?project_id=", BATCH, {}),
    ("bad_request", "POST", "/v1/drain?partial=x", BATCH, {}),
    ("bad_request", "POST", "/v1/drain?unknown=x", BATCH, {}),
    ("bad_request", "POST", "/v1/drain", BATCH, {"Idempotency-Key": "a b"}),
    ("body_too_large", "POST", "/v1/drain", "x" * (11 << 20), {}),
    ("body_too_large", "POST", "/v1/drain", f"[{'1,' * 800_000}1]", {}),
    ("unsupported_encoding", "POST", "/v1/drain", BATCH, {"Content-Encoding": "br"}),
    ("unsupported_charset", "POST", "/v1/drain", BATCH, {"Content-Type": "a/b; charset=latin1"}),
    ("invalid_encoding", "POST", "/v1/drain", BATCH, {"Content-Encoding": "gzip"}),
    (
        *("invalid_encoding", "POST", "/v1/drain"),
        *(gzip.compress(BATCH.encode())[:-5], {"Content-Encoding": "gzip"}),
    ),
    ("invalid_json", "POST", "/v1/drain", '{"logs": [', {}),
    ("invalid_json", "POST", "/v1/drain", '{"logs": [NaN]}', {}),
    ("invalid_json", "POST", "/v1/drain", "[" * 5000, {}),
    ("invalid_json", "POST", "/v1/drain", "\ufeff".encode() + BATCH.encode(), {}),
    ("invalid_json", "POST", "/v1/drain", BATCH.encode("utf-16"), {}),
    ("invalid_json", "POST", "/v1/drain", f"{BATCH}\n{BATCH}", {}),
    ("invalid_batch", "POST", "/v1/drain", "{}", {}),
    ("invalid_batch", "POST", "/v1/drain", "[]", {}),
    ("invalid_batch", "POST", "/v1/drain", '{"logs": [{}]}', {}),
    ("invalid_batch", "POST", "/v1/drain", '{"resourceLogs": []}', {}),
    ("key_reused", "POST", "/v1/drain", OTHER_BATCH, KEY),
]

#: Requests that are no HTTP.
MALFORMED = [
    b"GET / HTTP/1.1\r\nX: " + b"a" * 9000 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 120 + b"\r\n",
    b"GET / HTTP/1.1\r\n" + (b"X: " + b"a" * 5000 + b"\r\n") * 5 + b"\r\n",
    b"\x16\x03\x01\x00\x01",
    b"PRI * HTTP/2.0\r\n\r\n",
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Return a service with a token of each kind and one stored batch with a key."""
    directory = tmp_path_factory.mktemp("messages")
    tokens = directory / "tokens"
    tokens.write_text("all\nbound org-abc\nwriter allow=write\nreader allow=read\n")
    with Service(directory, tokens=None, tokens_file=str(tokens)) as running:
        stored = running.request("POST", "/v1/drain", BATCH, {"Authorization": "all", **KEY})
        assert stored.status == 200
        yield running


def is_documented(code: str, message: str) -> bool:
    """Return whether the entry of a code has a message; errors of JSON's parsers vary."""
    shown = re.sub(r"\d+|'[^']*'", "#", message)
    if code == "invalid_json":
        return any(shown.partition(": ")[0] == line.partition(": ")[0] for line in DOCUMENTED[code])
    return shown in DOCUMENTED[code]


@pytest.mark.parametrize(("code", "method", "path", "body", "headers"), REQUESTS)
def test_message_is_documented(
    service: Service, code: str, method: str, path: str, body: str | bytes, headers: dict[str, str]
) -> None:
    """A client that searches the document for its message finds the entry of the code."""
    headers = {"Authorization": "all"} | headers
    shown = {name: value for name, value in headers.items() if value}
    answer = service.request(method, path, body, shown)
    assert answer.body["code"] == code
    assert is_documented(code, answer.body["message"]), answer.body["message"]


@pytest.mark.parametrize("request_bytes", MALFORMED)
def test_message_for_malformed_http_is_documented(service: Service, request_bytes: bytes) -> None:
    """Messages for requests that never reach the app."""
    with socket.create_connection(service.address, timeout=30) as connection:
        connection.sendall(request_bytes)
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    rejection = json.loads(received.partition(b"\r\n\r\n")[2])
    assert rejection["code"] == "bad_request"
    assert is_documented("bad_request", rejection["message"]), rejection["message"]
