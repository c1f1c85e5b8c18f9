"""A worker accepts connections within its limits, and ends in time."""

import logging
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from flask import Flask
from gevent import socket as gevent_socket
from gevent.event import Event
from gunicorn.config import Config

from astralog.app import services_of
from astralog.deadlines import TIME_SLICE_SECONDS
from astralog.server import worker as worker_module
from astralog.server.balance import POLL_SECONDS
from astralog.server.master import read_state
from astralog.server.worker import ACCEPT_RETRY_SECONDS, SPARE_FILES, MasterState, Worker
from astralog.settings import Settings
from tests.support.connections import is_closed
from tests.support.greenlets import wait_until
from tests.support.service import TIMEOUT_SECONDS, TOKEN

GET = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


class Serving:
    """A worker that serves in this process."""

    def __init__(self, app: Flask, state: MasterState, tmp_path: Path) -> None:
        self.listener = gevent_socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(100)
        self.address = self.listener.getsockname()
        self.balance = state.balance
        cfg = Config()
        for name, value in (
            ("keepalive", 5),
            ("graceful_timeout", 1),
            ("worker_tmp_dir", str(tmp_path)),
        ):
            cfg.set(name, value)
        self.worker = Worker(1, 0, [self.listener], None, 30, cfg, logging.getLogger("test"))
        self.worker.inherit(state)
        self.worker.wsgi = app
        self.worker.notify = lambda: None
        self._clients = ExitStack()
        self.greenlet: Any = None

    def start(self) -> None:
        """Start to serve."""
        self.greenlet = gevent.spawn(self.worker.run)
        gevent.sleep(0)

    def connect(self) -> Any:
        """Return a connection."""
        return self._clients.enter_context(gevent_socket.create_connection(self.address, 5))

    def connect_idle(self, count: int) -> list[Any]:
        """Return connections that wait for a head, the longest wait first."""
        clients = [self.connect() for _ in range(count)]
        wait_until(lambda: len(self.worker._shared.limits.heads._waiting) == count)
        return clients

    def ask(self) -> bytes:
        """Return the response to a request on a new connection."""
        client = self.connect()
        client.sendall(GET)
        return bytes(client.recv(65536))

    def stop(self) -> float:
        """Stop the worker, and return the seconds that this took."""
        start = time.monotonic()
        self.worker.alive = False
        self.greenlet.join(TIMEOUT_SECONDS)
        assert self.greenlet.successful()
        return time.monotonic() - start

    def close(self) -> None:
        """End all remaining connections."""
        self._clients.close()
        if self.greenlet:
            self.worker.alive = False
            self.greenlet.join(TIMEOUT_SECONDS)
        self.listener.close()
        self.worker.tmp.close()


@pytest.fixture
def serving(
    make_app: Callable[[Settings], Flask], settings: Settings, tmp_path: Path
) -> Iterator[Serving]:
    """Return a worker that is not serving yet."""
    made = Serving(make_app(settings), read_state(settings), tmp_path)
    switch_seconds = sys.getswitchinterval()
    yield made
    made.close()
    sys.setswitchinterval(switch_seconds)


def test_a_worker_serves_until_it_is_stopped(serving: Serving) -> None:
    """Idle connections do not delay the stop, and no new ones are accepted."""
    for name in ("keepalive", "graceful_timeout"):
        serving.worker.cfg.set(name, int(2 * TIMEOUT_SECONDS))
    serving.start()
    idle = serving.connect_idle(5)
    assert serving.ask().startswith(b"HTTP/1.1 200 ")
    serving.stop()
    assert all(is_closed(client) for client in idle)
    with pytest.raises(ConnectionRefusedError):
        serving.connect()


def test_a_thread_that_stores_waits_less_than_a_time_slice(serving: Serving) -> None:
    """It needs the interpreter several times per commit, while requests are decoded."""
    serving.start()
    assert 10 * sys.getswitchinterval() < TIME_SLICE_SECONDS


@pytest.mark.slow
def test_stop_waits_for_a_request_for_a_limited_time(serving: Serving) -> None:
    """An application that does not respond is abandoned."""
    has_begun = Event()

    def hang(*args: Any) -> Any:
        has_begun.set()
        gevent.sleep(2 * TIMEOUT_SECONDS)

    serving.worker.wsgi.wsgi_app = hang  # type: ignore[method-assign, assignment]
    serving.start()
    client = serving.connect()
    client.sendall(GET)
    assert has_begun.wait(TIMEOUT_SECONDS)
    assert serving.stop() >= 1
    assert is_closed(client)


