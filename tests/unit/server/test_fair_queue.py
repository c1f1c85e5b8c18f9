"""Connections without a token use the worker in turns, the one that used least first."""

import os
import time
from collections.abc import Iterator

import gevent
import pytest
from gevent.socket import wait_read

from astralog.server import limits
from astralog.server.limits import SLICE_SECONDS, FairQueue, Flow


def work(seconds: float) -> None:
    """Use the worker without a pause."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


class Clients:
    """Clients that work in the turns of one queue, and the order in which they did."""

    def __init__(self) -> None:
        self.queue = FairQueue()
        self.served: list[str] = []
        self.greenlets: list[gevent.Greenlet] = []

    def begin(self, name: str, flow: Flow, seconds: float = 0.0, head_bytes: int = 0) -> None:
        """Have a client wait for its turn, and work that long in it."""

        def serve() -> None:
            flow.stop()
            if not flow.try_start():
                flow.wait(head_bytes)
            self.served.append(name)
            work(seconds)
            flow.stop()

        self.greenlets.append(gevent.spawn(serve))

    def flow(self, used_seconds: float = 0.0) -> Flow:
        """Return the flow of a client that has used the worker for so long."""
        flow = Flow(self.queue)
        flow._used_seconds = used_seconds
        return flow

    def join(self) -> list[str]:
        """Return who was served, in order, once all were."""
        gevent.joinall(self.greenlets, timeout=30, raise_error=True)
        return self.served


@pytest.fixture
def clients() -> Iterator[Clients]:
    """Return clients, all of which are gone at the end."""
    made = Clients()
    yield made
    gevent.killall(made.greenlets)


def test_a_client_alone_does_not_wait(clients: Clients) -> None:
    """Its work is begun at once, again and again."""
    flow = clients.flow()
    for _ in range(100):
        assert flow.try_start()
        flow.stop()


def test_whoever_has_used_least_goes_first(clients: Clients) -> None:
    """However long it was there before, and whatever comes meanwhile."""
    clients.begin("first", clients.flow(), 2 * SLICE_SECONDS)
    for name, used in (("much", 5.0), ("some", 1.0), ("none", 0.0), ("little", 0.1)):
        clients.begin(name, clients.flow(used))
    assert ["first", "none", "little", "some", "much"] == clients.join()


def test_work_is_counted(clients: Clients) -> None:
    """A client that worked waits for those who did not."""
    busy = clients.flow()
    clients.begin("busy", busy, 2 * SLICE_SECONDS)
    clients.join()
    clients.begin("first", clients.flow(), 2 * SLICE_SECONDS)
    clients.begin("busy again", busy)
    clients.begin("new", clients.flow())
    assert ["busy", "first", "new", "busy again"] == clients.join()


def test_a_small_request_goes_before_a_large_one(clients: Clients) -> None:
    """Of clients that have used nothing, those that will use less go first."""
    clients.begin("first", clients.flow(), 2 * SLICE_SECONDS)
    clients.begin("large", clients.flow(), head_bytes=16_000)
    clients.begin("small", clients.flow(), head_bytes=50)
    assert ["first", "small", "large"] == clients.join()


def test_what_was_used_fades(clients: Clients, monkeypatch: pytest.MonkeyPatch) -> None:
    """A health check that comes every second for days is not the one that used most."""
    monkeypatch.setattr(limits, "HALF_LIFE_SECONDS", 1e-6)
    steady = clients.flow(100.0)
    clients.begin("first", clients.flow(), 2 * SLICE_SECONDS)
    clients.begin("steady", steady)
    clients.begin("large", clients.flow(), head_bytes=16_000)
    assert ["first", "steady", "large"] == clients.join()


def test_sockets_are_polled_between_two_slices(clients: Clients) -> None:
    """Whoever waits for a socket is served though many have work to do."""
    reader, writer = os.pipe()

    def serve() -> None:
        wait_read(reader)
        clients.served.append("trusted")

    trusted = gevent.spawn(serve)
    gevent.sleep(0)
    for number in range(30):
        clients.begin(str(number), clients.flow(), SLICE_SECONDS / 2)
    clients.begin("last", clients.flow(1.0))
    os.write(writer, b"x")
    clients.join()
    trusted.join(5)
    os.close(reader)
    os.close(writer)
    assert "last" == clients.served[-1]
    assert clients.served.index("trusted") < 10


def test_long_work_pauses_for_others(clients: Clients) -> None:
    """As the reading of a body that nobody wants."""
    long = clients.flow()

    def serve() -> None:
        pause = long.share()
        for step in range(5):
            work(2 * SLICE_SECONDS)
            clients.served.append(f"step {step}")
            pause()

    clients.greenlets.append(gevent.spawn(serve))
    clients.begin("other", clients.flow())
    served = clients.join()
    assert served.index("other") <= 2


def test_a_trusted_client_never_waits(clients: Clients) -> None:
    """What it uses is its own share."""
    trusted = clients.flow(10.0)
    trusted.is_trusted = True
    clients.begin("first", clients.flow(), 2 * SLICE_SECONDS)
    clients.begin("other", clients.flow())
    clients.begin("trusted", trusted)
    assert ["first", "trusted", "other"] == clients.join()


def test_a_connection_that_ends_while_it_waits_leaves_the_others(clients: Clients) -> None:
    """As one that is ended for its memory."""
    clients.begin("first", clients.flow(), 2 * SLICE_SECONDS)
    clients.begin("ended", clients.flow())
    clients.begin("other", clients.flow(1.0))
    gevent.spawn(clients.greenlets[1].kill)
    assert ["first", "other"] == clients.join()
