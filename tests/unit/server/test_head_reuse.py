"""A head that differs only in known values is parsed once, and never mistaken for another."""

import socket
from contextlib import closing
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http.errors import (
    NoMoreData,
    ParseException,
)
from hypothesis import example, given
from hypothesis import strategies as st

from astralog.server.fair_queue import CpuTime, FairQueue
from astralog.server.head_reuse import Requests
from astralog.server.http11_receiver import Receiver
from astralog.server.http11_request import SMALL_HEAD_BYTES, Request
from tests.unit.server.conftest import CLIENT, SERVER, Wire


def head(*fields: str) -> bytes:
    return "\r\n".join(["POST /v1/drain?a=b%20c HTTP/1.1", "Host: x", *fields, "", ""]).encode()


def count_parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Return a list to which each head is appended that gunicorn parses."""
    parsed = []
    parse_headers = Request.parse_headers

    def count(request: Any, data: bytes, **kwargs: Any) -> Any:
        parsed.append(data)
        return parse_headers(request, data, **kwargs)

    monkeypatch.setattr(Request, "parse_headers", count)
    return parsed


def test_head_that_differs_in_length_is_parsed_once(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request has its own length and body; a head that is too long is not kept."""
    parsed = count_parsed(monkeypatch)
    for length in (3, 10, 0, 3):
        wire.send(head(f"Content-Length: {length}", "X-A: 1") + b"x" * length)
        request = wire.next()
        assert str(length) == request.environ(CLIENT, SERVER)["CONTENT_LENGTH"]
        assert b"x" * length == request.body.read(100)
    assert 1 == len(parsed)
    for _ in range(2):
        wire.send(head("Content-Length: 0", "X-A: " + "x" * SMALL_HEAD_BYTES))
        wire.next()
    assert 3 == len(parsed)


def test_head_that_differs_in_length_and_key_is_parsed_once(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that sends a key with each batch changes it with each head."""
    parsed = count_parsed(monkeypatch)
    for order in (1, -1):
        for length, key in ((3, "a"), (10, '"longer"'), (0, "b"), (3, "a")):
            fields = [f"Content-Length: {length}", "X-A: 1", f"Idempotency-Key: {key}"]
            wire.send(head(*fields[::order]) + b"x" * length)
            request = wire.next()
            environ = request.environ(CLIENT, SERVER)
            assert (str(length), key) == (
                environ["CONTENT_LENGTH"],
                environ["HTTP_IDEMPOTENCY_KEY"],
            )
            assert b"x" * length == request.body.read(100)
    assert 2 == len(parsed)
    for _ in range(2):
        wire.send(head("Content-Length: 0", "X-A: 1"))
        assert "HTTP_IDEMPOTENCY_KEY" not in wire.next().environ(CLIENT, SERVER)
    assert 3 == len(parsed)


def test_head_without_a_body_is_parsed_once(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no length the second time either; one with a chunked body is not kept."""
    heads = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", head("Transfer-Encoding: chunked")
    for sent, body, parses in zip(heads, (b"", b"1\r\na\r\n0\r\n\r\n"), (1, 2), strict=True):
        with monkeypatch.context() as patch:
            parsed = count_parsed(patch)
            for _ in range(2):
                wire.send(sent + body)
                request = wire.next()
                assert "CONTENT_LENGTH" not in request.environ(CLIENT, SERVER)
                assert body[3:4] == request.body.read(100)
        assert parses == len(parsed)


_LINES = [
    "Content-Length: 1",
    "content-length: 2",
    "Content-Length: 0",
    "Content-Length: 01",
    "Content-Length: +1",
    "Content-Length:1",
    "Content-Length : 1",
    "Content-Length: 1, 1",
    "Content-Length: ²",
    "Content-Length: ",
    " folded",
    "X-A: 1",
    "X-A: 2",
    "X_A: 1",
    "Expect: 100-continue",
    "Connection: close",
    "Idempotency-Key: a",
    'idempotency-key: "b"',
    "Idempotency-Key:c",
    "Idempotency-Key: a b",
    "Transfer-Encoding: chunked",
    "X-Forwarded-Proto: https",
    "no field",
    "",
]
_STARTS = ["", "\r\n", "\n", "Content-Length: 1\r\n"]
_REQUEST_LINES = ["POST /a HTTP/1.1", "POST /b?c HTTP/1.1", "POST /a HTTP/1.0", "GET /a HTTP/1.1"]

heads = st.builds(
    lambda start, line, fields: (start + "\r\n".join([line, *fields, "", ""])).encode("latin-1"),
    st.sampled_from(_STARTS) | st.just(""),
    st.sampled_from(_REQUEST_LINES) | st.just(_REQUEST_LINES[0]),
    st.lists(st.sampled_from(_LINES), max_size=3),
)


def _config() -> Config:
    """Return settings that allow more in a head than the service's own."""
    config = Config()
    config.set("forwarded_allow_ips", "*")
    return config


class Memory:
    """A connection that has seen heads, and the result of its next head."""

    def __init__(self, *heads: bytes) -> None:
        client, self._server = socket.socketpair()
        client.close()
        self._receiver = Receiver(self._server, CpuTime(FairQueue()))
        self._requests = Requests(_config(), self._receiver, CLIENT)
        for head in heads:
            self.outcome(head)

    def outcome(self, data: bytes) -> Any:
        """Return the fields of a request, or the error of its head."""
        self._receiver.take_buffered()
        self._receiver.unread(data + b"ab")
        try:
            request = self._requests.next(lambda size: None)
        except (ParseException, NoMoreData) as error:
            return type(error)
        assert request is not None
        environ = request.environ(CLIENT, SERVER)
        body = environ.pop("wsgi.input")
        del environ["astralog.head_bytes"]  # those of the head that was parsed
        said = request.uri, request.scheme, request.should_close(), body._chunks is None
        return environ, said, body._left, self._receiver.take_buffered()

    def close(self) -> None:
        self._server.close()


AWAITED = head("Content-Length: 1", "Expect: 100-continue")
FORWARDED = head("Content-Length: 1", "X-Forwarded-Proto: https")
TWO_KEYS = [
    head("Content-Length: 1", f"Idempotency-Key: {key}", "Idempotency-Key: b") for key in "ac"
]


@pytest.mark.slow
@given(st.lists(heads, min_size=1, max_size=3), heads)
@example([AWAITED], AWAITED)
@example([FORWARDED], FORWARDED)
@example([AWAITED], FORWARDED)
@example(TWO_KEYS[:1], TWO_KEYS[1])
@example([head("Content-Length: 1", "X-A: 1")], head("X-A: 1", "Content-Length: 1"))
@example([head("Content-Length: 1")], head("Content-Length: "))
def test_requests_are_the_same_after_any_others(before: list[bytes], data: bytes) -> None:
    """The next head has the same result whatever heads a connection remembers."""
    with closing(Memory()) as fresh, closing(Memory(*before)) as experienced:
        assert fresh.outcome(data) == experienced.outcome(data)
