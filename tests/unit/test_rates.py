"""Token buckets that processes share."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest

from astralog import rates
from astralog.errors import Rejection
from astralog.rates import BUCKETS, BURST_SECONDS, NEIGHBOURS, OWNER_BYTES, Rates
from astralog.tokens_file import Token, parse

RATE = 1000


class Clock:
    """A monotonic clock that a test sets."""

    def __init__(self) -> None:
        self.now = 5.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(rates, "time", clock)
    return clock


def token_of(text: str, options: str = "rate=1KB/s") -> Token:
    (token,) = parse(f"{text} {options}".encode(), "file")
    return token


ONE = token_of("one")


def wait_of(shared: Rates, token: Token = ONE) -> int:
    """Return the wait in seconds of a rejected batch, or 0 if the batch may be sent."""
    try:
        shared.check(token.digest, RATE)
    except Rejection as rejection:
        expected = "The token has used up its rate (0.001 MB/s); retry later."
        return rejection.retry_after if rejection.message == expected else -1
    return 0


def run_in_child(function: Callable[[], None]) -> None:
    """Run a function in a child process, and wait for its end."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


@contextmanager
def holder_of_the_lock(shared: Rates) -> Iterator[int]:
    """Yield the pid of a process that holds the lock until it is killed."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        shared._lock()
        os.write(write, b"x")
        signal.pause()
        os._exit(0)
    try:
        assert os.read(read, 1) == b"x"
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(read)
        os.close(write)


def test_bucket_holds_ten_seconds_and_refills_at_the_rate(clock: Clock) -> None:
    """The wait is exact: one second earlier is too early, and then a body may overdraw again."""
    shared = Rates()
    shared.charge(ONE.digest, RATE, RATE * 10 - 1)
    assert wait_of(shared) == 0
    shared.charge(ONE.digest, RATE, RATE * 5 + 1)
    assert wait_of(shared) == 6  # one byte more than five seconds
    clock.now += 4.9
    assert wait_of(shared) > 0
    clock.now += 0.2
    assert wait_of(shared) == 0


def test_bodies_that_arrive_together_overdraw_a_bucket_once(clock: Clock) -> None:
    """All of them began while the bucket was full, and the second one finds it empty."""
    shared = Rates()
    for _ in range(5):
        shared.check(ONE.digest, RATE)
    shared.charge(ONE.digest, RATE, RATE * 30)
    for _ in range(4):
        with pytest.raises(Rejection) as rejected:
            shared.charge(ONE.digest, RATE, RATE * 30)
        assert (rejected.value.code, rejected.value.retry_after) == ("rate_limited", 21)
    assert shared._lock()


def test_refund_takes_a_charge_back(clock: Clock) -> None:
    """A batch that the service could not store costs nothing, and is no credit later."""
    shared = Rates()
    shared.charge(ONE.digest, RATE, RATE * 12)
    shared.refund(ONE.digest, RATE, RATE * 12)
    shared.charge(ONE.digest, RATE, RATE * 9)
    shared.refund(ONE.digest, RATE, RATE * 9)
    clock.now += 100
    shared.refund(ONE.digest, RATE, RATE * 50)
    shared.charge(ONE.digest, RATE, RATE * 12)
    assert wait_of(shared) == 3


@pytest.mark.parametrize("rate", ["0.000000001KB/s", "999999999GB/s"])
def test_extreme_rates_are_kept(clock: Clock, rate: str) -> None:
    """An unused bucket accepts a batch at any rate."""
    shared, token = Rates(), token_of("one", f"rate={rate}")
    assert token.rate
    shared.charge(token.digest, token.rate, 1000)
    missing = 1000 / token.rate - BURST_SECONDS
    if missing < 0:
        shared.check(token.digest, token.rate)
    else:
        with pytest.raises(Rejection) as rejected:
            shared.check(token.digest, token.rate)
        assert rejected.value.retry_after == pytest.approx(missing, abs=1)


def test_unused_rate_is_not_saved_beyond_the_burst(clock: Clock) -> None:
    """After a day without batches, the bucket has ten seconds' worth."""
    shared = Rates()
    shared.charge(ONE.digest, RATE, RATE)
    clock.now += 86400
    shared.charge(ONE.digest, RATE, RATE * int(BURST_SECONDS))
    assert wait_of(shared) == 1


