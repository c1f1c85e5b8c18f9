"""A connection serves requests one after another, and ends when it must."""

import logging
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from flask import Flask
from gevent import socket as gevent_socket
from gunicorn.config import Config

from astralog.deadlines import Deadlines
from astralog.server.balance import Balance
from astralog.server.connection import Connection, Shared
from astralog.server.limits import (
    DISCARD_BYTES,
    PLAIN_BYTES,
    ConnectionEnded,
    ConnectionLimits,
)
from tests.support.greenlets import wait_until
from tests.support.service import TIMEOUT_SECONDS

PEER, LOCAL = ("192.0.2.1", 40000), ("127.0.0.1", 8080)

GET = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"

Environ = dict[str, Any]


class Items(list[bytes]):
    """The items of a response, which record that they were closed."""

    is_closed = False

    def close(self) -> None:
        """Record the call, as PEP 3333 requires it."""
        self.is_closed = True


class App(Flask):
    """An application with the responses that a test sets."""

    def __init__(self, answer: Callable[[Environ], Iterable[bytes]] | None = None) -> None:
        super().__init__(__name__)
        self._answer = answer or (lambda environ: Items([b"hello"]))
        self.status = "200 OK"
        self.paths: list[str] = []
        self.items: list[Any] = []

    def wsgi_app(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        """Respond with the items that the test chose."""
        self.paths.append(environ["PATH_INFO"])
        items = self._answer(environ)
        self.items.append(items)
        start_response(self.status, [("Content-Length", str(sum(map(len, items))))])
        return items


class Rejections:
    """The log of rejections."""

    def __init__(self) -> None:
        self.added: list[tuple[Any, str]] = []

    def add(self, source: Any, words: str) -> None:
        """Record a rejection."""
        self.added.append((source, words))


class Client:
    """A client and the connection that serves it."""

    def __init__(self, shared: Shared) -> None:
        ours, theirs = gevent_socket.socketpair()
        self.socket = ours
        self.connection = Connection(shared, theirs, PEER, LOCAL)
        self.greenlet = gevent.spawn(self.connection.serve)

    def read(self) -> bytes:
        """Read until the server ends the connection."""
        received = b""
        while data := self.socket.recv(65536):
            received += data
        self.socket.close()
        self.greenlet.join(TIMEOUT_SECONDS)
        return received

    def ask(self, request: bytes = GET) -> bytes:
        """Send a request and return the immediate response."""
        self.socket.sendall(request)
        return bytes(self.socket.recv(65536))


class Case:
    """A server of one application; its clients are closed at the end."""

    def __init__(self) -> None:
        self.app = App()
        self.limits = ConnectionLimits(10, lambda: 5)
        self.share = Balance().join()
        self.rejections = Rejections()
        self.app.extensions["astralog"] = SimpleNamespace(rejections=self.rejections)
        self.shared = Shared(self.app, Config(), self.limits, self.share)
        self.clients: list[Client] = []

    def connect(self) -> Client:
        """Return a new client."""
        self.clients.append(Client(self.shared))
        gevent.sleep(0)
        return self.clients[-1]

    def wait_for_head(self) -> None:
        """Return when the only connection waits for its next head."""
        wait_until(lambda: self.limits.heads or self.limits.trusted_heads)


@pytest.fixture
def case() -> Iterator[Case]:
    """Return a server."""
    made = Case()
    yield made
    for client in made.clients:
        client.socket.close()
        client.greenlet.kill()
    assert made.limits._held_bytes == 0


def post(*fields: str) -> bytes:
    return "\r\n".join(["POST /a HTTP/1.1", "Host: x", *fields, "", ""]).encode()


def test_requests_are_served_one_after_another(case: Case) -> None:
    """A connection stays until its client closes it."""
    client = case.connect()
    for _ in range(20):
        assert client.ask().endswith(b"\r\n\r\nhello")
    client.socket.close()
    client.greenlet.join(TIMEOUT_SECONDS)
    assert client.greenlet.successful()
    assert ["/a"] * 20 == case.app.paths


def test_connection_close_is_respected(case: Case) -> None:
    """The request asks to close the connection."""
    client = case.connect()
    client.socket.sendall(GET.replace(b"Host", b"Connection: close\r\nHost") + GET)
    received = client.read()
    assert b"Connection: close\r\n" in received
    assert 1 == received.count(b"HTTP/1.1 200 ")


def test_a_stopping_server_ends_connections_with_their_answers(case: Case) -> None:
    """No client is left without its response."""
    client = case.connect()
    client.ask()
    case.shared.is_stopping = True
    client.socket.sendall(GET)
    assert b"Connection: close\r\n" in client.read()


def test_the_items_of_a_response_are_closed(case: Case) -> None:
    """Also if the client disconnects early."""
    client = case.connect()
    client.ask()
    client.socket.sendall(GET)
    client.socket.close()
    client.greenlet.join(TIMEOUT_SECONDS)
    assert [True, True] == [items.is_closed for items in case.app.items]


def test_items_without_a_close_are_fine(case: Case) -> None:
    """An application may return any iterable."""
    case.app._answer = lambda environ: [b"he", b"llo"]
    assert case.connect().ask().endswith(b"hello")


@pytest.mark.parametrize("error", [StopIteration(), ValueError("oops"), ConnectionResetError()])
def test_an_application_that_fails_ends_its_connection(
    case: Case, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """Its exception is not mistaken for a lost connection, and only a lost client is silent."""
    caplog.set_level(logging.INFO)

    def fail(environ: Environ) -> Iterable[bytes]:
        raise error

    case.app._answer = fail
    client = case.connect()
    client.socket.sendall(GET)
    assert b"" == client.read()
    assert client.greenlet.successful()
    assert isinstance(error, OSError) != ("request failed" in caplog.text)


# Bodies that nobody reads


def test_unread_body_is_skipped(case: Case) -> None:
    """The next request starts after it, for any response."""
    client = case.connect()
    for case.app.status in ("200 OK", "302 FOUND", "404 NOT FOUND", "503 UNAVAILABLE"):
        assert client.ask(post("Content-Length: 9000") + bytes(9000)).endswith(b"hello")
    assert client.ask().endswith(b"hello")


def test_a_body_that_is_too_long_ends_the_connection(case: Case) -> None:
    """Its client is notified and gets its response."""
    client = case.connect()
    client.socket.sendall(post("Content-Length: 99999999999") + bytes(100_000))
    assert b"Connection: close\r\n" in client.socket.recv(65536)
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        client.socket.sendall(bytes(100_000_000))
    client.greenlet.join(TIMEOUT_SECONDS)
    assert client.greenlet.successful()


def test_missing_body_ends_the_connection_in_time(case: Case) -> None:
    """A silent client is disconnected."""
    case.limits.discards = Deadlines(lambda: 0.1, ConnectionEnded)
    client = case.connect()
    assert client.ask(post("Content-Length: 100")).endswith(b"hello")
    assert b"" == client.read()
    assert client.greenlet.successful()


@pytest.mark.parametrize("broken", [b"zz\r\n", b"1\r\nabc\r\n"])
def test_a_body_of_invalid_chunks_ends_the_connection(case: Case, broken: bytes) -> None:
    """The start of the next request is unknown; one response is sent, and arrives."""
    client = case.connect()
    client.socket.sendall(post("Transfer-Encoding: chunked") + broken + GET * 10_000)
    assert 1 == client.read().count(b"HTTP/1.1 ")
    assert 1 == len(case.app.paths)


def test_a_body_without_a_length_ends_the_connection_after_one_answer(case: Case) -> None:
    """It is not parsed as the next request, and its client reads the response."""
    client = case.connect()
    client.socket.sendall(post() + GET * 1000)
    received = client.read()
    assert b"Connection: close\r\n" in received
    assert 1 == received.count(b"HTTP/1.1 ")
    assert ["/a"] == case.app.paths


def test_head_that_waits_for_its_body_is_charged(case: Case) -> None:
    """A client without a token holds its head while the application reads its body."""
    case.app._answer = lambda environ: Items([environ["wsgi.input"].read()])
    client = case.connect()
    client.socket.sendall(post("Content-Length: 10", "X: " + "x" * 8000))
    wait_until(lambda: case.limits._held_bytes > PLAIN_BYTES + 8000)
    assert client.ask(bytes(10)).endswith(bytes(10))


def test_head_of_a_discarded_body_is_charged(case: Case) -> None:
    """A client without a token holds its head until the rest of its body arrives."""
    case.app.status = "401 UNAUTHORIZED"
    client = case.connect()
    client.ask(post("Content-Length: 10", "X: " + "x" * 8000))
    wait_until(lambda: case.limits._held_bytes > PLAIN_BYTES + 16_000)
    client.socket.sendall(bytes(10))
    assert client.ask().endswith(b"hello")
    case.wait_for_head()
    assert case.limits._held_bytes == PLAIN_BYTES


class Flood:
    """A socket of a client that sends without end; it receives each piece slowly."""

    def __init__(self) -> None:
        self.received = 0

    def shutdown(self, how: int) -> None:
        """Do nothing."""

    def recv(self, size: int) -> bytes:
        """Return the requested number of bytes."""
        time.sleep(0.002)
        self.received += size
        return bytes(size)


@pytest.mark.slow
def test_endless_client_delays_no_other(case: Case) -> None:
    """While its connection lingers, others are served."""
    flood = Flood()
    turns: list[int] = []

    def take_turns() -> None:
        while True:
            gevent.sleep(0)
            turns.append(flood.received)

    other = gevent.spawn(take_turns)
    Connection(case.shared, flood, PEER, LOCAL)._linger()
    other.kill()
    assert DISCARD_BYTES == flood.received
    assert len(set(turns)) > 10


def test_clients_without_a_token_delay_only_themselves(case: Case) -> None:
    """While they send without a pause, a new client is served next."""

    def answer(environ: Environ) -> Items:
        end = time.monotonic() + 0.001
        while time.monotonic() < end:
            pass
        return Items([b"hello"])

    case.limits = ConnectionLimits(100, lambda: 5)
    case.shared.limits = case.limits
    case.app._answer = answer
    flood = [case.connect() for _ in range(40)]
    for client in flood:
        client.socket.sendall(GET * 200)
    while len(case.app.paths) < 200:
        gevent.sleep(0.001)
    served = len(case.app.paths)
    new = case.connect()
    assert new.ask(GET.replace(b"/a", b"/new")).endswith(b"hello")
    assert case.app.paths.index("/new") - served < 150


# Heads


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"nonsense\r\n\r\n", "the request line is malformed"),
        (b"GET / HTTP/1.1\n", "a line ends in LF without a CR"),
        (b"GET / HTTP/1.1\r\nA b: secret\r\n\r\n", "a header name is malformed"),
        (b"GET / HTTP/1.1\r\nsecret : x\r\n\r\n", "a header name is malformed"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/2, which gRPC uses, is not supported"),
        (b"\x16\x03\x01", "received TLS"),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000, "the head is longer than"),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 8_500 + b"\r\n\r\n", "more than 100 headers, or one is"),
    ],
)
def test_malformed_head_is_rejected(case: Case, head: bytes, words: str) -> None:
    """The client and the log get the reason, although the client continues to send."""
    client = case.connect()
    client.socket.sendall(head + bytes(200_000))
    received = client.read()
    assert received.startswith(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n")
    assert words.encode() in received
    ((source, logged),) = case.rejections.added
    assert ("bad_request", "192.0.2.1", "no token read") == source
    assert words in logged
    assert "secret" not in logged
    assert [] == case.app.paths


def test_incomplete_head_ends_its_connection(case: Case) -> None:
    """An unfinished head is held only until its timeout."""
    seconds = 60.0
    case.limits.heads = Deadlines(lambda: seconds, ConnectionEnded)
    client = case.connect()
    client.socket.sendall(GET[:-2])
    wait_until(lambda: case.limits._held_bytes == PLAIN_BYTES + len(GET) - 2)
    seconds = 0.2
    assert b"" == client.read()


def test_client_of_an_accepted_batch_is_trusted(case: Case) -> None:
    """Only then an idle connection is not charged."""
    client = case.connect()
    for request in (GET, post("Content-Length: 0")):
        case.app.status = "200 OK" if request == GET else "401 UNAUTHORIZED"
        client.ask(request)
        case.wait_for_head()
        assert (True, False) == (bool(case.limits.heads), bool(case.limits.trusted_heads))
        assert case.limits._held_bytes == PLAIN_BYTES
    case.app.status = "200 OK"
    client.ask(post("Content-Length: 0"))
    case.wait_for_head()
    assert (False, True) == (bool(case.limits.heads), bool(case.limits.trusted_heads))
    assert case.limits._held_bytes == 0


def test_client_beyond_its_rate_is_trusted_again_after_the_next_success(case: Case) -> None:
    """Until then it is served after others, and its memory counts."""
    client = case.connect()
    for status, is_trusted in (("200 OK", True), ("429 TOO MANY REQUESTS", False)) * 2:
        case.app.status = status
        client.ask(post("Content-Length: 0"))
        case.wait_for_head()
        waits = (bool(case.limits.heads), bool(case.limits.trusted_heads))
        assert waits == (not is_trusted, is_trusted)
        assert case.limits._held_bytes == (0 if is_trusted else PLAIN_BYTES)


def test_moved_connection_is_closed_with_a_response(case: Case) -> None:
    """As many as should move, each once it was used in this tick."""
    clients = [case.connect() for _ in range(4)]
    for client in clients:
        client.ask()
    assert 4 == case.share._active
    case.share.tick()
    case.share._moves = 2
    answers = [client.ask() for client in clients]
    assert [True, True, False, False] == [b"Connection: close" in answer for answer in answers]
    assert 0 == case.share._moves
    assert 4 == case.share._active


def test_a_local_socket_has_no_peer(case: Case) -> None:
    """The log names its clients as local."""
    ours, theirs = socket.socketpair()
    ours.sendall(b"nonsense\r\n\r\n")
    ours.close()
    with gevent_socket.socket(fileno=theirs.detach()) as end:
        Connection(case.shared, end, "", "/run/astralog.sock").serve()
    assert "a local socket" == case.rejections.added[0][0].peer
