"""Connections that hold memory or places without use are closed in favour of others."""

import contextlib
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.certificate import can_make_certificate, make_certificate
from tests.support.connections import is_closed, many_open_files
from tests.support.processes import MIB, resident_bytes
from tests.support.service import (
    TIMEOUT_SECONDS,
    Service,
    make_batch,
    make_head,
    read_answer,
    wait_for,
)

#: What the connections of a worker may hold, and what is measured beside it.
HELD_BYTES = 64 * MIB
SPARE_BYTES = 16 * MIB

#: The most connections of a worker, and files that the test process needs for more.
WORKER_CONNECTIONS = 4096
OPEN_FILES = 6000

#: The few connections of a worker that is easy to fill.
FEW = 20

GET = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


class SmallService(Service):
    """A service of one worker with few connections."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        super().__init__(directory, **settings)
        self._environ["GUNICORN_CMD_ARGS"] = f"--worker-connections {FEW}"


@pytest.fixture
def many_files() -> Iterator[None]:
    """Allow this process enough open files."""
    with many_open_files(OPEN_FILES):
        yield


def post(connection: socket.socket) -> int:
    """Send a batch over a connection, and return the status of the answer."""
    body = json.dumps(make_batch("x")).encode()
    connection.settimeout(TIMEOUT_SECONDS)
    connection.sendall(make_head(f"Content-Length: {len(body)}") + body)
    return read_answer(connection).status


@contextlib.contextmanager
def crowd() -> Iterator[list[socket.socket]]:
    """Close the connections in the list at the end."""
    connections: list[socket.socket] = []
    try:
        yield connections
    finally:
        for connection in connections:
            connection.close()


def long_head(size: int) -> bytes:
    """Return the start of a head of the given size, in fields of allowed length."""
    lines = b"".join(b"X-%d: %b\r\n" % (number, b"x" * 3000) for number in range(50))
    return (b"POST /v1/drain HTTP/1.1\r\nHost: x\r\n" + lines)[:size]


@pytest.mark.usefixtures("many_files")
@pytest.mark.parametrize(
    ("size", "count"),
    [(50, WORKER_CONNECTIONS + 500), (16_000, WORKER_CONNECTIONS + 500), (150_000, 1500)],
)
def test_unfinished_heads_are_bounded_in_all(tmp_path: Path, size: int, count: int) -> None:
    """More than a worker accepts, or may keep, hold no more than allowed; others are served."""
    with Service(tmp_path) as service, crowd() as connections:
        assert 200 == service.drain(make_batch("warm")).status
        (worker,) = service.worker_pids()
        before = resident_bytes(worker)
        head = long_head(size)
        for number in range(count):
            connections.append(service.connect())
            with contextlib.suppress(OSError):  # it was rejected meanwhile
                connections[-1].sendall(head)
            if number % 500 == 0:
                assert 200 == service.drain(make_batch(str(number))).status
        assert resident_bytes(worker) < before + HELD_BYTES + SPARE_BYTES
        assert 200 == service.drain(make_batch("after")).status
        assert "Traceback" not in service.log()


@pytest.mark.usefixtures("many_files")
@pytest.mark.skipif(not can_make_certificate(), reason="NOT TESTED: TLS; openssl is missing")
def test_unfinished_handshakes_are_bounded_in_all(tmp_path: Path) -> None:
    """TLS takes more memory, so fewer of them are kept."""
    certificate, key = make_certificate(tmp_path)
    context = ssl.create_default_context(cafile=str(certificate))
    with Service(tmp_path, tls_cert=certificate, tls_key=key) as service, crowd() as connections:
        with context.wrap_socket(service.connect(), server_hostname="localhost") as first:
            assert 200 == post(first)
        (worker,) = service.worker_pids()
        before = resident_bytes(worker)
        for _ in range(2000):
            connections.append(service.connect())
            with contextlib.suppress(OSError):
                connections[-1].sendall(hello(context))
        wait_for(lambda: resident_bytes(worker) < before + HELD_BYTES + SPARE_BYTES)
        with context.wrap_socket(service.connect(), server_hostname="localhost") as last:
            assert 200 == post(last)


def hello(context: ssl.SSLContext) -> bytes:
    """Return a client's first bytes."""
    out = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return out.read()


@pytest.mark.parametrize(
    "occupy",
    [
        lambda connection: None,
        lambda connection: connection.sendall(GET[:-2]),
        lambda connection: connection.sendall(GET),
        lambda connection: connection.sendall(make_head("Content-Length: 9", token="wrong")),
    ],
    ids=["silent", "half a head", "idle", "unread body"],
)
def test_full_worker_serves_new_clients(
    tmp_path: Path, occupy: Callable[[socket.socket], None]
) -> None:
    """The oldest connections without a token are closed; clients with one keep theirs."""
    with SmallService(tmp_path) as service, crowd() as connections:
        trusted = [service.connect() for _ in range(3)]
        connections.extend(trusted)
        for connection in trusted:
            assert 200 == post(connection)
        others = []
        for _ in range(2 * FEW):
            others.append(service.connect())
            occupy(others[-1])
        connections.extend(others)
        time.sleep(0.5)
        for number in range(5):
            assert 200 == service.drain(make_batch(str(number))).status
        assert [200] * 3 == [post(connection) for connection in trusted]
        wait_for(lambda: is_closed(others[0]))
        assert not is_closed(others[-1])
        assert service.log().count("too many connections") == 1


def test_idle_trusted_clients_are_closed_if_there_are_no_others(tmp_path: Path) -> None:
    """A new client is served, although clients with a token have all places."""
    with SmallService(tmp_path) as service, crowd() as connections:
        for _ in range(FEW):
            connections.append(service.connect())
            assert 200 == post(connections[-1])
        assert 200 == service.drain(make_batch("new")).status
        assert 1 == sum(map(is_closed, connections))
        assert is_closed(connections[0])


def test_clients_being_served_are_not_closed(tmp_path: Path) -> None:
    """If all places have unfinished bodies, a new client waits until one of them ends."""
    with SmallService(tmp_path, body_timeout_seconds=2) as service, crowd() as connections:
        start = time.monotonic()
        for _ in range(FEW):
            connections.append(service.connect())
            connections[-1].sendall(make_head("Content-Length: 11") + b'{"logs"')
        assert 200 == service.drain(make_batch("patient")).status
        assert time.monotonic() - start >= 2
        assert [408] * FEW == [read_answer(connection).status for connection in connections]