def test_a_full_worker_ends_the_oldest_connection_for_a_new_one(serving: Serving) -> None:
    """New clients are always served."""
    serving.worker.worker_connections = 5
    serving.start()
    idle = serving.connect_idle(5)
    assert serving.ask().startswith(b"HTTP/1.1 200 ")
    assert [True, False, False, False, False] == [is_closed(client) for client in idle]


def test_open_files_are_left_for_everything_else(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections use no more than the system's limit minus the files that segments need."""
    for allowed, expected in ((1024, 1024 - SPARE_FILES), (10, 1), (1_000_000, 1000)):
        monkeypatch.setattr(resource, "getrlimit", lambda kind, allowed=allowed: (allowed, allowed))
        assert expected == serving.worker._max_connections()


class Listener:
    """A listening socket with nothing to accept, or one that fails."""

    def __init__(self, error: OSError) -> None:
        self._error = error
        self.accepts = 0

    def accept(self) -> Any:
        """Fail."""
        self.accepts += 1
        raise self._error


def test_accepting_goes_on_after_an_error(serving: Serving) -> None:
    """Too many open files end the oldest connection; one accepted by another worker is no error."""
    serving.start()
    idle = serving.connect_idle(2)
    assert serving.worker._accept(Listener(BlockingIOError())) == 0
    assert not any(is_closed(client) for client in idle)
    assert serving.worker._accept(Listener(OSError(24, "too many"))) == ACCEPT_RETRY_SECONDS
    wait_until(lambda: is_closed(idle[0]))
    assert [True, False] == [is_closed(client) for client in idle]


def test_a_connection_is_left_to_a_worker_with_less_load(serving: Serving) -> None:
    """It is not accepted, and checked again after a moment."""
    serving.start()
    serving.connect_idle(1)
    listener = Listener(BlockingIOError())
    other = serving.balance.join()
    assert serving.worker._accept(listener) == POLL_SECONDS
    assert listener.accepts == 0
    serving.balance.leave(other)
    assert serving.worker._accept(listener) == 0
    assert listener.accepts == 1


def test_connections_are_counted_while_they_last(serving: Serving) -> None:
    """For the other workers and for the limits."""
    serving.start()
    clients = serving.connect_idle(3)
    connections = serving.worker._shared.limits.connections
    assert 3 == len(connections)
    for client in clients:
        client.close()
    wait_until(lambda: not connections)


# --- The app


def test_worker_uses_the_masters_settings_and_tokens(serving: Serving) -> None:
    """The worker reads neither again."""
    state = serving.worker.state
    serving.worker.load_wsgi()
    headers = {"Authorization": TOKEN}
    answer = serving.worker.wsgi.test_client().post(
        "/v1/drain", data=b'{"logs":[]}', headers=headers
    )
    assert services_of(serving.worker.wsgi).tokens is state.tokens
    assert answer.status_code == 200
    assert serving.worker.cfg.graceful_timeout == worker_module.REQUESTS_STOP_SECONDS
    serving.worker.stop_services()


def test_worker_stops_before_the_master_kills_it() -> None:
    parts = worker_module.REQUESTS_STOP_SECONDS + worker_module.DRAIN_STOP_SECONDS
    assert parts + 1 < worker_module.STOP_SECONDS


@pytest.mark.parametrize(("requests_seconds", "drain_seconds"), [(0.5, 6.5), (4.5, 3.0)])
def test_drain_and_seals_may_use_what_is_left_of_the_stop(
    serving: Serving,
    monkeypatch: pytest.MonkeyPatch,
    requests_seconds: float,
    drain_seconds: float,
) -> None:
    """On a slow disk, the seals of several workers take their time one after another."""
    now = 1000.0
    monkeypatch.setattr(worker_module, "time", SimpleNamespace(monotonic=lambda: now))
    stops: list[float] = []
    serving.worker._services = SimpleNamespace(stop=stops.append)  # type: ignore[assignment]
    serving.start()
    serving.stop()
    now += requests_seconds
    serving.worker.stop_services()
    assert [drain_seconds] == stops
