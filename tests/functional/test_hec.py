"""Senders of Splunk's HTTP Event Collector store their logs, and understand the responses."""

import gzip
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.connections import free_port
from tests.support.service import TOKEN, Answer, Service, read_answer, write_tokens

EVENTS = "/services/collector/event"
EVENT = {"time": "1717169445.123456", "index": "org-xyz", "sourcetype": "shop", "event": "paid"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("hec")) as running:
        yield running


def send(service: Service, body: Any, path: str = EVENTS, **headers: str) -> Answer:
    """POST a body with the token, unless the headers have another."""
    if isinstance(body, dict):
        body = json.dumps(body)
    shown = {"Authorization": f"Splunk {TOKEN}"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    return service.request("POST", path, body, shown)


def reply(answer: Answer) -> tuple[int, int]:
    """Return the status and the code of a response."""
    return answer.status, answer.body["code"]


# --- Real senders


def docker_request(method: str, body: bytes = b"", *headers: str) -> bytes:
    """Return a request as Go's net/http writes it for Docker's `splunk` driver."""
    length = [f"Content-Length: {len(body)}"] if body else []
    lines = [
        f"{method} /services/collector/event/1.0 HTTP/1.1",
        "Host: 127.0.0.1:8080",
        "User-Agent: Go-http-client/1.1",
        *length,
        *headers,
        "Accept-Encoding: gzip",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


#: What the driver's three formats send: JSON of Go's, one object after another.
DOCKER_EVENTS = {
    "inline": b'{"event":{"line":"paid \\u003c7\\u003e","source":"stdout","tag":"3f2a",'
    b'"attrs":{"env":"prod"}},"time":"1717169445.123456","host":"docker-1","index":"org-xyz"}',
    "json": b'{"event":{"line":{"level":"info","msg":"paid"},"source":"stderr","tag":"3f2a"},'
    b'"time":"1717169445.123456","host":"docker-1","index":"org-xyz"}',
    "raw": b'{"event":"3f2a env=prod paid 7","time":"1717169445.123456","host":"docker-1",'
    b'"source":"shop","index":"org-xyz"}',
}
DOCKER_LOGS = {
    "inline": {
        "service": "3f2a",
        "message": "paid <7>",
        "metadata": {"event": {"source": "stdout", "attrs": {"env": "prod"}}, "host": "docker-1"},
    },
    "json": {
        "service": "3f2a",
        "message": '{"level":"info","msg":"paid"}',
        "metadata": {"event": {"source": "stderr"}, "host": "docker-1"},
    },
    "raw": {
        "service": "shop",
        "message": "3f2a env=prod paid 7",
        "metadata": {"host": "docker-1"},
    },
}


@pytest.mark.parametrize("is_compressed", [False, True])
@pytest.mark.parametrize("kind", DOCKER_EVENTS)
def test_dockers_driver_verifies_its_url_and_sends(
    service: Service, kind: str, is_compressed: bool
) -> None:
    """The bytes are those of its source: OPTIONS without a token, then events."""
    before = len(service.logs())
    events = DOCKER_EVENTS[kind] * 3
    body, encoding = events, []
    if is_compressed:
        body, encoding = gzip.compress(events), ["Content-Encoding: gzip"]
    with service.connect() as connection:
        connection.sendall(docker_request("OPTIONS"))
        verified = read_answer(connection)
        assert (200, b"") == (verified.status, verified.raw)
        connection.sendall(
            docker_request("POST", body, f"Authorization: Splunk {TOKEN}", *encoding)
        )
        assert (200, {"text": "Success", "code": 0}) == (
            (sent := read_answer(connection)).status,
            sent.body,
        )
    common = {
        "project_id": "org-xyz",
        "timestamp": "2024-05-31T15:30:45.123456Z",
        "level": "unspecified",
    }
    assert [common | DOCKER_LOGS[kind]] * 3 == service.logs()[before:]


PROGRAM = """
import logging, sys
from splunk_handler import SplunkHandler

handler = SplunkHandler(
    host="127.0.0.1", port=sys.argv[1], token=sys.argv[2], index="org-xyz", protocol="http",
    sourcetype="billing", source="app.py", hostname="web-1", verify=False, flush_interval=0.1,
    retry_count=10, retry_backoff=0.1,
)
logging.basicConfig(level=logging.INFO, handlers=[handler], format="%(message)s")
for number in range(int(sys.argv[3])):
    logging.info("order %d }{ \\u00e9", number)
"""


def run_handler(port: int, token: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(port), token, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_splunk_handler_sends_its_logs(tmp_path: Path) -> None:
    """It reports no error; with a revoked token it reports that logs are lost."""
    tokens = tmp_path / "tokens"
    write_tokens(tokens, TOKEN)
    with Service(tmp_path, tokens=None, tokens_file=tokens) as service:
        assert ("", "") == run_handler(service.address[1], TOKEN, 1000).communicate(timeout=60)
        # The thread of its timer and its exit may send at the same time, in any order.
        logs = sorted(service.logs(), key=lambda log: int(log["message"].split()[1]))
        assert [f"order {i} }}{{ é" for i in range(1000)] == [log["message"] for log in logs]
        assert {"billing"} == {log["service"] for log in logs}
        assert {"host": "web-1", "source": "app.py"} == logs[0]["metadata"]
        said, _ = run_handler(service.address[1], "revoked", 1).communicate(timeout=60)
        assert "403" in said
        assert 1000 == len(service.logs())


def test_splunk_handler_outlasts_a_restart(tmp_path: Path) -> None:
    """It retries unanswered requests, and no answered one is lost."""
    with Service(tmp_path, bind=f"127.0.0.1:{free_port()}") as service:
        service.kill()
        handler = run_handler(service.address[1], TOKEN, 100)
        service.start()
        assert ("", "") == handler.communicate(timeout=60)
        assert {f"order {i} }}{{ é" for i in range(100)} == {
            log["message"] for log in service.logs()
        }


# --- Answers


@pytest.mark.parametrize(
    ("authorization", "expected"),
    [
        (None, (401, 2)),
        ("Digest x", (401, 3)),
        ("Splunk wrong", (403, 4)),
        ("wrong", (403, 4)),
        ("Splunk ", (403, 4)),
    ],
)
def test_unknown_token_is_answered_as_splunk_does(
    service: Service, authorization: str | None, expected: tuple[int, int]
) -> None:
    """With 401 or 403, before the body is read."""
    headers = {"Authorization": authorization} if authorization else {}
    for path in (EVENTS, "/services/collector", "/services/collector/raw"):
        answer = service.request("POST", path, json.dumps(EVENT), headers)
        assert expected == reply(answer)
        assert answer.body["detail"].startswith("unauthorized: ")
        assert "wrong" not in answer.raw.decode()


@pytest.mark.parametrize("scheme", ["Splunk", "splunk", "Bearer", "", "Basic"])
def test_a_token_is_shown_in_any_form(service: Service, scheme: str) -> None:
    shown = "eDp0ZXN0LXRva2Vu" if scheme == "Basic" else TOKEN  # x:test-token
    answer = send(service, EVENT, Authorization=f"{scheme} {shown}".strip())
    assert (200, 0) == reply(answer)


@pytest.mark.parametrize(
    ("body", "expected", "number"),
    [
        (b"", (400, 5), None),
        (b"{}", (400, 12), 0),
        (b'{"event":""}', (400, 13), 0),
        (b'{"event":"x"}', (400, 7), 0),
        (b'{"event":"x","index":"i","fields":3}', (400, 15), 0),
        (b'{"event":"x","index":"i"}{"event":"y","index":"i"', (400, 6), 1),
        (b'{"event":"x","index":"i","time":-1}', (400, 6), 0),
        (b"\xff\xfe{\0}\0", (400, 6), 0),
        (b"{" * 1_000_000, (400, 6), 0),
        (b'{"event":' + b"[" * 1_000_000, (400, 6), 0),
        (b'{"event":"' + b'\\"}{' * 1_000_000, (400, 6), 0),
        (b"}" * 1_000_000, (400, 6), 0),
        (b" " * 5_000_000 + b"{", (400, 6), 0),
        (b"[" + b"0," * 1_000_000 + b"0]", (413, 27), None),
        (b'{"index":"i","event":{' + b'"a":0,' * 300_000 + b'"a":0}}', (400, 6), 0),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_hostile_body_gets_hecs_error_and_stores_nothing(
    service: Service, body: bytes, expected: tuple[int, int], number: int | None
) -> None:
    before = service.content()
    answer = send(service, body)
    assert expected == reply(answer)
    assert number == answer.body.get("invalid-event-number")
    assert before == service.content()


def test_a_truncated_or_oversized_body_stores_nothing(service: Service) -> None:
    """Compressed or not; a decompression bomb is not decompressed."""
    before = service.content()
    truncated = gzip.compress(json.dumps(EVENT).encode())[:-9]
    assert (400, 6) == reply(send(service, truncated, Content_Encoding="gzip"))
    bomb = gzip.compress(b" " * 100_000_000)
    assert (413, 27) == reply(send(service, bomb, Content_Encoding="gzip"))
    assert (415, 6) == reply(send(service, b"x", Content_Encoding="br"))
    head = f"POST {EVENTS} HTTP/1.1\r\nHost: x\r\nAuthorization: Splunk {TOKEN}\r\n"
    cut = service.exchange(f"{head}Content-Length: 100\r\n\r\n{{}}".encode(), half_close=True)
    assert (400, 6) == reply(cut)
    assert before == service.content()


def test_acknowledgement_channels_are_refused(service: Service) -> None:
    """As by a token for which they are disabled; a channel itself is ignored."""
    assert (400, 14) == reply(send(service, b'{"acks":[0]}', "/services/collector/ack?channel=c"))
    assert (200, 0) == reply(send(service, EVENT, X_Splunk_Request_Channel="c"))


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", EVENTS, 405),
        ("PUT", EVENTS, 405),
        ("POST", "/services/collector/health", 405),
        ("GET", "/services/collector/none", 404),
        ("POST", "/services", 404),
        ("POST", "/services/", 404),
        ("OPTIONS", "/services/none", 404),
        ("POST", "/services//collector", 404),
    ],
)
def test_other_paths_and_methods_have_hecs_form(
    service: Service, method: str, path: str, status: int
) -> None:
    answer = service.request(method, path, b"x", {"Authorization": TOKEN})
    assert (status, status) == reply(answer)
    assert "Location" not in answer.headers


def test_a_health_check_needs_no_token(service: Service) -> None:
    for path in ("/services/collector/health", "/services/collector/health/1.0"):
        assert (200, 17) == reply(service.request("GET", path))


def test_a_full_disk_is_answered_as_busy(tmp_path: Path) -> None:
    """With 503, code 9 and Retry-After, before a byte is read, and in the health check."""
    with Service(tmp_path, min_free_bytes=2**60) as service:
        answer = send(service, EVENT)
        assert (503, 9) == reply(answer)
        assert ("5", True) == (
            answer.headers["Retry-After"],
            "storage_full" in answer.body["detail"],
        )
        assert (503, 18) == reply(service.request("GET", "/services/collector/health"))
        assert [] == service.logs()


def test_a_project_that_the_token_may_not_write_is_an_incorrect_index(tmp_path: Path) -> None:
    """Log and metric have the same code as for other paths."""
    tokens = tmp_path / "tokens"
    write_tokens(tokens, f"{TOKEN} org-a org-b\nsingle org-c\n")
    with Service(tmp_path, tokens=None, tokens_file=tokens) as service:
        assert (400, 7) == reply(send(service, EVENT))
        assert "rejected forbidden_project from 127.0.0.1" in service.log()
        metrics = service.request("GET", "/metrics").raw
        assert b'astralog_rejected_batches_total{code="forbidden_project"} 1.0' in metrics
        assert (200, 0) == reply(send(service, EVENT, Authorization="Splunk single"))
        assert (200, 0) == reply(send(service, EVENT | {"index": "org-a"}))
        assert ["org-c", "org-a"] == [log["project_id"] for log in service.logs()]


def test_raw_lines_and_query_options(service: Service) -> None:
    """The query of raw lines has Splunk's options and the service's own."""
    before = len(service.logs())
    query = "index=org-r&host=h&source=s&sourcetype=st&level=info&channel=c"
    assert (200, 0) == reply(send(service, b"a\nb\n", f"/services/collector/raw?{query}"))
    assert (400, 6) == reply(send(service, b"a", "/services/collector/raw?indx=a"))
    invalid = send(service, {"event": ""}, f"{EVENTS}?partial=true&project_id=org-q")
    assert (400, 6) == reply(invalid)
    assert "log 0: event: Event field cannot be blank" in invalid.body["detail"]
    bad = json.dumps(EVENT) + '{"event":"","index":"i"}'
    assert (200, 0) == reply(send(service, bad, f"{EVENTS}?partial=true&project_id=org-q"))
    *raw, partial = service.logs()[before:]
    assert [("org-r", "info", "st", m) for m in "ab"] == [
        (log["project_id"], log["level"], log["service"], log["message"]) for log in raw
    ]
    assert ("org-q", {"index": "org-xyz"}) == (partial["project_id"], partial["metadata"])
    metrics = service.request("GET", "/metrics").raw
    assert re.search(rb'astralog_rejected_logs_total{code="invalid_batch"} [1-9]', metrics)


def test_an_idempotency_key_counts_here_too(service: Service) -> None:
    before = len(service.logs())
    answers = [send(service, EVENT, Idempotency_Key="hec-1") for _ in range(2)]
    assert [(200, 0)] * 2 == [reply(answer) for answer in answers]
    assert "true" == answers[1].headers["Idempotency-Replayed"]
    assert before + 1 == len(service.logs())
