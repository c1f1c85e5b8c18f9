"""The service's own log reports clients and their errors, in few lines."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.service import TOKEN, Service, make_batch, make_head, make_log, wait_for

NAME = hashlib.sha256(TOKEN.encode()).hexdigest()[:8]

#: Requests of one kind that would each leave a line, were they not rate-limited; few enough for
#: the minute of a line.
MANY = 50


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """Return a service with one worker, so that each kind of rejection has one line."""
    with Service(tmp_path) as service:
        yield service
        assert "Traceback" not in service.log()


def lines(service: Service) -> list[str]:
    """Return the log lines about rejections, without time and process."""
    found = (re.search(r"WARNING \[[0-9]+\] (rejected .+)", line) for line in log_of(service))
    return [match[1] for match in found if match]


def log_of(service: Service) -> list[str]:
    return service.log().split("\n")


def test_each_kind_of_rejection_leaves_one_line(service: Service) -> None:
    """It has code, peer, token's name and first error; the stop logs the counts."""
    for _ in range(3):
        service.drain({"logs": [make_log(), make_log(level=7)]})
        service.drain(b"{")
        service.drain(b"{}", {"Authorization": "hunter2"})
        service.request("POST", "/v1/drian", b"{}")
    assert [
        f"rejected invalid_batch from 127.0.0.1, token {NAME}: 1 of 2 logs are invalid; nothing "
        "was stored; logs.1.level: Not a valid string.",
        "rejected unauthorized from 127.0.0.1, an unknown token: "
        "The token in the Authorization header is not known.",
        "rejected not_found from 127.0.0.1, no token: This path does not exist; "
        "logs go to POST /v1/drain, those of OpenTelemetry to POST /v1/logs.",
    ] == [line for line in lines(service) if "invalid_json" not in line]
    assert 0 == service.stop()
    ended = lines(service)[4:]
    assert 4 == len(ended)
    assert all(": 2 more, the last: " in line for line in ended)


def test_a_flood_leaves_few_lines(service: Service) -> None:
    """The log does not grow with the number of rejections, malformed or not."""
    for _ in range(MANY):
        assert 401 == service.drain(b"{}", {"Authorization": "hunter2"}).status
        assert 400 == service.exchange(b"GET / HTTP/1.1\r\nA\tb: c\r\n\r\n").status
    assert 2 == len(lines(service))
    assert len(log_of(service)) < 10
    assert 0 == service.stop()
    assert 2 == service.log().count(f": {MANY - 1} more, the last: ")


def test_a_client_cannot_write_lines_of_the_log(service: Service) -> None:
    """Its text is escaped and shortened, and never starts a line."""
    name = "x\n2026-01-01T00:00:00Z ERROR [1] forged\x1b[2J\u202e\0"
    assert 400 == service.drain({"logs": [make_log(**{name: 1})]}).status
    assert 400 == service.drain({"logs": [make_log(**{"y" * 100_000: 1})]}).status
    assert 404 == service.request("POST", "/\x1b[2J%0aforged".replace("\x1b", "%1b")).status
    forged = {"X-Forwarded-For": "\x1b[2J\u00e4" * 10}
    service.drain(b"{", forged)
    assert not [line for line in log_of(service) if line.startswith("2026-01-01")]
    assert all(line.isprintable() and len(line) < 1000 for line in log_of(service))
    assert r"x\n2026-01-01T00:00:00Z ERROR [1] forged\x1b[2J\u202e\x00" in service.log()


def test_a_batch_for_an_unknown_path_is_counted(service: Service) -> None:
    """Logs sent to another path are lost to their sender: the metrics show them."""
    for method, path in (("POST", "/v1/drian"), ("POST", "/"), ("PUT", "/v1/drain")):
        assert service.request(method, path, b"{}").status in (404, 405)
    for path in ("/favicon.ico", "/v1/drain"):
        assert service.request("GET", path).status in (404, 405)
    assert 200 == service.drain(make_batch("x")).status
    wait_for(lambda: "received_batches_total 4.0" in metrics(service))
    assert 'astralog_rejected_batches_total{code="not_found"} 1.0' in metrics(service)
    assert 'astralog_rejected_batches_total{code="method_not_allowed"} 2.0' in metrics(service)
    assert 2 == len(lines(service))


def metrics(service: Service) -> str:
    return service.request("GET", "/metrics").raw.decode()


#: Heads with what their rejection must say.
BAD_HEADERS = {
    make_head("Content-Length: many"): "the header Content-Length is malformed",
    make_head("Transfer-Encoding: gzip"): "the header Transfer-Encoding ",
    make_head("Host: other"): "the header Host is malformed, or is repeated",
    make_head("Host : x"): "the header name Host is malformed, perhaps by a blank after it",
    make_head("X Y: z"): "a header name is malformed, perhaps by a blank after it",
    make_head("X-Long: " + "x" * 9000): "more than 100 headers, or one is longer than 8190 bytes",
    b"GET / HTTP/1.1\r\nAuthorization: x\n\r\n\r\n": "perhaps by a line end in the token",
}


def test_a_bad_header_is_named(service: Service) -> None:
    """The client and the operator learn which header is wrong."""
    messages = []
    for head, words in BAD_HEADERS.items():
        answer = service.exchange(head, half_close=True)
        assert (400, "bad_request") == (answer.status, answer.body["code"])
        assert words in answer.body["message"]
        messages.append(answer.body["message"])
    assert [f"rejected bad_request from 127.0.0.1, no token read: {messages[0]}"] == lines(service)


def test_only_a_trusted_proxy_names_the_client(tmp_path: Path) -> None:
    """With the setting, the line has the address that the proxy saw, and no forged one."""
    headers = {"X-Forwarded-For": "203.0.113.9, 198.51.100.3"}
    for proxies, expected in (("127.0.0.0/8", "198.51.100.3"), ("10.0.0.1", "127.0.0.1")):
        directory = tmp_path / expected
        directory.mkdir()
        with Service(directory, trusted_proxies=proxies) as service:
            assert 400 == service.drain(b"{", headers).status
            (line,) = lines(service)
            assert f"rejected invalid_json from {expected}, token " in line
