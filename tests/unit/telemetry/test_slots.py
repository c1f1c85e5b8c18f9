import errno
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

import pytest

from astralog.telemetry import slots
from astralog.telemetry.counters import (
    EMPTY,
    MAX_TOKENS,
    REJECTED_BY_TOKEN,
    Snapshot,
    Values,
    merge,
)
from astralog.telemetry.slots import HALF_BYTES, Slot, claim, open_shared_file
from tests.support.fake_system import BreakOs
from tests.support.programs import FORK_BESIDE_THREADS

ONE = Snapshot({("a",): 1}, {("t",): 10}, {("g",): 3})
TWO = Snapshot({("a",): 2, ("b",): 1}, {("t",): 9}, {("g",): 4})

pytestmark = pytest.mark.filterwarnings(FORK_BESIDE_THREADS)

FORK = multiprocessing.get_context("fork")


def work(fd: int, pipe: Connection) -> None:
    """Publish each snapshot that is received, and then send the number of the slot."""
    slot = claim(fd)
    while True:
        slot.publish(pipe.recv())
        pipe.send(slot.number)


class Worker:
    """Another worker in a separate process: locks exist only between processes."""

    def __init__(self, fd: int) -> None:
        self._pipe, end = FORK.Pipe()
        self._process = FORK.Process(target=work, args=(fd, end), daemon=True)
        self._process.start()

    def publish(self, snapshot: Snapshot) -> int:
        """Publish a snapshot, and return the number of the worker's slot."""
        self._pipe.send(snapshot)
        number: int = self._pipe.recv()
        return number

    def kill(self) -> None:
        """Kill the worker."""
        self._process.kill()
        self._process.join()


@pytest.fixture
def start_worker(fd: int) -> Iterator[Callable[[], Worker]]:
    """Return a function that starts workers that share the file."""
    workers: list[Worker] = []

    def start() -> Worker:
        workers.append(Worker(fd))
        return workers[-1]

    yield start
    for worker in workers:
        worker.kill()


# --- Several workers


def test_living_workers_are_added_up(fd: int, start_worker: Callable[[], Worker]) -> None:
    """Each has its own slot, and publishes all its counts again."""
    mine, other = claim(fd), start_worker()
    mine.publish(ONE)
    assert (0, 1) == (mine.number, other.publish(ONE))
    assert 1 == other.publish(TWO)
    assert merge([ONE, TWO]) == mine.merge_all()


def test_a_killed_worker_leaves_its_counts(fd: int, start_worker: Callable[[], Worker]) -> None:
    """They stay; its gauges do not."""
    mine, other = claim(fd), start_worker()
    other.publish(TWO)
    assert TWO == mine.merge_all()
    other.kill()
    assert TWO.without_gauges() == mine.merge_all()


def test_next_worker_continues_the_counts(fd: int, start_worker: Callable[[], Worker]) -> None:
    """It uses the dead one's slot, and the sum never falls."""
    mine, other = claim(fd), start_worker()
    number = other.publish(TWO)
    other.kill()
    heir = start_worker()
    for snapshot in (EMPTY, ONE):
        assert number == heir.publish(snapshot)
        assert merge([TWO.without_gauges(), snapshot]) == mine.merge_all()


def test_workers_that_come_and_go_leave_few_tokens(fd: int) -> None:
    """However many were rejected, the inherited counts are bounded."""
    for generation in range(4):
        counts: Values = {
            (REJECTED_BY_TOKEN, f"{generation}-{n}", "x"): 1 for n in range(MAX_TOKENS)
        }
        slot = Slot(fd, 0)
        slot.publish(Snapshot(counts, {}, {}))
    kept = slot.merge_all().counts
    assert 4 * MAX_TOKENS == sum(kept.values())
    assert len(kept) <= 2 * MAX_TOKENS + 1


def test_reading_a_free_slot_leaves_it_free(fd: int, start_worker: Callable[[], Worker]) -> None:
    """A scrape checks whether a slot has an owner, and does not become one."""
    mine, other = claim(fd), start_worker()
    other.publish(ONE)
    other.kill()
    mine.merge_all()
    assert 1 == start_worker().publish(ONE)


def test_reading_slots_keeps_the_own_slot(fd: int, start_worker: Callable[[], Worker]) -> None:
    """After a scrape a worker still owns its slot."""
    mine = claim(fd)
    mine.merge_all()
    assert 1 == start_worker().publish(ONE)


# --- Writes that are interrupted, or fail


