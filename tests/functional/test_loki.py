"""Senders of Grafana's Loki store their logs, and understand the responses."""

import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cramjam
import pytest

from tests.support.loki import make_json, make_protobuf
from tests.support.service import TOKEN, Answer, Service, write_tokens

PUSH = "/loki/api/v1/push"
TIME = 1717169445123456789
STREAMS = [({"app": "shop", "level": "info"}, [(TIME, "paid 7", {"trace": "x"}), (TIME + 1, "é")])]
KINDS = {
    "application/json": make_json(STREAMS),
    "application/x-protobuf": make_protobuf(STREAMS),
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("loki")) as running:
        yield running


def push(
    service: Service,
    body: bytes,
    kind: str = "application/json",
    path: str = PUSH,
    token: str = TOKEN,
    **headers: str,
) -> Answer:
    """POST a body as a tenant."""
    sent = {"Authorization": f"Bearer {token}", "Content-Type": kind, "X-Scope-OrgID": "org-xyz"}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    return service.request("POST", path, body, sent)


@pytest.mark.parametrize("kind", KINDS)
def test_a_push_is_stored(service: Service, kind: str) -> None:
    """The response is 204, as Loki's, once it is on disk."""
    before = len(service.logs())
    answer = push(service, KINDS[kind], kind)
    assert (204, b"", None) == (answer.status, answer.raw, answer.headers["Content-Type"])
    first, second = service.logs()[before:]
    assert {
        "project_id": "org-xyz",
        "timestamp": "2024-05-31T15:30:45.123456789Z",
        "level": "info",
        "service": "shop",
        "message": "paid 7",
        "metadata": {
            "labels": {"app": "shop", "level": "info"},
            "structured_metadata": {"trace": "x"},
        },
    } == first
    assert "é" == second["message"]


def test_encodings_of_the_body(service: Service) -> None:
    """JSON may be gzipped; protobuf may declare Snappy, or nothing at all."""
    body = gzip.compress(KINDS["application/json"])
    assert (
        204
        == push(service, body, "application/json; charset=utf-8", Content_Encoding="gzip").status
    )
    protobuf = KINDS["application/x-protobuf"]
    assert (
        204 == push(service, protobuf, "application/x-protobuf", Content_Encoding="snappy").status
    )
    assert 204 == push(service, protobuf, "").status


PROGRAM = """
import logging, sys
import logging_loki

handler = logging_loki.LokiHandler(
    url=f"http://127.0.0.1:{sys.argv[1]}/loki/api/v1/push?project_id=org-xyz",
    tags={"app": "billing"}, auth=("any", sys.argv[2]), version="1",
)
logging.basicConfig(level=logging.INFO, handlers=[handler], format="%(message)s")
for number in range(20):
    logging.getLogger("orders").warning("order %d é", number, extra={"tags": {"shop": "7"}})
"""


def test_python_logging_loki_sends_its_logs(tmp_path: Path) -> None:
    """One log per request; a revoked token is an error that logging shows."""
    tokens = tmp_path / "tokens"
    write_tokens(tokens, TOKEN)
    with Service(tmp_path, tokens=None, tokens_file=tokens) as service:
        for token in (TOKEN, "revoked"):
            command = [sys.executable, "-W", "ignore", "-c", PROGRAM]
            command += [str(service.address[1]), token]
            run = subprocess.run(command, check=True, timeout=60, capture_output=True, text=True)
            assert ("status code: 401" in run.stderr) == (token != TOKEN)
        logs = service.logs()
        assert [f"order {i} é" for i in range(20)] == [log["message"] for log in logs]
        labels = {"app": "billing", "severity": "warning", "logger": "orders", "shop": "7"}
        assert ("warning", "billing", {"labels": labels}) == (
            logs[0]["level"],
            logs[0]["service"],
            logs[0]["metadata"],
        )


