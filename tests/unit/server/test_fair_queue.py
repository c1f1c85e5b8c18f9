"""Connections without a token take turns at the worker, the least-served one first."""

import os
import time
from collections.abc import Iterator

import gevent
import pytest
from gevent.socket import wait_read

from astralog.server import fair_queue
from astralog.server.fair_queue import SLICE_SECONDS, CpuTime, FairQueue


def work(seconds: float) -> None:
    """Use the worker without a pause."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


class Clients:
    """Clients that work in turns of one queue, and the order of their work."""

    def __init__(self) -> None:
        self.queue = FairQueue()
        self.served: list[str] = []
        self.greenlets: list[gevent.Greenlet] = []

    def begin(
        self, name: str, cpu_time: CpuTime, seconds: float = 0.0, head_bytes: int = 0
    ) -> None:
        """Let a client wait for its turn, and then work for some seconds."""

        def serve() -> None:
            cpu_time.stop()
            if not cpu_time.try_start():
                cpu_time.wait(head_bytes)
            self.served.append(name)
            work(seconds)
            cpu_time.stop()

        self.greenlets.append(gevent.spawn(serve))

    def new(self, used_seconds: float = 0.0) -> CpuTime:
        """Return the CPU time of a client that has used the worker for some seconds."""
        made = CpuTime(self.queue)
        made._used_seconds = used_seconds
        return made

    def join(self) -> list[str]:
        """Return the clients in the order in which they were served."""
        gevent.joinall(self.greenlets, timeout=30, raise_error=True)
        return self.served


@pytest.fixture
def clients() -> Iterator[Clients]:
    """Return clients that have all ended at the end."""
    made = Clients()
    yield made
    gevent.killall(made.greenlets)


def test_a_client_alone_does_not_wait(clients: Clients) -> None:
    """Its work starts at once, again and again."""
    alone = clients.new()
    for _ in range(100):
        assert alone.try_start()
        alone.stop()


def test_least_served_client_goes_first(clients: Clients) -> None:
    """However long it has been connected, and whoever joins meanwhile."""
    clients.begin("first", clients.new(), 2 * SLICE_SECONDS)
    for name, used in (("much", 5.0), ("some", 1.0), ("none", 0.0), ("little", 0.1)):
        clients.begin(name, clients.new(used))
    assert ["first", "none", "little", "some", "much"] == clients.join()


def test_work_is_counted(clients: Clients) -> None:
    """A client that worked waits for those that did not."""
    busy = clients.new()
    clients.begin("busy", busy, 2 * SLICE_SECONDS)
    clients.join()
    clients.begin("first", clients.new(), 2 * SLICE_SECONDS)
    clients.begin("busy again", busy)
    clients.begin("new", clients.new())
    assert ["busy", "first", "new", "busy again"] == clients.join()


def test_a_small_request_goes_before_a_large_one(clients: Clients) -> None:
    """Among clients that have used nothing, those that will use less go first."""
    clients.begin("first", clients.new(), 2 * SLICE_SECONDS)
    clients.begin("large", clients.new(), head_bytes=16_000)
    clients.begin("small", clients.new(), head_bytes=50)
    assert ["first", "small", "large"] == clients.join()


def test_used_time_fades(clients: Clients, monkeypatch: pytest.MonkeyPatch) -> None:
    """A health check once per second for days has not used the most."""
    monkeypatch.setattr(fair_queue, "HALF_LIFE_SECONDS", 1e-6)
    steady = clients.new(100.0)
    clients.begin("first", clients.new(), 2 * SLICE_SECONDS)
    clients.begin("steady", steady)
    clients.begin("large", clients.new(), head_bytes=16_000)
    assert ["first", "steady", "large"] == clients.join()


def test_sockets_are_polled_between_two_slices(clients: Clients) -> None:
    """Clients that wait for a socket are served while many have work to do."""
    reader, writer = os.pipe()

    def serve() -> None:
        wait_read(reader)
        clients.served.append("trusted")

    trusted = gevent.spawn(serve)
    gevent.sleep(0)
    for number in range(30):
        clients.begin(str(number), clients.new(), SLICE_SECONDS / 2)
    clients.begin("last", clients.new(1.0))
    os.write(writer, b"x")
    clients.join()
    trusted.join(5)
    os.close(reader)
    os.close(writer)
    assert "last" == clients.served[-1]
    assert clients.served.index("trusted") < 10


def test_long_work_pauses_for_others(clients: Clients) -> None:
    """For example while an unwanted body is read."""
    long = clients.new()

    def serve() -> None:
        for step in range(5):
            work(2 * SLICE_SECONDS)
            clients.served.append(f"step {step}")
            long.pause()

    clients.greenlets.append(gevent.spawn(serve))
    clients.begin("other", clients.new())
    served = clients.join()
    assert served.index("other") <= 2


def test_a_trusted_client_never_waits(clients: Clients) -> None:
    """It uses its own share."""
    trusted = clients.new(10.0)
    trusted.trust()
    clients.begin("first", clients.new(), 2 * SLICE_SECONDS)
    clients.begin("other", clients.new())
    clients.begin("trusted", trusted)
    assert ["first", "trusted", "other"] == clients.join()


def test_client_that_loses_its_trust_waits_for_others(clients: Clients) -> None:
    """CPU time that it used before does not count."""
    once_trusted, other = clients.new(), clients.new()
    assert once_trusted.try_start()
    once_trusted.trust()
    work(2 * SLICE_SECONDS)
    once_trusted.distrust()
    once_trusted.stop()
    other._used_seconds = SLICE_SECONDS
    clients.begin("first", clients.new(), 2 * SLICE_SECONDS)
    clients.begin("other", other)
    clients.begin("once trusted", once_trusted)
    clients.begin("new", clients.new())
    assert clients.join() == ["first", "new", "once trusted", "other"]


def test_connection_that_ends_while_waiting_affects_no_other(clients: Clients) -> None:
    """For example one that is ended to free memory."""
    clients.begin("first", clients.new(), 2 * SLICE_SECONDS)
    clients.begin("ended", clients.new())
    clients.begin("other", clients.new(1.0))
    gevent.spawn(clients.greenlets[1].kill)
    assert ["first", "other"] == clients.join()
