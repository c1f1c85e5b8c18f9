"""The senders of docs/senders.md under "Any JSON": their requests are stored with its queries."""

import gzip
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.service import ROOT, TOKEN, Service

SECTION = (ROOT / "docs" / "senders.md").read_text().partition("\n## Any JSON\n")[2]
QUERIES = dict(re.findall(r"^\| ([^|]+) \| `([^`]+)` \|$", SECTION.partition("\n## ")[0], re.M))

JSON, NDJSON = "application/json", "application/x-ndjson"
FORM = "application/x-www-form-urlencoded"  # curl's own, without a header

TIME = "2024-05-31T15:30:45.123Z"
ARRIVAL = "the arrival"


def log(**fields: Any) -> dict[str, Any]:
    """Return a stored log, apart from the given fields."""
    made = {"project_id": "org-xyz", "timestamp": TIME, "level": "info", "service": "shop"}
    return made | {"message": "User logged in"} | fields


PINO = (
    b'{"level":30,"time":1717169445123,"pid":7,"hostname":"vm","name":"billing","req":{"id":1},'
    b'"msg":"User logged in"}'
)
PINO_ERROR = (
    b'{"level":50,"time":1717169445123,"pid":7,"hostname":"vm","err":{"type":"Error",'
    b'"message":"boom","stack":"Error: boom\\n    at main"}}'
)
PINO_LOGS = [
    log(level="30", service="billing", metadata={"pid": 7, "hostname": "vm", "req": {"id": 1}}),
    log(
        level="50",
        message="boom",
        metadata={
            "pid": 7,
            "hostname": "vm",
            "err": {"type": "Error", "stack": "Error: boom\n    at main"},
        },
    ),
]

FLUENT_BIT = [
    {"date": 1717169445.123, "log": "User logged in", "stream": "stdout"},
    {"date": 1717169445.123, "log": "", "kubernetes": {"pod_name": "shop-1"}},
]
FLUENT_BIT_LOGS = [
    log(metadata={"stream": "stdout"}),
    log(message="", metadata={"kubernetes": {"pod_name": "shop-1"}}),
]

VECTOR = [
    {
        "file": "/var/log/shop.log",
        "host": "vm",
        "message": message,
        "source_type": "file",
        "timestamp": TIME,
    }
    for message in ("User logged in", "User logged out")
]
VECTOR_LOGS = [
    log(
        message=event["message"],
        metadata={"file": "/var/log/shop.log", "host": "vm", "source_type": "file"},
    )
    for event in VECTOR
]

VERCEL = {
    "id": "1573817187330377061717300000",
    "deploymentId": "dpl_1",
    "source": "lambda",
    "host": "shop.vercel.app",
    "timestamp": 1717169445123,
    "projectId": "prj_1",
    "level": "warning",
    "message": "User logged in",
    "proxy": {"method": "GET", "path": "/dynamic", "clientIp": "1.1.1.1"},
}
VERCEL_STATIC = {
    "id": "2",
    "source": "static",
    "host": "shop.vercel.app",
    "timestamp": 1717169445123,
    "projectId": "prj_1",
    "projectName": "shop",
    "proxy": {"method": "GET", "path": "/logo.png"},
}

GITHUB = {
    "action": "opened",
    "issue": {"number": 7, "title": "A bug", "labels": []},
    "repository": {"full_name": "acme/shop"},
    "sender": {"login": "octocat"},
}

CLOUDFLARE = {
    "ClientIP": "1.1.1.1",
    "ClientRequestHost": "shop.example",
    "ClientRequestMethod": "GET",
    "ClientRequestURI": "/checkout",
    "EdgeResponseStatus": 200,
    "EdgeStartTimestamp": 1717169445123000000,
}


def lines(*values: Any) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


def without(value: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: member for name, member in value.items() if name not in names}


