"""Clients that do not read their responses are disconnected, and cost little until then."""

import contextlib
import json
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.certificate import can_make_certificate, make_certificate
from tests.support.processes import MIB, open_files, resident_bytes
from tests.support.service import (
    TOKEN,
    Service,
    make_batch,
    make_head,
    make_log,
    read_answer,
    wait_for,
)

#: More than the 30 s after which a client is let go that takes nothing, on a busy machine.
LET_GO_SECONDS = 100

CONNECTIONS = 10

#: More than fits into the buffers between the service and a client that reads nothing.
PIPELINED = 30


def head(request: str, *fields: str) -> bytes:
    lines = [f"{request} HTTP/1.1", "Host: localhost", f"Authorization: {TOKEN}", *fields]
    return "\r\n".join([*lines, "", ""]).encode()


BUNDLE = head("GET /docs/swagger-ui-bundle.js") * PIPELINED


def make_dry_run() -> bytes:
    """Return a dry run whose response is as large as its body."""
    body = json.dumps({"logs": [make_log(message="x" * 900_000)] * 9}).encode()
    return head("POST /v1/drain?dry_run=true", f"Content-Length: {len(body)}") + body


def connect(service: Service, context: ssl.SSLContext | None) -> socket.socket:
    """Return a connection with a small receive buffer."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(30)
    connection.connect(service.address)
    return context.wrap_socket(connection, server_hostname="localhost") if context else connection


def take_a_byte(connection: socket.socket) -> None:
    connection.settimeout(0.01)
    with contextlib.suppress(OSError):
        connection.recv(1)


def take_nothing(connection: socket.socket) -> None:
    pass


@pytest.fixture(params=["plain", "TLS"])
def start(request: pytest.FixtureRequest) -> Any:
    """Return a function that starts a service, and the context for connecting to it."""
    if request.param == "TLS" and not can_make_certificate():
        pytest.skip("NOT TESTED: slow readers over TLS; openssl is not installed")

    @contextlib.contextmanager
    def started(directory: Path, **settings: Any) -> Iterator[tuple[Service, Any]]:
        context = None
        if request.param == "TLS":
            certificate, key = make_certificate(directory)
            settings |= {"tls_cert": certificate, "tls_key": key}
            context = ssl.create_default_context(cafile=str(certificate))
        with Service(directory, **settings) as service:
            with contextlib.closing(connect(service, context)) as connection:
                connection.sendall(make_head("Content-Length: 11") + b'{"logs":[]}')
                assert 200 == read_answer(connection).status  # the worker has started
            yield service, context

    return started


def test_client_that_does_not_read_is_disconnected(tmp_path: Path, start: Any) -> None:
    """Whether it reads nothing or one byte per second."""
    with start(tmp_path) as (service, context), contextlib.ExitStack() as stack:
        (worker,) = service.worker_pids()
        before = open_files(worker)
        connections = [
            stack.enter_context(contextlib.closing(connect(service, context)))
            for _ in range(CONNECTIONS)
        ]
        for connection in connections:
            connection.sendall(BUNDLE)
        wait_for(lambda: open_files(worker) >= before + CONNECTIONS - 1)  # one may be gone
        end = time.monotonic() + LET_GO_SECONDS
        while open_files(worker) > before + CONNECTIONS // 4:
            assert time.monotonic() < end, "the service holds clients that take nothing"
            for number, connection in enumerate(connections):
                (take_nothing, take_a_byte)[number % 2](connection)
            time.sleep(1)
        assert "Traceback" not in service.log()
        assert 0 == service.stop()


def test_slow_reader_gets_whole_responses(tmp_path: Path, start: Any) -> None:
    """Some kilobytes per second are enough."""
    with start(tmp_path) as (service, context), connect(service, context) as connection:
        connection.sendall(head("GET /docs/swagger-ui-bundle.js", "Connection: close"))
        received = b""
        while data := connection.recv(20_000):
            received += data
            time.sleep(0.02)
    _, _, body = received.partition(b"\r\n\r\n")
    assert len(body) > MIB
    assert f"Content-Length: {len(body)}".encode() in received


def test_unread_responses_do_not_fill_the_memory(tmp_path: Path) -> None:
    """Their sum is bounded: the oldest are dropped for new ones."""
    with Service(tmp_path) as service, contextlib.ExitStack() as stack:
        request = make_dry_run()
        service.exchange(request)
        (worker,) = service.worker_pids()
        before = resident_bytes(worker)
        for _ in range(40):
            connection = stack.enter_context(connect(service, None))
            with contextlib.suppress(OSError):
                connection.sendall(request)
        assert 200 == service.drain(make_batch("meanwhile")).status
        # Bodies and their lines, 64 MiB each, as much of answers, and freed heap.
        assert resident_bytes(worker) < before + 256 * MIB
        wait_for(lambda: service.exchange(request).status == 200)


def test_unread_rejections_delay_no_other(tmp_path: Path) -> None:
    """Small unread responses fill a connection, and delay no other connection."""
    with Service(tmp_path) as service, connect(service, None) as connection:
        connection.settimeout(1)
        with contextlib.suppress(TimeoutError):
            for _ in range(100_000):
                connection.sendall(make_head("Content-Length: 0", token="wrong") * 10)
        wait_for(lambda: service.drain(make_batch("meanwhile")).status == 200)
        with service.connect() as other:
            other.sendall(head("GET /health"))
            assert 200 == read_answer(other).status