def test_tokens_do_not_share_a_bucket(clock: Clock) -> None:
    """Each of thousands of tokens has its own bucket."""
    shared = Rates()
    tokens = [token_of(f"token-{number}") for number in range(10_000)]
    for token in tokens:
        shared.charge(token.digest, RATE, RATE * 11)
    assert {wait_of(shared, token) for token in tokens} == {2}
    assert wait_of(shared) == 0


def test_fullest_bucket_is_replaced(clock: Clock) -> None:
    """With more tokens than buckets, those that sent least start with a full bucket."""
    shared = Rates()
    tokens = [
        replace(ONE, digest=(BUCKETS * number).to_bytes(OWNER_BYTES))
        for number in range(NEIGHBOURS + 1)
    ]
    for number, token in enumerate(tokens):
        shared.charge(token.digest, RATE, RATE * (20 - number if number < NEIGHBOURS else 30))
    waits = [wait_of(shared, token) for token in tokens]
    assert waits[-1] == 21
    assert waits[:3] == [11, 10, 9]
    assert BUCKETS > NEIGHBOURS


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_processes_share_a_rate_exactly(clock: Clock, processes: int) -> None:
    """Over a minute, the admitted bytes are the burst and the rate, to one body's size."""
    shared, size, admitted = Rates(), 100, 0

    def send(report: int) -> None:
        while not wait_of(shared):
            shared.charge(ONE.digest, RATE, size)
            os.write(report, b"x")

    for _ in range(6):
        read, write = os.pipe()
        for _ in range(processes):
            run_in_child(partial(send, write))
        os.close(write)
        with open(read, "rb") as file:
            admitted += len(file.read()) * size
        clock.now += 10
    assert admitted == pytest.approx(RATE * (10 + 50), rel=0.01)


class Interrupted(Rates):
    """Buckets of a process that another one interrupts between its read and its write."""

    interrupt: Callable[[], None] | None = None

    def _find(self, token: bytes, now: float) -> tuple[int, float]:
        found = super()._find(token, now)
        interrupt, self.interrupt = self.interrupt, None
        if interrupt:
            interrupt()
        return found


@pytest.mark.slow
def test_concurrent_charges_all_count(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that charges a bucket waits for another one that is charging it."""
    shared = Interrupted()
    shared.charge(ONE.digest, RATE, RATE)
    pids: list[int] = []

    def charge_elsewhere() -> None:
        pids.append(os.fork())
        if not pids[0]:
            monkeypatch.setattr(rates, "LOCK_ATTEMPTS", 10**9)
            shared.charge(ONE.digest, RATE, RATE)
            os._exit(0)
        until = time.monotonic() + 0.5  # without the lock, the other one needs less
        while time.monotonic() < until and os.waitpid(pids[0], os.WNOHANG) == (0, 0):
            time.sleep(0.01)

    shared.interrupt = charge_elsewhere
    shared.charge(ONE.digest, RATE, RATE)
    os.waitpid(pids[0], 0)
    assert shared._find(ONE.digest, clock.now)[1] == clock.now + 3


def test_dead_worker_leaves_no_lock(clock: Clock) -> None:
    """The kernel releases the lock, however the worker dies."""
    shared = Rates()
    with holder_of_the_lock(shared):
        assert not shared._lock()
    assert shared._lock()


def test_suspended_worker_blocks_no_other(clock: Clock) -> None:
    """A charge does not wait for a worker that was stopped while it held the lock."""
    shared = Rates()
    with holder_of_the_lock(shared) as pid:
        os.kill(pid, signal.SIGSTOP)
        shared.charge(ONE.digest, RATE, RATE * 11)
    assert wait_of(shared) == 2


def test_memory_is_allocated_at_the_start() -> None:
    """A page missing later would be a SIGBUS for the worker that writes to it."""
    shared = Rates()
    status = os.fstat(shared._fd)
    assert status.st_blocks * 512 >= status.st_size > 0