#: Each request of a sender: its name in the document, Content-Type, body, and the stored logs.
REQUESTS: list[tuple[str, str, bytes, list[dict[str, Any]]]] = [
    (
        "Vercel drain",
        content_type,
        body,
        [
            log(
                level="warning",
                service="prj_1",
                metadata=without(VERCEL, "timestamp", "projectId", "level", "message"),
            ),
            log(
                message="/logo.png",
                metadata={
                    **without(VERCEL_STATIC, "timestamp", "projectName"),
                    "proxy": {"method": "GET"},
                },
            ),
        ],
    )
    for content_type, body in (
        (JSON, json.dumps([VERCEL, VERCEL_STATIC]).encode()),
        (NDJSON, lines(VERCEL, VERCEL_STATIC)),
    )
]
REQUESTS += [
    (
        "winston's Http transport",
        JSON,
        b'{"level":"info","message":"User logged in","service":"shop","user":7}',
        [log(timestamp=ARRIVAL, metadata={"user": 7})],
    ),
    ("pino, pino-http-send", JSON, b'{"logs":[%s,%s]}' % (PINO, PINO_ERROR), PINO_LOGS),
    ("pino, pino-http-send", "", PINO + b"\n" + PINO_ERROR, PINO_LOGS),
    ("pino, pino-http-send", NDJSON, PINO + b"\n" + PINO_ERROR + b"\n", PINO_LOGS),
    (
        "Go's slog",
        NDJSON,
        b'{"time":"2024-05-31T17:30:45.123+02:00","level":"INFO","source":{"line":7},'
        b'"msg":"User logged in","user":7}\n',
        [log(level="INFO", metadata={"source": {"line": 7}, "user": 7})],
    ),
    (
        "Go's zerolog",
        FORM,
        b'{"level":"error","error":"boom","time":1717169445}\n'
        b'{"user":7,"time":"2024-05-31T15:30:45Z","message":"User logged in"}\n',
        [
            log(level="error", message="boom", timestamp="2024-05-31T15:30:45Z"),
            log(timestamp="2024-05-31T15:30:45Z", metadata={"user": 7}),
        ],
    ),
    (
        "Serilog, compact",
        NDJSON,
        b'{"@t":"2024-05-31T15:30:45.1230000Z","@mt":"User {User} logged in","User":7}\r\n'
        b'{"@t":"2024-05-31T15:30:45.1230000Z","@m":"boom","@i":"9f1b","@l":"Error","@x":"at x"}',
        [
            log(
                timestamp="2024-05-31T15:30:45.1230000Z",
                level="Information",
                message="User {User} logged in",
                metadata={"User": 7},
            ),
            log(
                timestamp="2024-05-31T15:30:45.1230000Z",
                level="Error",
                message="boom",
                metadata={"@i": "9f1b", "@x": "at x"},
            ),
        ],
    ),
    (
        "logstash-logback-encoder",
        NDJSON,
        b'{"@timestamp":"2024-05-31T17:30:45.123+02:00","@version":"1","message":"User logged in",'
        b'"logger_name":"com.acme.Shop","thread_name":"main","level":"INFO","level_value":20000}\n',
        [
            log(
                level="INFO",
                metadata={
                    "@version": "1",
                    "logger_name": "com.acme.Shop",
                    "thread_name": "main",
                    "level_value": 20000,
                },
            )
        ],
    ),
    (
        "Fluent Bit, `json` and `json_lines`",
        JSON,
        json.dumps(FLUENT_BIT).encode(),
        FLUENT_BIT_LOGS,
    ),
    ("Fluent Bit, `json` and `json_lines`", NDJSON, lines(*FLUENT_BIT), FLUENT_BIT_LOGS),
    ("Vector's `http` sink", JSON, json.dumps(VECTOR).encode(), VECTOR_LOGS),
    ("Vector's `http` sink", NDJSON, lines(*VECTOR), VECTOR_LOGS),
    (
        "GitHub webhook",
        JSON,
        json.dumps(GITHUB).encode(),
        [
            log(
                timestamp=ARRIVAL,
                service="github",
                message="opened",
                metadata=without(GITHUB, "action"),
            )
        ],
    ),
    (
        "Cloudflare Logpush",
        "text/plain",
        gzip.compress(lines(CLOUDFLARE, CLOUDFLARE)),
        2
        * [
            log(
                timestamp="2024-05-31T15:30:45.123000000Z",
                service="shop.example",
                message="/checkout",
                metadata={
                    "ClientIP": "1.1.1.1",
                    "ClientRequestMethod": "GET",
                    "EdgeResponseStatus": 200,
                },
            )
        ],
    ),
    (
        "journalctl",
        FORM,
        b'{"__REALTIME_TIMESTAMP":"1717169445123456","PRIORITY":"3","MESSAGE":"Failed password",'
        b'"SYSLOG_IDENTIFIER":"sshd","_SYSTEMD_UNIT":"ssh.service","_PID":"7"}\n'
        b'{"__REALTIME_TIMESTAMP":"1717169445123456","MESSAGE":[66,195,40],"_COMM":"tool"}\n',
        [
            log(
                timestamp="2024-05-31T15:30:45.123456Z",
                level="3",
                service="sshd",
                message="Failed password",
                metadata={"_SYSTEMD_UNIT": "ssh.service", "_PID": "7"},
            ),
            log(
                timestamp="2024-05-31T15:30:45.123456Z",
                service="tool",
                message="[66,195,40]",
            ),
        ],
    ),
    (
        "nginx's access log",
        NDJSON,
        b'{"time": "1717169445.123", "request": "GET / HTTP/1.1", "status": 200, "bytes": 612, '
        b'"seconds": 0.001, "ip": "1.1.1.1"}\n',
        [
            log(
                service="nginx",
                message="GET / HTTP/1.1",
                metadata={"status": 200, "bytes": 612, "seconds": 0.001, "ip": "1.1.1.1"},
            )
        ],
    ),
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("any_json")) as running:
        yield running


