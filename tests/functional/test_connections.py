"""Silent or endless connections end within their limits."""

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.connections import is_closed
from tests.support.processes import MIB
from tests.support.service import (
    TIMEOUT_SECONDS,
    Service,
    make_batch,
    make_head,
    read_answer,
    wait_for,
)

#: Seconds that a head may take here.
HEAD_SECONDS = 1

GET = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


class ImpatientService(Service):
    """A service that waits HEAD_SECONDS for a head."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        super().__init__(directory, **settings)
        self._environ["GUNICORN_CMD_ARGS"] = f"--keep-alive {HEAD_SECONDS}"


@contextlib.contextmanager
def checked(service: Service) -> Iterator[Service]:
    """Start one service for all cases; it must still be in order after the last one."""
    with service:
        yield service
        assert "Traceback" not in service.log()
        assert 0 == service.stop()


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with checked(ImpatientService(tmp_path_factory.mktemp("heads"))) as service:
        yield service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with checked(Service(tmp_path_factory.mktemp("bodies"))) as service:
        yield service


@pytest.mark.parametrize(
    "start", [b"", b"GET", GET[:-2], make_head()[:60], GET, GET * 2, GET + GET[:-2]]
)
def test_incomplete_head_ends_its_connection(impatient: Service, start: bytes) -> None:
    """A connection is closed after its timeout, whether or not it was used."""
    with impatient.connect() as connection:
        connection.sendall(start)
        wait_for(lambda: is_closed(connection))


def test_a_head_that_trickles_has_no_more_time(impatient: Service) -> None:
    """The timeout is for the whole head, so single bytes do not extend it."""
    with impatient.connect() as connection:
        connection.sendall(GET[:-2])
        end = time.monotonic() + TIMEOUT_SECONDS
        while not is_closed(connection):
            assert time.monotonic() < end, "the service read on"
            with contextlib.suppress(OSError):
                connection.sendall(b"X: y\r\n")
            time.sleep(0.05)


def send_in_time(service: Service, data: bytes) -> socket.socket:
    """Return a connection whose first bytes were sent soon, however slow this process is."""
    while True:
        start = time.monotonic()
        connection = service.connect()
        connection.sendall(data)
        if time.monotonic() - start < HEAD_SECONDS / 2:
            return connection
        connection.close()


def test_the_time_for_a_head_is_not_that_of_the_request(impatient: Service) -> None:
    """An incomplete body has its own timeout, in the first request and the next."""
    start, end = make_head("Content-Length: 11") + b'{"logs"', b":[]}"
    with send_in_time(impatient, start) as connection:
        for rest in (end + start, end):  # the second head does not wait for the response
            time.sleep(3 * HEAD_SECONDS)
            connection.sendall(rest)
            assert 200 == read_answer(connection).status


# What is left of a rejected body


def test_rejection_reaches_a_client_that_is_still_sending(service: Service) -> None:
    """A large body is read to its end, so that its client reads the response and continues."""
    with service.connect() as connection:
        for _ in range(3):
            connection.sendall(make_head(f"Content-Length: {16 * MIB}", token="wrong"))
            connection.sendall(bytes(16 * MIB))
            assert 401 == read_answer(connection).status
        connection.sendall(GET)
        assert 200 == read_answer(connection).status


@pytest.mark.parametrize("broken", [b"zz\r\n", b"2\r\nabc", b"0\r\nno trailer\r\n\r\n", b"5\r\na"])
def test_a_rejected_body_that_is_malformed_has_one_answer(service: Service, broken: bytes) -> None:
    """No second response follows, which the next request could receive."""
    with service.connect() as connection:
        connection.sendall(make_head("Transfer-Encoding: chunked", token="wrong") + broken)
        connection.shutdown(socket.SHUT_WR)
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while data := connection.recv(65536):
                received += data
    assert received.startswith(b"HTTP/1.1 401 ")
    assert 1 == received.count(b"HTTP/1.1 ")


def send_again_and_again(connection: socket.socket, piece: bytes, times: int) -> None:
    for _ in range(times):
        connection.sendall(piece)


@pytest.mark.parametrize("framing", [f"Content-Length: {1 << 40}", "Transfer-Encoding: chunked"])
def test_endless_rejected_body_ends_its_connection(service: Service, framing: str) -> None:
    """A connection that sends without end after its rejection is closed; others are served."""
    piece = b"100000\r\n" + bytes(MIB) + b"\r\n" if "chunked" in framing else bytes(MIB)
    with service.connect() as connection:
        connection.sendall(make_head(framing, token="wrong"))
        assert 401 == read_answer(connection).status
        with pytest.raises(OSError, match=r"reset|Broken pipe"):
            send_again_and_again(connection, piece, 200)
    assert 200 == service.drain(make_batch("after")).status


def test_trickling_rejected_body_ends_its_connection(service: Service) -> None:
    """Single bytes after a rejection keep its connection only for some seconds."""
    with service.connect() as connection:
        connection.sendall(make_head("Content-Length: 1000000", token="wrong"))
        assert 401 == read_answer(connection).status
        end = time.monotonic() + TIMEOUT_SECONDS
        while not is_closed(connection):
            assert time.monotonic() < end, "the service read on"
            with contextlib.suppress(OSError):
                connection.sendall(b" ")
            time.sleep(0.1)
