"""Connections are bounded in number and memory; the longest waits are ended first."""

import logging
from collections.abc import Callable

import gevent
import pytest

from astralog.deadlines import Deadlines
from astralog.server.limits import ConnectionEnded, ConnectionLimits


class Client:
    """A connection that waits for its client until a test continues it."""

    def __init__(
        self, limits: ConnectionLimits, waits: Deadlines | None, size: int = 10, name: str = ""
    ) -> None:
        self.name = name
        self.is_ended = False
        self._limits = limits
        self._waits = waits
        self._size = size
        self.greenlet = gevent.spawn(self._serve)
        limits.connections.add(self.greenlet)
        gevent.sleep(0)

    def _serve(self) -> None:
        self._limits.hold(self._size)
        try:
            if self._waits is None:
                gevent.sleep(60)
            else:
                with self._waits:
                    gevent.sleep(60)
        except ConnectionEnded:
            self.is_ended = True
        finally:
            self._limits.release(self._size)
            self._limits.connections.discard(self.greenlet)


@pytest.fixture
def limits() -> ConnectionLimits:
    """Return limits of three connections and a hundred bytes."""
    return ConnectionLimits(3, lambda: 60, 100)


def test_within_the_limits_no_connection_is_ended(limits: ConnectionLimits) -> None:
    """All connections stay."""
    clients = [Client(limits, limits.heads) for _ in range(2)]
    assert limits.make_room()
    assert not any(client.is_ended for client in clients)


def test_one_too_many_ends_the_one_that_waited_longest(limits: ConnectionLimits) -> None:
    """Whatever it waits for."""
    kinds = ("handshakes", "heads", "writes", "discards", "heads", "writes")
    clients = []
    for kind in kinds:
        assert limits.make_room()
        clients.append(Client(limits, getattr(limits, kind)))
    assert [True] * 3 + [False] * 3 == [client.is_ended for client in clients]


def test_clients_that_have_shown_a_token_are_ended_last(limits: ConnectionLimits) -> None:
    """However long they have waited, and only if there is no other."""
    trusted = [Client(limits, limits.trusted_heads, size=0) for _ in range(2)]
    for _ in range(5):
        limits.make_room()
        newest = Client(limits, limits.heads)
    assert not any(client.is_ended for client in trusted)
    newest.greenlet.kill()
    trusted.append(Client(limits, limits.trusted_heads, size=0))
    assert limits.make_room()
    assert [True, False, False] == [client.is_ended for client in trusted]


def test_clients_that_wait_for_an_answer_are_not_ended(limits: ConnectionLimits) -> None:
    """If all do, there is no room until one of them has its response."""
    clients = [Client(limits, None) for _ in range(3)]
    assert not limits.make_room()
    clients[1].greenlet.kill()
    assert limits.make_room()
    assert not any(client.is_ended for client in clients)


def test_memory_of_connections_is_bounded(limits: ConnectionLimits) -> None:
    """A connection that needs more memory ends the oldest ones, perhaps itself."""
    clients = [Client(limits, limits.heads, size) for size in (50, 40)]
    limits.hold(20)
    assert [True, False] == [client.is_ended for client in clients]
    limits.hold(30)
    assert [True, False] == [client.is_ended for client in clients]
    limits.hold(11)
    assert [True, True] == [client.is_ended for client in clients]
    limits.hold(1000)  # there is no one left, and what is held is in use
    assert limits.make_room()


def test_memory_is_no_reason_to_end_a_client_that_holds_none(limits: ConnectionLimits) -> None:
    """An idle client that has shown a token holds no charged memory."""
    trusted = Client(limits, limits.trusted_heads, size=0)
    limits.hold(1000)
    assert limits.make_room()
    assert not trusted.is_ended


def test_ended_connections_are_logged_once_per_minute(
    limits: ConnectionLimits, caplog: pytest.LogCaptureFixture
) -> None:
    """A flood of connections does not fill the log."""
    caplog.set_level(logging.WARNING)
    for _ in range(20):
        limits.make_room()
        Client(limits, limits.heads)
    assert 1 == len(caplog.records)
    assert "too many connections: 3 hold" in caplog.text


@pytest.mark.parametrize("seconds", [lambda: 0.1])
def test_waits_for_a_head_end_in_time(seconds: Callable[[], float]) -> None:
    """With or without a token, an idle connection has a timeout."""
    limits = ConnectionLimits(10, seconds)
    clients = [Client(limits, waits) for waits in (limits.heads, limits.trusted_heads)]
    gevent.joinall([client.greenlet for client in clients], timeout=5)
    assert all(client.is_ended for client in clients)
