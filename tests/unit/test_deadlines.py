"""Deadlines end waits that last too long, and no others; long computations yield."""

import time
from typing import Any

import gevent
import gevent.socket
import pytest
from gevent.event import Event

from astralog import deadlines
from astralog.deadlines import (
    ITEMS_PER_CHECK,
    TIME_SLICE_SECONDS,
    Deadlines,
    TimeLimit,
    Yielding,
    hub_time,
    in_runs,
    in_turns,
    yield_if_due,
)


class Late(Exception):
    pass


def test_a_wait_that_lasts_too_long_is_ended() -> None:
    """The exception is raised in the waiting greenlet, and not early."""
    waits = Deadlines(lambda: 0.2, Late)
    started_at = time.monotonic()
    with pytest.raises(Late), waits:
        gevent.sleep(10)
    assert 0.2 <= time.monotonic() - started_at < 5


def test_finished_wait_is_not_ended() -> None:
    """A greenlet may take any time after its wait."""
    waits = Deadlines(lambda: 0.05, Late)
    with waits:
        gevent.sleep(0)
    gevent.sleep(0.3)


def test_waits_of_many_greenlets_end_one_by_one() -> None:
    """Each wait has its own deadline, counted from its start."""
    waits = Deadlines(lambda: 0.3, Late)
    ended: list[int] = []

    def wait(number: int) -> None:
        gevent.sleep(0.25 * number)
        try:
            with waits:
                gevent.sleep(10)
        except Late:
            ended.append(number)

    greenlets = [gevent.spawn(wait, number) for number in (2, 0, 1)]
    gevent.joinall(greenlets, timeout=10)
    assert [0, 1, 2] == ended


def test_wait_that_ends_at_the_last_moment_is_not_ended() -> None:
    """A wait that ends between its deadline and the exception continues without it."""
    waits = Deadlines(lambda: deadlines.POLL_SECONDS / 2, Late)
    came = Event()
    done = []

    def wait() -> None:
        with waits:
            came.wait()
        gevent.sleep(0.3)
        done.append(True)

    greenlet = gevent.spawn(wait)
    gevent.sleep(0)
    [(waiting, since)] = waits._waiting.items()
    came.set()
    gevent.get_hub().loop.run_callback(waits._end, waiting, since)  # after the event's own callback
    greenlet.join(timeout=10)
    assert [True] == done


def test_the_longest_wait_is_ended_at_once() -> None:
    """The wait that began first is ended, unless it has finished by then."""
    waits = Deadlines(lambda: 10, Late)
    assert not waits
    assert waits.longest_since == float("inf")
    released = [Event(), Event(), Event()]
    ended: list[int] = []

    def wait(number: int) -> None:
        try:
            with waits:
                released[number].wait()
        except Late:
            ended.append(number)

    greenlets = [gevent.spawn(wait, number) for number in range(3)]
    gevent.sleep(0.01)
    assert waits.longest_since <= time.monotonic()
    waits.end_longest()
    gevent.sleep(0)
    assert ended == [0]
    waits.end_longest()
    released[1].set()
    gevent.sleep(0)
    waits.end_longest()
    gevent.joinall(greenlets, timeout=5)
    assert ended[:1] == [0]
    assert 2 in ended
    assert not waits


def test_calls_at_the_same_time_end_different_waits() -> None:
    """Each ends one more, the longest first."""
    waits = Deadlines(lambda: 10, Late)
    ended: list[int] = []

    def wait(number: int) -> None:
        try:
            with waits:
                Event().wait()
        except Late:
            ended.append(number)

    greenlets = [gevent.spawn(wait, number) for number in range(3)]
    gevent.sleep(0.01)
    gevent.joinall([gevent.spawn(waits.end_longest) for _ in range(2)], timeout=5)
    assert ended == [0, 1]
    waits.end_longest()
    assert not waits
    gevent.joinall(greenlets, timeout=5)
    assert ended == [0, 1, 2]


def test_a_wait_that_succeeds_in_the_next_poll_is_not_ended() -> None:
    """Its data has arrived, and the hub was too busy to read it."""
    waits = Deadlines(lambda: 10, Late)
    client, server = gevent.socket.socketpair()
    received: list[bytes] = []

    def wait() -> None:
        with waits:
            received.append(server.recv(1))

    with client, server:
        greenlet = gevent.spawn(wait)
        gevent.sleep(0.01)
        client.send(b"a")
        waits.end_longest()
        greenlet.join(timeout=5)
    assert received == [b"a"]


def test_time_limit_ends_a_block_without_an_error() -> None:
    """Of two nested limits, each ends its own block."""
    reached = []
    with TimeLimit(5):
        with TimeLimit(0.01):
            gevent.sleep(5)
            reached.append("after the sleep")
        reached.append("after the inner one")
    with TimeLimit(0.01):
        with TimeLimit(5):
            gevent.sleep(5)
        reached.append("after the one that was not over")
    assert ["after the inner one"] == reached


def test_a_limit_that_is_not_reached_does_nothing() -> None:
    """It never acts after its block, and does not hide errors of the block."""
    with TimeLimit(0.01):
        pass
    with pytest.raises(ValueError, match="oops"), TimeLimit(0.01):
        raise ValueError("oops")
    gevent.sleep(0.03)


def compute(seconds: float) -> None:
    """Use the CPU for some seconds."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def test_work_yields_after_its_time_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pause receives the seconds worked, and counting starts again after it."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    pauses: list[float] = []

    def pause(worked: float) -> None:
        nonlocal now
        pauses.append(worked)
        now += 1000

    work = Yielding(5, pause)
    now += 5
    work.check()
    assert [] == pauses
    now += 1
    work.check()
    work.check()
    assert [6] == pauses
    now += 7
    work.check()
    assert [6, 7] == pauses


@pytest.mark.slow
def test_greenlets_share_their_time() -> None:
    """A hundred greenlets with short computations do not delay a socket by their sum."""
    reader, writer = gevent.socket.socketpair()
    worked = 0

    def work() -> None:
        nonlocal worked
        compute(TIME_SLICE_SECONDS / 2)
        worked += 1
        yield_if_due()
        gevent.sleep(0)

    with reader, writer:
        greenlets = [gevent.spawn(work) for _ in range(100)]
        writer.send(b"x")
        reader.recv(1)
        assert worked < 50
        gevent.joinall(greenlets, raise_error=True)


@pytest.mark.parametrize(
    "walk", [in_turns, lambda items: [i for run in in_runs(items) for i in run]]
)
def test_items_come_in_their_order(monkeypatch: pytest.MonkeyPatch, walk: Any) -> None:
    """Every item is yielded once, in order, and other greenlets run between slices."""
    pauses: list[float] = []
    monkeypatch.setattr(hub_time, "work_seconds", -1)
    monkeypatch.setattr(gevent, "sleep", pauses.append)
    for count in (0, 1, ITEMS_PER_CHECK, 2 * ITEMS_PER_CHECK + 1):
        pauses.clear()
        assert list(range(count)) == list(walk(range(count)))
        assert -(-count // ITEMS_PER_CHECK) == len(pauses)
