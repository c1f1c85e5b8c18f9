"""Workers share connections by their loads, and do not wait for unresponsive workers."""

import os
from types import SimpleNamespace

import pytest

from astralog.server import balance
from astralog.server.balance import (
    ALONE_SECONDS,
    LEAVE_SECONDS,
    MOVED_TICKS,
    POLL_SECONDS,
    SILENT_SECONDS,
    TICK_SECONDS,
    Balance,
    Share,
)


class Clock:
    """The time and CPU time that the workers read."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.cpu = 0.0

    def monotonic(self) -> float:
        """Return the time."""
        return self.now

    def process_time(self) -> float:
        """Return the CPU time of the calling worker."""
        return self.cpu


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return the workers' clock."""
    made = Clock()
    times = SimpleNamespace(monotonic=made.monotonic, process_time=made.process_time)
    monkeypatch.setattr(balance, "time", times)
    return made


def start(count: int) -> tuple[Balance, list[Share]]:
    shared = Balance()
    workers = [shared.join() for _ in range(count)]
    for worker in workers:
        worker.start()
    return shared, workers


def tick(clock: Clock, workers: list[Share], *loads: float, ticks: int = 1) -> None:
    """Let the workers tick, after each has used some cores since its last tick."""
    for _ in range(ticks):
        clock.now += TICK_SECONDS
        for worker, load in zip(workers, loads, strict=True):
            clock.cpu = worker._cpu_seconds + load * TICK_SECONDS
            worker.tick()


def accept(clock: Clock, workers: list[Share], connections: int) -> list[int]:
    """Open connections one after another, each to the first worker that does not leave it."""
    taken = [0] * len(workers)
    for _ in range(connections):
        while True:
            turn = next((n for n, worker in enumerate(workers) if not worker.leaves()), None)
            if turn is not None:
                break
            clock.now += POLL_SECONDS
        workers[turn].opened()
        taken[turn] += 1
    return taken


def accept_slowly(clock: Clock, workers: list[Share], connections: int) -> list[int]:
    """Open idle connections with a long time between them."""
    totals = [0] * len(workers)
    for _ in range(connections):
        taken = accept(clock, workers, 1)
        totals = [a + b for a, b in zip(totals, taken, strict=True)]
        tick(clock, workers, *[0.0] * len(workers), ticks=20)
    return totals


def test_a_single_worker_leaves_nothing(clock: Clock) -> None:
    """There is no other worker."""
    _, workers = start(1)
    assert [100] == accept(clock, workers, 100)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_connections_that_come_at_once_are_shared_out(clock: Clock, count: int) -> None:
    """A few are shared evenly; many, nearly so."""
    _, workers = start(count)
    assert [4] * count == accept(clock, workers, 4 * count)
    taken = accept(clock, workers, 100 * count)
    assert max(taken) < 1.4 * min(taken)


def test_idle_connections_are_shared_out_by_their_number(clock: Clock) -> None:
    """However long the time between them."""
    _, workers = start(2)
    first, second = accept_slowly(clock, workers, 20)
    assert abs(first - second) <= 2


def test_a_connection_goes_to_the_worker_with_less_load(clock: Clock) -> None:
    """Regardless of the number of connections."""
    _, workers = start(2)
    accept(clock, workers[:1], 20)
    tick(clock, workers, 0.0, 0.8, ticks=20)
    assert [4, 0] == accept(clock, workers, 4)
    assert [1, 0] == accept(clock, workers[::-1], 1)[::-1]


def test_a_connection_that_has_ended_is_not_counted(clock: Clock) -> None:
    """Its worker gets connections as the others do."""
    _, workers = start(2)
    accept(clock, workers, 8)
    for _ in range(4):
        workers[1].closed(clock.now)
    tick(clock, workers, 0.0, 0.0, ticks=20)
    assert [0, 4] == accept_slowly(clock, workers, 4)


def test_connections_that_come_and_go_leave_no_load(clock: Clock) -> None:
    """After any number of short connections, the next ones are shared evenly."""
    _, workers = start(2)
    for _ in range(20):
        taken = accept(clock, workers, 8)
        assert [4, 4] == taken
        clock.now += 0.1
        for worker in workers:
            for _ in range(4):
                worker.closed(clock.now - 0.1)
        tick(clock, workers, 0.0, 0.0)


def test_short_connections_are_not_kept_waiting(clock: Clock) -> None:
    """Each worker accepts as many short connections as it can, and is balanced afterwards."""
    _, (_, busy) = start(2)
    busy.opened()
    for _ in range(2 * balance.MANY_SHORT):
        busy.closed(busy.opened())
    assert not busy.leaves()
    clock.now += 1.5
    busy.opened()
    assert busy.leaves()