@pytest.mark.parametrize("size", [0, 1, 8, 15, 16, 17, 40])
def test_half_a_write_is_not_read(fd: int, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """After a kill during a write, the write before counts until the next one."""
    mine = claim(fd)
    for snapshot in (merge([TWO, TWO]), ONE):
        mine.publish(snapshot)
    pwrite = os.pwrite
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:size], offset))
        mine.publish(TWO)
        assert ONE == mine.merge_all()
    mine.publish(TWO)
    assert TWO == mine.merge_all()


def test_a_scrape_never_goes_back(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value read during a write is not replaced by an older one."""
    mine = claim(fd)
    mine.publish(Snapshot({("a",): 1}, {}, {}))
    mine.publish(Snapshot({("a",): 2}, {}, {}))
    pread, pwrite = os.pread, os.pwrite

    def read_slowly(fd: int, size: int, offset: int) -> bytes:
        if offset == slots.SLOTS_OFFSET + HALF_BYTES:
            monkeypatch.setattr(os, "pread", pread)
            mine.publish(Snapshot({("a",): 3}, {}, {}))
            monkeypatch.setattr(
                os, "pwrite", lambda *write: pwrite(write[0], write[1][:16], write[2])
            )
            mine.publish(Snapshot({("a",): 4}, {}, {}))
        return pread(fd, size, offset)

    monkeypatch.setattr(os, "pread", read_slowly)
    assert {("a",): 3} == mine.merge_all().counts


def test_failed_write_raises(fd: int, break_os: BreakOs) -> None:
    """Others still see the last published snapshot, and later the next one."""
    mine = claim(fd)
    mine.publish(ONE)
    break_os("pwrite", errno.ENOSPC, times=1)
    with pytest.raises(OSError, match="No space"):
        mine.publish(TWO)
    assert ONE == mine.merge_all()
    mine.publish(TWO)
    assert TWO == mine.merge_all()


def test_snapshot_that_does_not_fit_raises(fd: int) -> None:
    """A slot never grows into the next one."""
    mine = claim(fd)
    mine.publish(ONE)
    with pytest.raises(OSError, match="a record takes"):
        mine.publish(Snapshot({("x" * HALF_BYTES,): 1}, {}, {}))
    assert ONE == mine.merge_all()
    largest = Snapshot({("x" * (HALF_BYTES - 100),): 1}, {}, {})
    for _ in range(2):
        mine.publish(largest)
        mine.publish(ONE)
    mine.publish(largest)
    assert largest == mine.merge_all()


def test_unchanged_snapshot_is_not_written(fd: int, break_os: BreakOs) -> None:
    """An idle worker only reads its own numbers."""
    mine = claim(fd)
    fault = break_os("pwrite", errno.ENOSPC, times=0)
    for snapshot in (ONE, ONE, TWO, TWO):
        mine.publish(snapshot)
    assert 2 == len(fault.calls)


def test_a_scrape_sees_whole_snapshots_in_their_order(fd: int) -> None:
    """In any interleaving with writes, the numbers are of one moment and never fall."""
    mine = claim(fd)
    is_over = threading.Event()

    def publish() -> None:
        count = 0
        while not is_over.is_set():
            count += 1
            mine.publish(Snapshot({("a",): count, ("b",) * 50: 2 * count}, {}, {}))

    thread = threading.Thread(target=publish)
    thread.start()
    seen = [mine.merge_all().counts for _ in range(2000)]
    is_over.set()
    thread.join()
    first = [counts.get(("a",), 0) for counts in seen]
    assert [2 * count for count in first] == [counts.get(("b",) * 50, 0) for counts in seen]
    assert first == sorted(first)
    assert 0 < len(set(first))


# --- From one master to the next


@pytest.mark.parametrize("passed", [None, "", "none", "-1", "0", "999999"])
def test_first_master_creates_the_file(passed: str | None) -> None:
    """An inherited value that is not the file is ignored and removed from the environment."""
    environ = {"OTHER": "x"} | ({slots.VARIABLE: passed} if passed is not None else {})
    fd = open_shared_file(environ)
    assert f"/memfd:{slots.NAME} (deleted)" == os.readlink(f"/proc/self/fd/{fd}")
    assert ({"OTHER": "x"}, 0) == (environ, os.fstat(fd).st_size)
    assert not os.get_inheritable(fd)
    os.close(fd)


def test_the_next_master_takes_the_file_over(fd: int) -> None:
    """It is the same file, which only that program inherits."""
    environ: dict[str, str] = {}
    slots.pass_on(fd, environ)
    assert os.get_inheritable(fd)
    assert fd == open_shared_file(environ)
    assert ({}, False) == (environ, os.get_inheritable(fd))
