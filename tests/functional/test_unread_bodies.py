"""A body that is not needed is discarded within limits, for any request and response."""

import contextlib
import itertools
import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.support.background import meanwhile
from tests.support.processes import MIB, start_stopwatch
from tests.support.service import (
    TIMEOUT_SECONDS,
    TOKEN,
    Service,
    make_batch,
    read_answer,
    wait_for,
)

pytestmark = pytest.mark.alone

#: More than the service reads of a body that nobody wants, and what fits into the buffers between.
ENDLESS_MIB = 100

#: A chunk of a MiB, and one of a byte with the longest extension.
CHUNK = b"100000\r\n" + bytes(MIB) + b"\r\n"

LOCAL = "Host: localhost\r\n"
KNOWN = f"Authorization: {TOKEN}\r\n"

#: Requests that are answered without a look at their body, each with its status.
REQUESTS = [
    ("GET /health", LOCAL, 200),
    ("GET /ready", LOCAL, 200),
    ("GET /metrics", LOCAL, 200),
    ("GET /openapi.json", LOCAL, 200),
    ("GET /docs", LOCAL, 200),
    ("GET /docs/swagger-ui.css", LOCAL, 200),
    ("GET /docs/docs.css", LOCAL + "If-None-Match: *\r\n", 304),
    ("GET /", LOCAL + "Accept: text/html\r\n", 302),
    ("GET /nowhere", LOCAL, 404),
    ("DELETE /health", LOCAL, 405),
    ("POST /v1/drain", LOCAL, 401),
    ("POST /v1/drain?dry_run=perhaps", LOCAL + KNOWN, 400),
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for all cases; it must still be in order after the last one."""
    with Service(tmp_path_factory.mktemp("unread")) as service:
        workers = service.worker_pids()
        yield service
        assert workers == service.worker_pids()
        assert "Traceback" not in service.log()
        assert 0 == service.stop()


def head(request: str, *fields: str) -> bytes:
    return "".join([f"{request} HTTP/1.1\r\n", *fields, "\r\n"]).encode()


@contextlib.contextmanager
def others_are_served(service: Service) -> Iterator[None]:
    """Check that another client waits no more than a second of the worker's time."""
    (worker,) = service.worker_pids()
    waits: list[float] = []

    def ask() -> None:
        elapsed = start_stopwatch(worker)
        service.request("GET", "/health")
        waits.append(elapsed())

    with meanwhile(ask, 0.02):
        yield
    assert max(waits) < 1


def send_without_end(connection: socket.socket, piece: bytes, mib: int = ENDLESS_MIB) -> None:
    """Send until the service closes the connection, which it must do within some MiB."""
    try:
        for _ in range(mib * MIB // len(piece)):
            connection.sendall(piece)
    except (ConnectionResetError, BrokenPipeError):
        return
    pytest.fail(f"the service read more than {mib} MiB")


@pytest.mark.parametrize(
    ("request_line", "fields", "status"), REQUESTS, ids=lambda value: str(value)[:30]
)
@pytest.mark.parametrize("framing", ["Content-Length: 99999999999", "Transfer-Encoding: chunked"])
def test_endless_body_ends_its_connection(
    service: Service, request_line: str, fields: str, status: int, framing: str
) -> None:
    """Its client has the response, and is disconnected; others are served meanwhile."""
    with service.connect() as connection, others_are_served(service):
        connection.sendall(head(request_line, fields, f"{framing}\r\n"))
        assert status == read_answer(connection).status
        send_without_end(connection, CHUNK if "chunked" in framing else bytes(MIB))


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_endless_body_after_a_response_without_a_body(service: Service, method: str) -> None:
    """The method makes no difference."""
    with service.connect() as connection:
        connection.sendall(head(f"{method} /health", LOCAL, "Content-Length: 99999999999\r\n"))
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        send_without_end(connection, bytes(MIB))


@pytest.mark.parametrize(
    ("request_line", "fields", "status"), REQUESTS, ids=lambda value: str(value)[:30]
)
@pytest.mark.parametrize("size", [1, 100_000, 5 * MIB])
def test_a_body_within_bounds_is_skipped(
    service: Service, request_line: str, fields: str, status: int, size: int
) -> None:
    """The bytes after it are the next request, whether or not they arrived together."""
    bodies = {
        f"Content-Length: {size}": bytes(size),
        "Transfer-Encoding: chunked": b"%x\r\n%b\r\n0\r\nX-Trailer: 1\r\n\r\n"
        % (size, bytes(size)),
    }
    with service.connect() as connection:
        for framing, body in bodies.items():
            connection.sendall(head(request_line, fields, f"{framing}\r\n") + body)
            assert status == read_answer(connection).status
        connection.sendall(head("GET /health", LOCAL))
        assert 200 == read_answer(connection).status


def test_trickling_body_ends_its_connection(service: Service) -> None:
    """Single bytes keep a connection only for some seconds, after any response."""
    with contextlib.ExitStack() as stack:
        trickling = []
        for request_line, fields, status in REQUESTS:
            connection = stack.enter_context(service.connect())
            connection.sendall(head(request_line, fields, "Content-Length: 1000000\r\n"))
            assert status == read_answer(connection).status
            connection.settimeout(0.01)
            trickling.append(connection)
        end = time.monotonic() + TIMEOUT_SECONDS
        while trickling:
            assert time.monotonic() < end, "the service read on"
            trickling = [connection for connection in trickling if not is_closed(connection)]
            time.sleep(0.1)


def is_closed(connection: socket.socket) -> bool:
    """Send another byte, and return whether the service has closed the connection."""
    try:
        connection.sendall(b" ")
        return not connection.recv(1)
    except TimeoutError:
        return False
    except OSError:
        return True


def test_a_body_that_was_not_asked_for_ends_its_connection(service: Service) -> None:
    """A client that waits for 100 Continue does not receive it."""
    with service.connect() as connection:
        expecting = "Expect: 100-continue\r\n"
        connection.sendall(head("GET /health", LOCAL, expecting, "Content-Length: 5\r\n"))
        answer = read_answer(connection)
        assert (200, "close") == (answer.status, answer.headers["Connection"])
    with service.connect() as connection:
        for _ in range(2):  # there is no body to ask for
            connection.sendall(head("GET /health", LOCAL, expecting))
            assert 200 == read_answer(connection).status


@pytest.mark.parametrize("size", [1, 200_000])
def test_requests_behind_unread_bodies_are_answered_in_order(service: Service, size: int) -> None:
    """A client that sends many requests without waiting gets every response."""
    pieces = [
        head("GET /health", LOCAL, f"Content-Length: {size}\r\n") + bytes(size),
        head("POST /v1/drain", LOCAL, f"Content-Length: {size}\r\n") + bytes(size),
    ]
    with service.connect() as connection:
        sender = threading.Thread(target=connection.sendall, args=(b"".join(pieces * 20),))
        sender.start()
        received = b""
        while received.count(b"HTTP/1.1 ") < 40:
            received += connection.recv(65536)
        sender.join()
    statuses = [int(part[:3]) for part in received.split(b"HTTP/1.1 ")[1:]]
    assert [200, 401] * 20 == statuses


# Chunks that are more work than they look


def chunks_with(extension: bytes) -> bytes:
    return b"1%b\r\n \r\n" % extension


@pytest.mark.parametrize("token", [TOKEN, "wrong"])
@pytest.mark.parametrize(
    "chunk",
    [chunks_with(b""), chunks_with(b";" + b"x" * 4000), chunks_with(b';x="' + b"y" * 60 + b'"')],
)
def test_chunks_of_more_framing_than_data_delay_no_other(
    service: Service, token: str, chunk: bytes
) -> None:
    """Extensions are counted, and others are served meanwhile."""
    count = min(64 * MIB // len(chunk), 1_000_000)
    with service.connect() as connection, others_are_served(service):
        fields = (f"Authorization: {token}\r\n", "Transfer-Encoding: chunked\r\n")
        connection.sendall(head("POST /v1/drain", LOCAL, *fields))
        with contextlib.suppress(OSError):
            for _ in range(count // 1000 + 1):
                connection.sendall(chunk * 1000)
            connection.sendall(b"0\r\n\r\n")
        answer = read_answer(connection)
    expected = (401, "unauthorized") if token == "wrong" else (400, "bad_request")
    assert expected == (answer.status, answer.body["code"])


def test_chunks_of_one_line_each_are_accepted(service: Service) -> None:
    """One log per chunk, with an extension and trailers, is within the limit."""
    log = make_batch("x" * 50)["logs"][0]
    line = json.dumps(log).encode() + b"\n"
    pieces = [b"%x;a=b\r\n%b\r\n" % (len(line), line)] * 30_000
    fields = (KNOWN, "Content-Type: application/x-ndjson\r\n", "Transfer-Encoding: chunked\r\n")
    trailers = b"0\r\nX-Checksum: 1\r\nX-Other: 2\r\n\r\n"
    before = service.content().count(b"\n")
    answer = service.exchange(
        head("POST /v1/drain", LOCAL, *fields) + b"".join(itertools.chain(pieces, [trailers]))
    )
    assert 200 == answer.status
    assert before + 30_000 == service.content().count(b"\n")


def test_trailers_without_end_are_rejected(service: Service) -> None:
    """Fields after the last chunk are limited as those of a head are."""
    with service.connect() as connection:
        fields = (KNOWN, "Transfer-Encoding: chunked\r\n")
        connection.sendall(head("POST /v1/drain", LOCAL, *fields) + b"1\r\n{\r\n0\r\n")
        with contextlib.suppress(OSError):
            for _ in range(1000):
                connection.sendall(b"X-Trailer: " + b"x" * 3000 + b"\r\n")
        assert 400 == read_answer(connection).status
    wait_for(lambda: service.request("GET", "/ready").status == 200)