def test_worker_that_does_not_accept_is_not_waited_for(clock: Clock) -> None:
    """A connection is left to it only for a moment, and the next ones not at all."""
    _, (idle, busy) = start(2)
    busy.opened()
    start_at = clock.now
    while busy.leaves():
        clock.now += POLL_SECONDS
    assert LEAVE_SECONDS <= clock.now - start_at < 2 * LEAVE_SECONDS
    for _ in range(10):
        assert not busy.leaves()
        busy.opened()
    clock.now += ALONE_SECONDS
    assert busy.leaves()
    assert not idle.leaves()


def test_each_connection_has_its_own_time(clock: Clock) -> None:
    """A worker that leaves a connection from time to time does not lose patience."""
    _, (idle, busy) = start(2)
    for _ in range(20):
        busy.opened()
        assert busy.leaves()
        clock.now += LEAVE_SECONDS / 2
        idle.tick()


@pytest.mark.parametrize("how", ["silent", "withdrawn", "left"])
def test_missing_worker_is_ignored(clock: Clock, how: str) -> None:
    """A worker that hangs, stops or has died."""
    shared, (gone, worker) = start(2)
    worker.opened()
    assert worker.leaves()
    if how == "silent":
        clock.now += SILENT_SECONDS
        worker.opened()
    elif how == "withdrawn":
        gone.withdraw()
    else:
        shared.leave(gone)
    assert not worker.leaves()


def test_a_new_worker_takes_the_place_of_one_that_has_ended(clock: Clock) -> None:
    """However often that happens, the places do not run out."""
    shared, workers = start(2)
    accept(clock, workers, 8)
    for _ in range(3 * balance.MAX_WORKERS):
        shared.leave(workers[0])
        workers[0] = shared.join()
    workers[0].start()
    assert workers[0].place <= 2
    assert [4, 0] == accept(clock, workers, 4)


def test_more_workers_than_places_are_served(clock: Clock) -> None:
    """The others share a place."""
    shared = Balance()
    workers = [shared.join() for _ in range(balance.MAX_WORKERS + 2)]
    assert workers[-1].place == workers[-2].place == balance.MAX_WORKERS


# Connections that go elsewhere


def moves(clock: Clock, loads: list[float], active: list[int]) -> list[int]:
    """Return how many connections each worker moves away at such loads."""
    _, workers = start(len(loads))
    tick(clock, workers, *loads, ticks=20)
    for worker in workers:
        worker._rest_ticks = 0
    tick(clock, workers, *loads)  # the first worker sees the last tick of the others
    for worker, count in zip(workers, active, strict=True):
        worker._active, worker._rest_ticks = count, 0
    tick(clock, workers, *loads)
    return [worker._moves for worker in workers]


@pytest.mark.parametrize(
    ("loads", "active", "expected"),
    [
        ([0.9, 0.0], [8, 0], [2, 0]),
        ([0.9, 0.0], [3, 0], [1, 0]),
        ([0.9, 0.5], [40, 20], [8, 0]),
        ([0.9, 0.5], [5, 3], [1, 0]),
        ([0.3, 0.9, 0.3], [3, 9, 3], [0, 2, 0]),
    ],
)
def test_a_busy_worker_sends_connections_to_an_idle_one(
    clock: Clock, loads: list[float], active: list[int], expected: list[int]
) -> None:
    """At most half of its excess, and not a large part of all at once."""
    assert expected == moves(clock, loads, active)


@pytest.mark.parametrize(
    ("loads", "active"),
    [
        ([0.9, 0.9], [8, 8]),
        ([0.9, 0.8], [8, 8]),
        ([0.9, 0.0], [1, 0]),  # the one connection would take its load along
        ([0.9, 0.45], [2, 1]),  # the loads would only change sides
        ([0.05, 0.0], [8, 0]),  # too little to matter
        ([0.9], [8]),
    ],
)
def test_no_connection_is_moved_without_gain(
    clock: Clock, loads: list[float], active: list[int]
) -> None:
    """A moved connection costs its client a new one."""
    assert [0] * len(loads) == moves(clock, loads, active)


def test_move_has_time_to_take_effect(clock: Clock) -> None:
    """The measured loads are a little late, and would cause the same move again."""
    _, workers = start(2)
    counts = []
    for _ in range(2 * MOVED_TICKS + 3):
        workers[0]._active = 8
        tick(clock, workers, 0.9, 0.0)
        counts.append(workers[0]._moves)
    first = counts.index(2)
    assert [2] + [0] * MOVED_TICKS + [2] == counts[first : first + MOVED_TICKS + 2]


def test_loads_are_shared_with_processes_that_are_forked() -> None:
    """A worker sees the loads of the others, although the master creates them."""
    shared = Balance()
    mine, theirs = shared.join(), shared.join()
    child = os.fork()
    if not child:
        for _ in range(5):
            theirs.opened()
        os._exit(0)
    os.waitpid(child, 0)
    assert not mine.leaves()
    assert theirs.leaves()
