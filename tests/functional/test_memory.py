"""The share of the queue's memory that one token may use, and its effect on others."""

import contextlib
import gzip
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.service import Answer, Service, make_batch, make_head, wait_for

KIB = 1024
MIB = 1024 * KIB

#: What a worker's memory may grow by in addition to what it grants: the decode under way, and what
#: the allocator keeps.
CONSTANT_BYTES = 48 * MIB

QUEUE_BYTES = 16 * MIB


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """Return a service of one worker and two tokens."""
    path = tmp_path / "tokens"
    path.write_text("one\nother\n")
    settings = {"tokens": None, "tokens_file": path, "queue_bytes": QUEUE_BYTES}
    with Service(tmp_path, body_timeout_seconds=60, **settings) as service:
        yield service


@pytest.fixture
def connections() -> Iterator[contextlib.ExitStack]:
    """Return a function that opens connections, which are closed at the end."""
    with contextlib.ExitStack() as stack:
        yield stack


def send(
    service: Service, stack: contextlib.ExitStack, *fields: str, data: bytes = b""
) -> socket.socket:
    """Send a head and the beginning of its body, and leave the connection open."""
    connection = stack.enter_context(service.connect())
    connection.sendall(make_head(*fields, token="one") + data)
    return connection


def memory_bytes(service: Service) -> int:
    """Return the worker's resident memory."""
    (pid,) = service.worker_pids()
    status = Path(f"/proc/{pid}/status").read_text()
    return KIB * int(re.findall(r"VmRSS:\s+(\d+)", status)[0])


def reserved_bytes(service: Service) -> int:
    """Return the reserved memory of the queue from the metrics."""
    text = service.request("GET", "/metrics").raw.decode()
    return int(float(re.findall(r"^astralog_backlog_bytes (\S+)", text, re.MULTILINE)[0]))


ANNOUNCED = {
    "length": (f"Content-Length: {10 * MIB}",),
    "chunks": ("Transfer-Encoding: chunked",),
    "gzip": (f"Content-Length: {10 * MIB}", "Content-Encoding: gzip"),
    "zstd": ("Transfer-Encoding: chunked", "Content-Encoding: zstd"),
}


@pytest.mark.parametrize("fields", ANNOUNCED.values(), ids=ANNOUNCED)
@pytest.mark.parametrize("token", ["one", "other"])
def test_declared_bodies_reserve_nothing(
    service: Service, connections: contextlib.ExitStack, fields: tuple[str, ...], token: str
) -> None:
    """Neither another token's clients nor the same token's are affected."""
    for _ in range(200):
        send(service, connections, *fields)
    body = json.dumps(make_batch("x" * 2 * MIB)).encode()
    for _ in range(20):
        assert 200 == service.drain(body, {"Authorization": token}).status
    assert reserved_bytes(service) < MIB


def test_a_token_that_fills_its_share_leaves_the_rest_to_others(
    service: Service, connections: contextlib.ExitStack
) -> None:
    """It gets the reason; others' batches are stored, and the service stays ready."""
    for _ in range(30):
        start = b" " * (MIB - 1)
        send(service, connections, f"Content-Length: {MIB}", data=start)

    def reject() -> Answer | None:
        answer = service.drain(b" " * MIB, {"Authorization": "one"})
        return answer if answer.status == 503 else None

    full = wait_for(reject)
    assert "queue_full" == full.body["code"]
    assert "three quarters" in full.body["message"]
    assert "ASTRALOG_QUEUE_BYTES" in full.body["message"]
    for _ in range(20):
        batch = json.dumps(make_batch("x" * MIB)).encode()
        assert 200 == service.drain(batch, {"Authorization": "other"}).status
    assert 200 == service.request("GET", "/ready").status


def test_a_batch_beyond_a_tokens_share_is_too_large(service: Service) -> None:
    """A retry would not help."""
    body = json.dumps(make_batch("x" * 9 * MIB)).encode()
    answer = service.drain(body, {"Authorization": "one"})
    assert (413, "body_too_large") == (answer.status, answer.body["code"])
    assert "ASTRALOG_QUEUE_BYTES" in answer.body["message"]


SLOW = {
    "short": (("Content-Length: 65536",), b" " * 60_000),
    "long": ((f"Content-Length: {10 * MIB}",), b" " * 300_000),
    "chunked": (("Transfer-Encoding: chunked",), b"100000\r\n" + b" " * 300_000),
    "gzip": (
        (f"Content-Length: {10 * MIB}", "Content-Encoding: gzip"),
        gzip.compress(b" " * 5 * MIB)[:-50],
    ),
}


@pytest.mark.parametrize(("fields", "data"), SLOW.values(), ids=SLOW)
def test_slow_bodies_hold_no_more_than_is_granted(
    service: Service, connections: contextlib.ExitStack, fields: tuple[str, ...], data: bytes
) -> None:
    """For any number of them, in any form."""
    assert 200 == service.drain(make_batch("first"), {"Authorization": "one"}).status
    before = memory_bytes(service)
    for _ in range(400):
        send(service, connections, *fields, data=data)
    wait_for(lambda: service.drain(make_batch("x"), {"Authorization": "other"}).status == 200)
    assert memory_bytes(service) - before < QUEUE_BYTES + CONSTANT_BYTES


@pytest.mark.parametrize("line", [{"level": 30}, {"timestamp": "never"}, 1])
def test_a_partial_batch_without_a_valid_log_is_rejected(service: Service, line: object) -> None:
    """One valid log among thousands of others is stored; without one the batch is 400."""
    (good,) = make_batch("good")["logs"]
    bad = good | line if isinstance(line, dict) else line
    headers = {"Authorization": "one", "Content-Type": "application/x-ndjson"}

    def post(*logs: object) -> tuple[int, object, object]:
        body = "\n".join(map(json.dumps, logs)).encode()
        answer = service.request("POST", "/v1/drain?partial=true", body, headers)
        return answer.status, answer.body.get("code"), answer.body.get("rejected")

    assert (400, "invalid_batch", None) == post(*[bad] * 500)
    assert (200, None, 3000) == post(*[bad] * 1500, good, *[bad] * 1500)
    assert ["good"] == [log["message"] for log in service.logs()]