def post(service: Service, query: str, content_type: str, body: bytes) -> Any:
    headers = {"Authorization": TOKEN}
    if content_type:
        headers["Content-Type"] = content_type
    if body.startswith(b"\x1f\x8b"):
        headers["Content-Encoding"] = "gzip"
    answer = service.request("POST", f"/v1/drain?{query}", body, headers)
    return answer.status, answer.body


@pytest.mark.parametrize(
    ("sender", "content_type", "body", "expected"),
    [pytest.param(*request, id=f"{request[0]} {request[1]}") for request in REQUESTS],
)
def test_request_of_a_sender_is_stored(
    service: Service, sender: str, content_type: str, body: bytes, expected: list[dict[str, Any]]
) -> None:
    """Every log is stored as one log, with the document's query for the sender."""
    count = len(service.logs())
    assert (200, {"status": "accepted"}) == post(service, QUERIES[sender], content_type, body)
    stored = service.logs()[count:]
    for line, wanted in zip(stored, expected, strict=True):
        if wanted["timestamp"] == ARRIVAL:
            line["timestamp"] = ARRIVAL
        assert wanted == line


def test_every_sender_of_the_document_is_tested() -> None:
    assert {request[0] for request in REQUESTS} == set(QUERIES)


@pytest.mark.parametrize("sender", QUERIES)
def test_nothing_that_a_sender_sends_is_lost(service: Service, sender: str) -> None:
    """The queries keep logs without any of the fields, such as Cloudflare's first upload."""
    count = len(service.logs())
    body = b'{"content": 5}\nplain text'
    status, answer = post(service, QUERIES[sender], NDJSON, body)
    assert (200, 2) == (status, answer["kept"])
    assert ['{"content": 5}', "plain text"] == [line["message"] for line in service.logs()[count:]]


def test_retry_of_the_same_bytes_is_stored_once(service: Service) -> None:
    count = len(service.logs())
    query = QUERIES["Fluent Bit, `json` and `json_lines`"] + "&once=body"
    for body in (lines(*FLUENT_BIT), gzip.compress(lines(*FLUENT_BIT))):
        assert (200, {"status": "accepted"}) == post(service, query, NDJSON, body)
    assert count + len(FLUENT_BIT) == len(service.logs())