@pytest.mark.parametrize(
    ("body", "kind", "status", "code"),
    [
        (b"", "application/json", 400, b"invalid_json"),
        (b"{}", "application/json", 400, b"invalid_json"),
        (b'{"streams":[]}', "application/json", 422, b"invalid_batch"),
        (KINDS["application/json"][:-3], "application/json", 400, b"invalid_json"),
        (b'{"streams":' + b"[" * 1_000_000, "application/json", 400, b"invalid_json"),
        (b"[" + b"0," * 1_000_000, "application/json", 413, b"body_too_large"),
        (KINDS["application/json"], "text/plain", 400, b"invalid_encoding"),
        (KINDS["application/x-protobuf"][:-3], "application/x-protobuf", 400, b"invalid_encoding"),
        (b"\xff\xff\xff\xff\x0f", "application/x-protobuf", 413, b"body_too_large"),
        (
            bytes(cramjam.snappy.compress_raw(b"\x0a\x00" * 3_000_000)),
            "application/x-protobuf",
            413,
            b"body_too_large",
        ),
        (
            make_json([({"a": "b" * 100_000}, [(TIME, "x")] * 1000)]),
            "application/json",
            413,
            b"body_too_large",
        ),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_hostile_body_gets_an_error_in_text_and_stores_nothing(
    service: Service, body: bytes, kind: str, status: int, code: bytes
) -> None:
    before = service.content()
    answer = push(service, body, kind)
    assert (status, "text/plain; charset=utf-8") == (answer.status, answer.headers["Content-Type"])
    assert answer.raw.startswith(code + b": ")
    assert before == service.content()


def test_a_token_and_a_tenant_are_needed(service: Service) -> None:
    body = KINDS["application/json"]
    before = service.content()
    assert 401 == push(service, body, token="wrong").status
    answer = push(service, body, X_Scope_OrgID="")
    assert (400, True) == (answer.status, b"no org id" in answer.raw)
    assert 400 == push(service, body, X_Scope_OrgID="x" * 151).status
    assert 400 == push(service, body, path=f"{PUSH}?partial=true").status
    assert before == service.content()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", PUSH, 405),
        ("OPTIONS", PUSH, 405),
        ("POST", f"{PUSH}/", 404),
        ("GET", "/loki/api/v1/query", 404),
        ("GET", "/loki", 404),
    ],
)
def test_other_paths_and_methods_are_answered_in_text(
    service: Service, method: str, path: str, status: int
) -> None:
    answer = service.request(method, path, headers={"Authorization": TOKEN})
    assert (status, "text/plain; charset=utf-8") == (answer.status, answer.headers["Content-Type"])
    assert "Location" not in answer.headers


def test_full_disk_is_answered_with_retry_after(tmp_path: Path) -> None:
    """With 503, after which Promtail and Alloy retry."""
    with Service(tmp_path, min_free_bytes=2**60) as service:
        for kind, body in KINDS.items():
            answer = push(service, body, kind)
            assert (503, "5") == (answer.status, answer.headers["Retry-After"])
            assert answer.raw.startswith(b"storage_full: ")
        assert [] == service.logs()


def test_an_idempotency_key_counts_here_too(service: Service) -> None:
    before = len(service.logs())
    body = json.dumps(json.loads(KINDS["application/json"])).encode()
    answers = [push(service, body, Idempotency_Key="loki-1") for _ in range(2)]
    assert [204, 204] == [answer.status for answer in answers]
    assert "true" == answers[1].headers["Idempotency-Replayed"]
    assert 422 == push(service, body, Idempotency_Key="loki-1", X_Scope_OrgID="other").status
    assert 204 == push(service, body, path=f"{PUSH}?once=body").status
    assert 204 == push(service, body, path=f"{PUSH}?once=body").status
    assert before + 4 == len(service.logs())


def test_a_rate_is_charged_the_decompressed_bytes_of_a_push(tmp_path: Path) -> None:
    """A push of Snappy counts as the bytes of its message."""
    body = make_protobuf([({"app": "shop"}, [(TIME, "x" * 30_000)])])
    assert len(body) < 3_000
    tokens = write_tokens(tmp_path / "tokens", "slow rate=1KB/s\n")
    with Service(tmp_path, tokens=None, tokens_file=tokens) as service:
        assert 204 == push(service, body, "", token="slow").status  # more than its 10 s at once
        answer = push(service, body, "", token="slow")
        assert (429, "rate_limited") == (answer.status, answer.raw.decode().partition(":")[0])
