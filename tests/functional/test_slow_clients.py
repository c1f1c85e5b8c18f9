"""Slow, silent, many or vanished clients do not disturb others."""

import contextlib
import json
import select
import socket
import struct
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.support.connections import many_open_files
from tests.support.metrics import read_samples
from tests.support.service import (
    TIMEOUT_SECONDS,
    Service,
    make_batch,
    make_head,
    read_answer,
    wait_for,
)

#: Connections that are idle while others are served.
IDLE_CONNECTIONS = 1000

#: Files that the test process needs for them, and some to spare.
OPEN_FILES = IDLE_CONNECTIONS + 500


@pytest.fixture
def many_files() -> Iterator[None]:
    """Allow this process enough open files."""
    with many_open_files(OPEN_FILES):
        yield


def vanish(connection: socket.socket) -> None:
    """Reset a connection, as the end of a process or a host does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def is_ready(service: Service) -> bool:
    return service.request("GET", "/ready").status == 200


def drain_at_once(service: Service) -> int:
    """Return the status of a batch whose body cannot be late, however slow this process is."""
    body = json.dumps(make_batch("meanwhile")).encode()
    return service.exchange(make_head(f"Content-Length: {len(body)}") + body).status


@pytest.mark.parametrize(
    "start",
    [
        make_head("Content-Length: 100"),
        make_head("Content-Length: 100") + b'{"logs":[',
        make_head("Transfer-Encoding: chunked"),
        make_head("Transfer-Encoding: chunked") + b"100\r\nabc",
        make_head("Content-Length: 100", "Content-Encoding: gzip") + b"\x1f\x8b",
    ],
)
def test_a_stalled_body_is_rejected_in_time(service: Service, start: bytes) -> None:
    """A client that stops within its body gets 408, and others are served meanwhile."""
    with service.connect() as connection:
        connection.sendall(start)
        assert 200 == drain_at_once(service)
        answer = read_answer(connection)
    assert (408, "body_timeout") == (answer.status, answer.body["code"])
    assert "1 seconds" in answer.body["message"]


def test_a_trickling_body_is_rejected_in_time(service: Service) -> None:
    """The timeout is for the whole body, so single bytes do not extend it."""
    with service.connect() as connection:
        connection.sendall(make_head("Content-Length: 1000"))
        connection.settimeout(0.1)
        for _ in range(int(TIMEOUT_SECONDS / 0.1)):
            with contextlib.suppress(OSError):  # the response may have ended the connection
                connection.sendall(b" ")
            with contextlib.suppress(TimeoutError):
                assert b"HTTP/1.1 408" == connection.recv(12)
                break
        else:
            pytest.fail("the service read on")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Return one service that allows a body one second."""
    with Service(tmp_path_factory.mktemp("slow"), body_timeout_seconds=1) as service:
        yield service
        assert is_ready(service)
        assert "Traceback" not in service.log()


def test_slow_heads_do_not_block_others(service: Service) -> None:
    """Clients within a head use only their connection."""
    body = json.dumps(make_batch("at last")).encode()
    request = make_head(f"Content-Length: {len(body)}") + body
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(service.connect()) for _ in range(100)]
        for connection in slow:
            connection.sendall(request[:30])
        for _ in range(20):
            assert 200 == drain_at_once(service)
        for connection in slow:
            connection.sendall(request[30:])
        assert [200] * 100 == [read_answer(connection).status for connection in slow]


@pytest.mark.usefixtures("many_files")
@pytest.mark.parametrize("start", [b"", make_head()[:40], make_head("Content-Length: 9") + b"{"])
def test_a_thousand_idle_connections_do_not_block_others(tmp_path: Path, start: bytes) -> None:
    """Silent clients, and those with half a head or body, leave room for others."""
    with (
        Service(tmp_path, body_timeout_seconds=60) as service,
        contextlib.ExitStack() as stack,
    ):
        for _ in range(IDLE_CONNECTIONS):
            stack.enter_context(service.connect()).sendall(start)
        for number in range(100):
            assert 200 == service.drain(make_batch(str(number))).status
            assert is_ready(service)
        assert 100 == len(service.logs())
        assert "Traceback" not in service.log()


# What a client reserves comes back

BODY_BYTES = 400_000
SMALL_QUEUE = {
    "max_body_bytes": BODY_BYTES,
    "queue_bytes": 2 * BODY_BYTES + 10_000,  # two large bodies and what goes with them
    "body_timeout_seconds": 60,
}
LARGE_BODY = json.dumps(make_batch("x" * (BODY_BYTES - 1000))).encode().ljust(BODY_BYTES)


def stall(service: Service) -> socket.socket:
    """Send a large body except its last byte, so that its bytes are reserved, and leave it."""
    connection = service.connect()
    connection.sendall(make_head(f"Content-Length: {BODY_BYTES}") + LARGE_BODY[:-1])
    return connection


def is_rejected(service: Service) -> bool:
    return service.drain(LARGE_BODY).status == 503


