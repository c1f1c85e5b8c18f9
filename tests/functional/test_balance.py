"""Connections are shared among the workers, at the start and after changes."""

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import cpu_seconds
from tests.support.service import Service, make_batch, make_head, read_answer, wait_for

pytestmark = pytest.mark.alone

REQUEST_BODY = json.dumps(make_batch(*["x" * 100] * 20)).encode()
REQUEST = make_head(f"Content-Length: {len(REQUEST_BODY)}") + REQUEST_BODY


def sockets(pid: int) -> int:
    """Count the sockets of a process."""
    count = 0
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            count += os.readlink(path).startswith("socket:")
    return count


class Workers:
    """The workers of a service, and the number of connections that each has gained."""

    def __init__(self, service: Service) -> None:
        self._before = {pid: sockets(pid) for pid in service.worker_pids()}

    def connections(self) -> list[int]:
        """Return the connections of each worker, the fewest first."""
        return sorted(sockets(pid) - before for pid, before in self._before.items())


@contextlib.contextmanager
def connected(service: Service, count: int) -> Iterator[list[socket.socket]]:
    """Open connections at once, and wait until they are accepted."""
    workers = Workers(service)
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(service.connect()) for _ in range(count)]
        wait_for(lambda: sum(workers.connections()) == count)
        yield connections
    wait_for(lambda: sum(workers.connections()) == 0)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Return a service of two workers that have both served a request."""
    with Service(tmp_path_factory.mktemp("balance"), workers=2) as service:
        time.sleep(2)  # for the workers to be done with their start
        yield service
        assert "Traceback" not in service.log()


@pytest.mark.parametrize("count", [2, 8, 32])
def test_connections_that_come_at_once_are_shared_out(service: Service, count: int) -> None:
    """In each repetition, each worker has about half of them."""
    workers = Workers(service)
    for _ in range(10):
        with connected(service, count):
            fewest, most = workers.connections()
        assert most - fewest <= count // 8, f"{most} of {count} went to one worker"
        time.sleep(0.3)  # a crowd of short connections is not shared out


def test_connections_that_come_one_by_one_are_shared_out(service: Service) -> None:
    """Idle connections are shared by number."""
    workers = Workers(service)
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(service.connect())
            time.sleep(0.2)
        wait_for(lambda: sum(workers.connections()) == 8)
        fewest, most = workers.connections()
    assert most - fewest <= 2


def test_hanging_worker_delays_no_connection(tmp_path: Path) -> None:
    """Connections wait for the hanging worker only for a moment."""
    with Service(tmp_path, workers=2) as service:
        pid = service.worker_pids()[0]
        os.kill(pid, signal.SIGSTOP)
        try:
            start = time.monotonic()
            for number in range(40):
                assert 200 == service.drain(make_batch(str(number))).status
            assert time.monotonic() - start < 10
        finally:
            os.kill(pid, signal.SIGCONT)


class Sender:
    """A client that sends one batch after another, on one connection as long as it lasts."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._over = threading.Event()
        self.sent = 0
        self.failed = 0
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()

    def _send(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(OSError), self._service.connect() as connection:
                while not self._over.is_set():
                    self.failed += 1  # until it is answered
                    connection.sendall(REQUEST)
                    answer = read_answer(connection)
                    assert 200 == answer.status
                    self.failed -= 1
                    self.sent += 1
                    if answer.headers["Connection"] == "close":
                        break

    def stop(self) -> None:
        """End after the current request."""
        self._over.set()
        self._thread.join(30)


@contextlib.contextmanager
def senders(service: Service, count: int) -> Iterator[list[Sender]]:
    made = [Sender(service) for _ in range(count)]
    try:
        yield made
    finally:
        for sender in made:
            sender.stop()


def shares(service: Service, seconds: float) -> float:
    """Return the ratio of the busiest worker's CPU time to another's."""
    pids = service.worker_pids()
    before = [cpu_seconds([pid]) for pid in pids]
    time.sleep(seconds)
    used = [cpu_seconds([pid]) - start for pid, start in zip(pids, before, strict=True)]
    return max(used) / max(min(used), 0.001)


def test_a_worker_that_replaces_one_gets_its_share(tmp_path: Path) -> None:
    """Although all clients moved to the other one meanwhile, and keep their connections."""
    with Service(tmp_path, workers=2) as service, senders(service, 12) as clients:
        time.sleep(1)
        dead = service.worker_pids()[0]
        os.kill(dead, signal.SIGKILL)
        service.wait_for_workers(other_than=[dead])
        wait_for(lambda: shares(service, 2) < 1.5)
        for client in clients:
            client.stop()
        assert all(client.failed <= 1 for client in clients)  # that which the dead worker had


def test_a_reload_leaves_the_shares_even(tmp_path: Path) -> None:
    """Clients move to the new workers without a failed request."""
    with Service(tmp_path, workers=2) as service, senders(service, 12) as clients:
        time.sleep(1)
        service.reload()
        wait_for(lambda: shares(service, 2) < 1.5)
        for client in clients:
            client.stop()
        assert 0 == sum(client.failed for client in clients)


def test_busy_connections_are_shared_out_beside_idle_ones(service: Service) -> None:
    """A worker with many idle connections gets its share of the busy ones."""
    pids = service.worker_pids()
    with contextlib.ExitStack() as stack:
        os.kill(pids[0], signal.SIGSTOP)
        try:
            for _ in range(20):
                stack.enter_context(service.connect())
            wait_for(lambda: sockets(pids[1]) > 20)
        finally:
            os.kill(pids[0], signal.SIGCONT)
        with senders(service, 8):
            wait_for(lambda: shares(service, 2) < 1.5)