def test_a_full_queue_rejects_until_there_is_room(tmp_path: Path) -> None:
    """Stalled uploads fill the queue: others get 503 at once, and 200 when the uploads end."""
    with Service(tmp_path, **SMALL_QUEUE) as service:
        stalled = [stall(service) for _ in range(2)]
        wait_for(lambda: reserved_bytes(service) >= 2 * BODY_BYTES)  # a batch would take a part
        answers = [service.drain(LARGE_BODY) for _ in range(5)]
        assert {(503, "queue_full")} == {(one.status, one.body["code"]) for one in answers}
        assert all(int(one.headers["Retry-After"]) > 0 for one in answers)
        ready = service.request("GET", "/ready")
        assert (503, {"status": "unavailable", "reason": "queue_full"}) == (
            ready.status,
            ready.body,
        )
        assert 200 == service.request("GET", "/health").status
        before = service.content()
        for connection in stalled:
            vanish(connection)
        wait_for(lambda: is_ready(service))
        assert 200 == service.drain(LARGE_BODY).status
        assert len(before) < len(service.content())
        assert 1 == service.log().count("queue full")
        assert 1 == service.log().count("queue has room again")


@pytest.mark.parametrize(("uploads", "size"), [(2, 300_000), (3, 300_000), (10, 100_000)])
def test_chunked_bodies_count_as_they_grow(tmp_path: Path, uploads: int, size: int) -> None:
    """A body of unknown length reserves its received bytes, so that memory stays bounded."""
    chunk = b"%x\r\n" % size + b" " * size + b"\r\n"
    with Service(tmp_path, **SMALL_QUEUE) as service, contextlib.ExitStack() as stack:
        assert 200 == service.drain(LARGE_BODY).status
        reserved = 0
        for _ in range(uploads):
            connection = stack.enter_context(service.connect())
            connection.sendall(make_head("Transfer-Encoding: chunked") + chunk)
            wait_for(partial(is_counted, service, connection, reserved + size))
            reserved = reserved_bytes(service)
        assert is_rejected(service)


def is_counted(service: Service, connection: socket.socket, size: int) -> bool:
    """Return whether so many bytes are reserved, or the upload on the connection is rejected."""
    is_answered = bool(select.select([connection], [], [], 0)[0])
    return is_answered or reserved_bytes(service) >= size


def reserved_bytes(service: Service) -> int:
    return int(read_samples(service.request("GET", "/metrics").raw.decode())["backlog_bytes"])


@pytest.mark.parametrize("sent", [1, BODY_BYTES // 2, BODY_BYTES - 1, BODY_BYTES])
def test_clients_that_vanish_leave_no_reservation(tmp_path: Path, sent: int) -> None:
    """Within their body or before the response: the whole queue is free again."""
    with Service(tmp_path, **SMALL_QUEUE) as service:
        for _ in range(20):
            connection = service.connect()
            connection.sendall(make_head(f"Content-Length: {BODY_BYTES}") + LARGE_BODY[:sent])
            vanish(connection)
        wait_for(lambda: not is_rejected(service))
        wait_for(lambda: reserved_bytes(service) == 0)  # of the last ones that vanished, too
        stalled = stall(service)  # half of the queue, so that a leak of the other half shows
        for _ in range(5):
            assert 200 == service.drain(LARGE_BODY).status
        stalled.close()
        assert service.logs()
        assert is_ready(service)
        assert "Traceback" not in service.log()


def test_rejections_leave_no_reservation(tmp_path: Path) -> None:
    """After any rejection the whole queue is free again."""
    with Service(tmp_path, **SMALL_QUEUE) as service:
        for _ in range(20):
            assert 400 == service.drain(b" " * BODY_BYTES).status
            assert 400 == service.drain(b'{"logs":[1]}'.ljust(BODY_BYTES)).status
            assert 413 == service.drain(b" " * (BODY_BYTES + 1)).status
            assert 400 == service.drain(LARGE_BODY, {"Content-Encoding": "gzip"}).status
            assert 413 == service.drain(iter([b" " * BODY_BYTES, b" "])).status
        stalled = stall(service)
        assert 200 == service.drain(LARGE_BODY).status
        stalled.close()


def test_clients_that_vanish_do_not_stop_the_service(tmp_path: Path) -> None:
    """Connections reset at any point of a request are not logged."""
    request = make_head(f"Content-Length: {len(LARGE_BODY)}") + LARGE_BODY
    with Service(tmp_path) as service:
        assert is_ready(service)
        pid = service.worker_pids()
        for end in (0, 1, 30, 100, len(request) // 2, len(request)):
            for _ in range(10):
                connection = service.connect()
                connection.sendall(request[:end])
                vanish(connection)
        assert 200 == service.drain(make_batch("after")).status
        assert "after" in [log["message"] for log in service.logs()]
        assert pid == service.worker_pids()
        time.sleep(0.2)  # for what is logged late
        assert "Traceback" not in service.log()
