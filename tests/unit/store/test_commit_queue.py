import errno
import gc
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import GreenletExit

from astralog.errors import STORAGE_FAILED, Cause, Rejection, storage_error
from astralog.settings import Settings
from astralog.store import commit_queue, writer
from astralog.store.commit_queue import CommitQueue
from astralog.store.forward_state import CURSOR_NAME, encode_fact
from astralog.store.housekeeper import POLL_SECONDS, Housekeeper
from astralog.store.keys.claims import Claim, Key
from astralog.store.queue import GROUP_BYTES, Batch, QueuedBatch
from astralog.store.writer import Storage
from astralog.telemetry.counters import Counters
from astralog.threads import DiskThreads
from tests.support.fake_system import BreakOs, Disk
from tests.support.greenlets import wait_until
from tests.support.segment_files import stored
from tests.unit.store.segments import name_of, plain

#: Seconds to wait for what should come at once; an upper bound that a slow machine needs.
STORAGE_FULL = storage_error(OSError(errno.ENOSPC, ""))

TIMEOUT_SECONDS = 10


class Gate:
    """A storage that records its commit groups, and makes them wait while it is closed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.groups: list[list[bytes]] = []
        self._opened = threading.Event()
        self._opened.set()
        store = Storage.store

        def store_behind_gate(storage: Storage, buffers: Sequence[bytes]) -> Cause | None:
            self.groups.append(list(buffers))
            assert self._opened.wait(TIMEOUT_SECONDS)
            return store(storage, buffers)

        monkeypatch.setattr(Storage, "store", store_behind_gate)

    def close(self) -> None:
        self._opened.clear()

    def open(self) -> None:
        self._opened.set()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made = Gate(monkeypatch)
    yield made
    made.open()


@pytest.fixture(autouse=True)
def short_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the pause of the drain after a failure."""
    for module in (commit_queue, writer):
        monkeypatch.setattr(module, "MAINTENANCE_SECONDS", 0.05)


@pytest.fixture
def lasting_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the error of a storage until the next commit, however slow the test is."""
    monkeypatch.setattr(Storage, "is_maintenance_due", lambda storage: False)


@pytest.fixture
def make_queue(settings: Settings) -> Iterator[Callable[..., CommitQueue]]:
    """Return a factory of queues, which are stopped at the end and must have freed everything."""
    made: list[CommitQueue] = []

    def make(**changes: object) -> CommitQueue:
        made.append(CommitQueue(replace(settings, **changes), Counters().store))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for queue in made:
        queue.stop(TIMEOUT_SECONDS)
        assert 0 == reserved(queue)


@pytest.fixture
def queue(make_queue: Callable[..., CommitQueue]) -> CommitQueue:
    return make_queue()


def reserved(queue: CommitQueue) -> int:
    return queue.budget.reserved


def line(number: int, size: int = 0) -> bytes:
    return b'{"n":%d,"x":"%s"}\n' % (number, b"x" * size)


def commit(queue: CommitQueue, lines: bytes, claim: Claim | None = None) -> Rejection | None:
    """Commit a batch as a request does; return its rejection, or None if it is stored."""
    try:
        with closing(queue.admit()) as reservation:
            reservation.resize(len(lines))
            queue.commit(Batch(lines, lines.count(b"\n")), reservation, claim)
    except Rejection as rejection:
        return rejection
    return None


def commit_later(queue: CommitQueue, lines: bytes) -> "gevent.Greenlet[..., Rejection | None]":
    return gevent.spawn(commit, queue, lines)


def limit_waits(queue: CommitQueue, seconds: float) -> None:
    """Limit the waits for a commit, from now on, of all batches."""
    queue._batches._timeout_seconds = seconds
    for queued in queue._batches._waiting:
        queued.deadline = time.monotonic() + seconds


def result(greenlet: "gevent.Greenlet[..., Rejection | None]") -> str | None:
    """Return the code of a batch's rejection, or None if it was stored."""
    rejection = greenlet.get(timeout=TIMEOUT_SECONDS)
    return rejection.code if rejection else None


# --- Commit


def test_a_batch_is_on_disk_when_its_commit_returns(queue: CommitQueue, tmp_path: Path) -> None:
    """The first batch starts the queue."""
    assert commit(queue, line(1)) is None
    assert line(1) == stored(tmp_path)
    assert commit(queue, line(2) + line(3)) is None
    assert line(1) + line(2) + line(3) == stored(tmp_path)
    assert 0 == reserved(queue)


def test_an_empty_batch_needs_no_disk(queue: CommitQueue, tmp_path: Path) -> None:
    """A batch without lines is stored by doing nothing."""
    assert commit(queue, b"") is None
    assert [] == list(tmp_path.iterdir())


def test_batches_that_queue_up_are_stored_in_one_commit_group(
    queue: CommitQueue, gate: Gate, tmp_path: Path
) -> None:
    """Batches that wait for the disk are written and synced together, in order."""
    gate.close()
    greenlets = [commit_later(queue, line(0))]
    wait_until(lambda: gate.groups)
    greenlets += [commit_later(queue, line(number)) for number in range(1, 6)]
    gevent.sleep(0.01)
    assert 1 == len(gate.groups)
    assert not any(greenlet.ready() for greenlet in greenlets)
    gate.open()
    assert [None] * 6 == [result(greenlet) for greenlet in greenlets]
    assert [[line(0)], [line(number) for number in range(1, 6)]] == gate.groups
    assert b"".join(map(line, range(6))) == stored(tmp_path)


def test_a_commit_group_is_bounded(queue: CommitQueue, gate: Gate, tmp_path: Path) -> None:
    """Batches beyond its bytes wait for the next group."""
    size = GROUP_BYTES // 3
    gate.close()
    greenlets = [commit_later(queue, line(0))]
    wait_until(lambda: gate.groups)
    greenlets += [commit_later(queue, line(number, size)) for number in range(1, 8)]
    gevent.sleep(0.01)
    gate.open()
    assert {None} == {result(greenlet) for greenlet in greenlets}
    assert [1, 3, 3, 1] == [len(group) for group in gate.groups]
    assert 8 == stored(tmp_path).count(b"\n")


def test_several_writers_store_at_once(
    make_queue: Callable[..., CommitQueue], gate: Gate, tmp_path: Path
) -> None:
    """While the first writer waits, a second one stores batches in its own segment."""
    queue = make_queue(writers=2)
    gate.close()
    greenlets = []
    for number in range(2):
        greenlets.append(commit_later(queue, line(number)))
        wait_until(lambda: len(gate.groups) == len(greenlets))
    gate.open()
    assert [None, None] == [result(greenlet) for greenlet in greenlets]
    assert [line(0), line(1)] == sorted(p.read_bytes() for p in tmp_path.glob("*.open"))


def test_orphaned_segments_are_recovered_at_the_start(queue: CommitQueue, tmp_path: Path) -> None:
    """Segments without a writer are truncated after their last complete line and sealed."""
    (tmp_path / "20260101T000000.000000Z-1.ndjson.open").write_bytes(line(1) + b"torn")
    queue.start()
    wait_until(lambda: list(tmp_path.glob("*.ndjson")))
    assert line(1) == stored(tmp_path)


# --- Rejections of the storage


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, "storage_full"), (errno.EIO, "storage_failed")]
)
@pytest.mark.usefixtures("lasting_error")
def test_a_commit_group_that_cannot_be_stored_rejects_each_of_its_batches(
    queue: CommitQueue, gate: Gate, break_os: BreakOs, tmp_path: Path, number: int, code: str
) -> None:
    """Every batch is rejected with the cause, and none is on disk."""
    gate.close()
    greenlets = [commit_later(queue, line(0))]
    wait_until(lambda: gate.groups)
    greenlets += [commit_later(queue, line(1)), commit_later(queue, line(2))]
    gevent.sleep(0.01)
    break_os("writev", number, times=2)
    gate.open()
    assert [code] * 3 == [result(greenlet) for greenlet in greenlets]
    assert b"" == stored(tmp_path)
    assert 0 == reserved(queue)
    assert code == queue.unavailable()
    rejection = commit(queue, line(3))
    assert rejection is not None
    assert code == rejection.code
    assert "nothing was stored" in rejection.message
    assert 2 == len(gate.groups)


@pytest.mark.usefixtures("lasting_error")
@pytest.mark.parametrize("is_admitted", [True, False])
def test_rejection_names_the_resource(
    queue: CommitQueue, break_os: BreakOs, tmp_path: Path, is_admitted: bool
) -> None:
    """A used-up quota is not a full disk, also for requests rejected afterwards."""
    break_os("writev", errno.EDQUOT, times=1)
    rejection = commit(queue, line(1))
    if not is_admitted:
        with pytest.raises(Rejection) as rejected:
            queue.admit()
        rejection = rejected.value
    assert rejection is not None
    assert rejection.code == "storage_full"
    assert rejection.message == "The disk quota is used up; nothing was stored; retry later."
    assert stored(tmp_path) == b""


def test_requests_are_admitted_again_when_the_disk_has_room(
    make_queue: Callable[..., CommitQueue], disk: Disk, tmp_path: Path
) -> None:
    """While the disk is full nothing is admitted, and the drain notices that it has room."""
    queue = make_queue(min_free_bytes=1000)
    disk.free = 0
    assert result(commit_later(queue, line(1))) == "storage_full"
    with pytest.raises(Rejection) as rejected:
        queue.admit()
    assert "storage_full" == rejected.value.code
    disk.free = 1 << 40
    wait_until(lambda: queue.unavailable() is None)
    assert commit(queue, line(2)) is None
    assert line(2) == stored(tmp_path)


def test_one_writer_in_error_does_not_reject_requests(
    make_queue: Callable[..., CommitQueue],
) -> None:
    """Requests are rejected only if no writer can store."""
    queue = make_queue(writers=2)
    first, second = queue.storages
    first.error = STORAGE_FAILED
    assert queue.unavailable() is None
    second.error = STORAGE_FULL
    assert queue.unavailable() in ("storage_failed", "storage_full")
    first.error = second.error = None


def test_a_fault_of_the_storage_does_not_kill_the_drain(
    queue: CommitQueue,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An unexpected error rejects its batches and is logged, and the drain continues."""

    def fail(storage: Storage, buffers: Sequence[bytes]) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "store", fail)
        assert "storage_failed" == result(commit_later(queue, line(1)))
    assert 0 == reserved(queue)
    assert None is result(commit_later(queue, line(2)))
    assert line(2) == stored(tmp_path)
    (record,) = [record for record in caplog.records if record.exc_info]
    assert logging.ERROR == record.levelno


# --- The commit timeout


def test_a_batch_that_no_writer_took_is_dropped_at_the_timeout(
    queue: CommitQueue, gate: Gate, tmp_path: Path
) -> None:
    """Its client may send it again: it is never stored afterwards."""
    gate.close()
    taken = commit_later(queue, line(1))
    wait_until(lambda: gate.groups)
    limit_waits(queue, 0.1)
    waiting = [commit_later(queue, line(2)), commit_later(queue, line(3))]
    for greenlet in waiting:
        rejection = greenlet.get(timeout=TIMEOUT_SECONDS)
        assert rejection is not None
        assert "commit_timeout" == rejection.code
        assert "the batch was not stored" in rejection.message
        assert "0.1 seconds" in rejection.message
    rejection = taken.get(timeout=TIMEOUT_SECONDS)
    assert rejection is not None
    assert "commit_timeout" == rejection.code
    assert "the batch may still be stored" in rejection.message
    limit_waits(queue, TIMEOUT_SECONDS)
    gate.open()
    assert result(commit_later(queue, line(4))) is None
    queue.stop(TIMEOUT_SECONDS)
    assert line(1) + line(4) == stored(tmp_path)
    assert 0 == reserved(queue)


def test_timed_out_batch_is_dropped_before_its_response(
    queue: CommitQueue,
    settings: Settings,
    gate: Gate,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A writer that runs between the decision and the response does not store it."""
    gate.close()
    commit_later(queue, line(1))
    wait_until(lambda: gate.groups)
    limit_waits(queue, 0.5)
    waiting = commit_later(queue, line(2))
    gevent.sleep(0)
    time.sleep(0.6)  # nothing else runs, so that the timer is late
    monkeypatch.setattr(gevent, "idle", queue._batches.expire_waits)
    gate.open()
    queue.drain_once(Storage(settings))
    rejection = waiting.get(timeout=TIMEOUT_SECONDS)
    assert rejection is not None
    assert "the batch was not stored" in rejection.message
    assert line(2) not in stored(tmp_path)


def test_a_clock_that_jumps_ends_no_wait(
    queue: CommitQueue, gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Timeouts do not depend on the wall clock."""
    gate.close()
    greenlets = [commit_later(queue, line(0))]
    wait_until(lambda: gate.groups)
    greenlets.append(commit_later(queue, line(1)))
    gevent.sleep(0.01)
    now = time.time()
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now + 3600)
        queue._batches.expire_waits()
    gate.open()
    assert [None, None] == [result(greenlet) for greenlet in greenlets]
    assert line(0) + line(1) == stored(tmp_path)


def test_a_batch_that_a_writer_took_is_charged_until_it_is_stored(
    queue: CommitQueue, gate: Gate
) -> None:
    """Its bytes are in memory after its client left; those of a dropped batch are not."""
    gate.close()
    taken = commit_later(queue, line(1, 10_000))
    wait_until(lambda: gate.groups)
    limit_waits(queue, 0.05)
    dropped = commit_later(queue, line(2, 50_000))
    assert ["commit_timeout"] * 2 == [result(taken), result(dropped)]
    assert 10_000 < reserved(queue) < 20_000
    gate.open()
    wait_until(lambda: not reserved(queue))


@pytest.mark.parametrize("is_killed", [True, False])
def test_dropped_batch_is_freed(queue: CommitQueue, gate: Gate, is_killed: bool) -> None:
    """While the disk hangs, the batch of a disconnected client uses no memory."""
    gate.close()
    commit_later(queue, line(1))
    wait_until(lambda: gate.groups)
    limit_waits(queue, TIMEOUT_SECONDS if is_killed else 0.1)
    lines = line(2, 50_000)
    held = sys.getrefcount(lines)
    greenlet = commit_later(queue, lines)
    gevent.sleep(0.01)
    if is_killed:
        greenlet.kill()
    else:
        assert "commit_timeout" == result(greenlet)
    del greenlet

    def is_let_go_of() -> bool:
        gc.collect()
        return held == sys.getrefcount(lines)

    wait_until(is_let_go_of)


@pytest.mark.parametrize("is_taken", [True, False])
def test_a_client_that_is_gone_leaves_nothing_behind(
    queue: CommitQueue, gate: Gate, tmp_path: Path, is_taken: bool
) -> None:
    """A killed request releases its bytes; only a batch that a writer took is stored."""
    gate.close()
    greenlet = commit_later(queue, line(1))
    wait_until(lambda: gate.groups)
    if not is_taken:
        waiting = commit_later(queue, line(2))
        gevent.sleep(0.01)
        waiting.kill()
    else:
        greenlet.kill()
    gate.open()
    queue.stop(TIMEOUT_SECONDS)
    assert line(1) == stored(tmp_path)
    assert 0 == reserved(queue)


@pytest.mark.parametrize("is_killed", [True, False])
def test_dropped_batch_releases_its_key_once(
    queue: CommitQueue,
    gate: Gate,
    monkeypatch: pytest.MonkeyPatch,
    is_killed: bool,
) -> None:
    """A stop does not release it a second time, so the request that still holds it keeps it."""
    if is_killed:  # or a check for waits may take it out of the queue before the stop
        monkeypatch.setattr("astralog.store.queue.OVERDUE_SECONDS", TIMEOUT_SECONDS)
    unlocked: list[Key] = []
    claim = Claim(Key("name", b"", b""), 0, unlocked.append)
    gate.close()
    commit_later(queue, line(1, 100))
    wait_until(lambda: gate.groups)
    limit_waits(queue, TIMEOUT_SECONDS if is_killed else 0.05)
    reserved_by_first = reserved(queue)
    dropped = gevent.spawn(commit, queue, line(2, 50_000), claim)
    gevent.sleep(0.01)
    if is_killed:
        dropped.kill()
    else:
        assert "commit_timeout" == result(dropped)
    queue.stop(0.05)
    assert reserved_by_first == reserved(queue)
    assert [] == unlocked
    claim.release()
    assert [claim.key] == unlocked
    gate.open()
    wait_until(lambda: not reserved(queue))


def test_batches_that_are_dropped_do_not_pile_up(queue: CommitQueue, gate: Gate) -> None:
    """While the disk hangs, clients may retry again and again: the queue keeps none of them."""
    gate.close()
    commit_later(queue, line(0))
    wait_until(lambda: gate.groups)
    limit_waits(queue, 0.05)
    for number in range(6):
        assert "commit_timeout" == result(commit_later(queue, line(number)))
    gc.collect()
    assert 3 > sum(type(thing) is QueuedBatch for thing in gc.get_objects())


def test_fault_of_the_drain_rejects_its_batches(
    queue: CommitQueue, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A batch that was dequeued and not passed to the storage is answered and freed."""
    call = DiskThreads.call

    def fail_once(threads: DiskThreads, function: Any, *args: Any) -> Any:
        if function.__name__ != "store":
            return call(threads, function, *args)
        monkeypatch.setattr(DiskThreads, "call", call)
        raise MemoryError

    monkeypatch.setattr(DiskThreads, "call", fail_once)
    assert "storage_failed" == result(commit_later(queue, line(1)))
    assert 0 == reserved(queue)
    assert result(commit_later(queue, line(2))) is None
    assert "drain failed; it is retried" in caplog.messages


def test_a_fault_before_a_batch_is_taken_leaves_it_in_the_queue(
    queue: CommitQueue, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is stored with the next commit group."""
    idle = gevent.idle

    def fail_once() -> None:
        monkeypatch.setattr(gevent, "idle", idle)
        raise MemoryError

    monkeypatch.setattr(gevent, "idle", fail_once)
    assert result(commit_later(queue, line(1))) is None
    assert line(1) == stored(tmp_path)


def test_a_fault_of_the_housekeeping_does_not_end_it(
    queue: CommitQueue,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An unexpected error is logged, and the next step follows."""

    def fail(housekeeper: Housekeeper) -> float:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(Housekeeper, "step", fail)
        queue.start()
        wait_until(lambda: "housekeeping failed; it is retried" in caplog.messages)
    assert "Traceback" not in capsys.readouterr().err  # where no log limits their number
    wait_until(lambda: queue.keep_house_once() and queue.housekeeper.disk_usage)


def test_housekeeping_closes_the_files_of_a_failing_disk(queue: CommitQueue) -> None:
    """The disk can be unmounted while the service rejects batches."""
    wait_until(lambda: queue.keep_house_once() and queue.housekeeper.disk_usage)
    queue.storages[0].error = STORAGE_FAILED
    queue.keep_house_once()
    assert queue.housekeeper.disk_usage is None
    queue.storages[0].error = STORAGE_FULL
    wait_until(lambda: queue.keep_house_once() and queue.housekeeper.disk_usage)


def test_a_stopped_queue_leaves_the_directory_to_another(
    queue: CommitQueue, make_queue: Callable[..., CommitQueue]
) -> None:
    """Another process becomes the housekeeper while this one still runs."""
    other = make_queue()
    wait_until(lambda: queue.keep_house_once() and queue.housekeeper.disk_usage)
    other.keep_house_once()
    assert other.housekeeper.disk_usage is None
    queue.stop(TIMEOUT_SECONDS)
    wait_until(lambda: other.keep_house_once() and other.housekeeper.disk_usage)


# --- The bounded queue


def test_full_queue_rejects(
    make_queue: Callable[..., CommitQueue],
    gate: Gate,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It rejects at once and logs once; the queued batches are stored."""
    queue = make_queue(queue_bytes=100_000, max_body_bytes=100_000)
    gate.close()
    greenlets = [commit_later(queue, line(number, 30_000)) for number in range(3)]
    wait_until(lambda: reserved(queue) > 90_000)
    for number in (3, 4, 5):
        rejection = commit(queue, line(number, 30_000))
        assert rejection is not None
        assert "queue_full" == rejection.code
    assert "queue_full" == queue.unavailable()
    gate.open()
    assert [None] * 3 == [result(greenlet) for greenlet in greenlets]
    assert queue.unavailable() is None
    assert b"".join(line(number, 30_000) for number in range(3)) == stored(tmp_path)
    lines = [r.getMessage() for r in caplog.records if r.name == "astralog.store.memory_budget"]
    assert ["write queue full", "write queue has room again"] == [
        text[: text.find(":")] for text in lines
    ]
    assert "3 requests were rejected" in lines[1]


def test_small_request_is_admitted_after_a_large_one_was_rejected(
    make_queue: Callable[..., CommitQueue], gate: Gate
) -> None:
    """A full queue does not reject requests that still fit."""
    queue = make_queue(queue_bytes=100_000, max_body_bytes=100_000)
    gate.close()
    first = commit_later(queue, line(0, 80_000))
    wait_until(lambda: reserved(queue) > 80_000)
    rejection = commit(queue, line(1, 50_000))
    assert rejection is not None
    assert "queue_full" == rejection.code
    second = commit_later(queue, line(2, 100))
    gevent.sleep(0.01)
    gate.open()
    assert [None, None] == [result(first), result(second)]


# --- Stopping


def test_stop_stores_the_queue_and_seals(queue: CommitQueue, gate: Gate, tmp_path: Path) -> None:
    """No queued batch is lost, and no segment stays open."""
    gate.close()
    greenlets = [commit_later(queue, line(0))]
    wait_until(lambda: gate.groups)
    greenlets += [commit_later(queue, line(number)) for number in range(1, 4)]
    gevent.sleep(0.01)
    stop = gevent.spawn(queue.stop, TIMEOUT_SECONDS)
    gevent.sleep(0.01)
    assert "stopping" == queue.unavailable()
    gate.open()
    stop.get(timeout=TIMEOUT_SECONDS)
    assert [None] * 4 == [result(greenlet) for greenlet in greenlets]
    assert b"".join(map(line, range(4))) == stored(tmp_path, "*.ndjson")
    assert [] == list(tmp_path.glob("*.open"))


def test_a_stopped_queue_rejects(queue: CommitQueue, tmp_path: Path) -> None:
    """After the stop nothing is admitted or stored."""
    with closing(queue.admit()) as reservation:
        commit(queue, line(1))
        queue.stop(TIMEOUT_SECONDS)
        assert "stopping" == queue.unavailable()
        with pytest.raises(Rejection) as rejected:
            queue.commit(Batch(line(2), 1), reservation)
        assert "stopping" == rejected.value.code
    with pytest.raises(Rejection) as rejected:
        queue.admit()
    assert "stopping" == rejected.value.code
    assert line(1) == stored(tmp_path, "*.ndjson")
    assert 0 == reserved(queue)


def test_a_queue_that_never_started_stops(queue: CommitQueue, tmp_path: Path) -> None:
    """A stop needs no start, and may be repeated."""
    queue.stop(TIMEOUT_SECONDS)
    queue.stop(TIMEOUT_SECONDS)
    assert [] == list(tmp_path.iterdir())


def test_every_writer_seals_at_the_stop(
    make_queue: Callable[..., CommitQueue], gate: Gate, tmp_path: Path
) -> None:
    """All writers end with a sealed segment."""
    queue = make_queue(writers=3)
    gate.close()
    greenlets = []
    for number in range(3):
        greenlets.append(commit_later(queue, line(number)))
        wait_until(lambda: len(gate.groups) == len(greenlets))
    gate.open()
    assert [None] * 3 == [result(greenlet) for greenlet in greenlets]
    queue.stop(TIMEOUT_SECONDS)
    assert 3 == len(list(tmp_path.glob("*.ndjson")))
    assert [] == list(tmp_path.glob("*.open"))


def test_remaining_batches_are_rejected_at_the_stop(
    queue: CommitQueue, gate: Gate, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At its deadline the stop rejects the batches that no writer took, and logs it."""
    gate.close()
    taken = commit_later(queue, line(1))
    wait_until(lambda: gate.groups)
    waiting = commit_later(queue, line(2))
    gevent.sleep(0.01)
    queue.stop(0.05)
    assert "stopping" == result(waiting)
    assert any(message.startswith("stopped before all queued") for message in caplog.messages)
    gate.open()
    assert result(taken) is None
    assert line(1) == stored(tmp_path)
    assert 0 == reserved(queue)


def test_stop_logs_segments_that_are_not_sealed_in_time(
    queue: CommitQueue, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All batches are stored then, and none is said to be rejected."""
    may_close = threading.Event()
    close = Storage.close

    def close_late(storage: Storage) -> None:
        assert may_close.wait(TIMEOUT_SECONDS)
        close(storage)

    monkeypatch.setattr(Storage, "close", close_late)
    assert commit(queue, line(1)) is None
    queue.stop(0.05)
    may_close.set()
    expected = "stopped before all segments were sealed; the next start seals them"
    assert [expected] == [text for text in caplog.messages if text.startswith("stopped")]


@pytest.mark.parametrize(("url", "kept"), [("", []), ("http://127.0.0.1/logs", [plain("b")])])
def test_retention_spares_undelivered_segments(
    make_queue: Callable[..., CommitQueue], tmp_path: Path, url: str, kept: list[str]
) -> None:
    """With forwarding, undelivered segments stay beyond the size limit."""
    for name in ("a", "b"):
        (tmp_path / plain(name)).write_bytes(line(0))
    (tmp_path / CURSOR_NAME).write_bytes(encode_fact(f"done {name_of('a')}"))
    queue = make_queue(retain_bytes=1, clickhouse_url=url)
    wait_until(lambda: queue.keep_house_once() >= POLL_SECONDS)
    assert kept == [path.name for path in tmp_path.glob("*.ndjson")]


def test_failed_step_is_logged_and_the_loop_continues(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After a failed step the loop pauses and continues until it is stopped."""
    outcomes: list[float | BaseException] = [2.0, ValueError("odd"), 3.0, GreenletExit()]
    pauses: list[float] = []
    monkeypatch.setattr(gevent, "sleep", pauses.append)

    def step() -> float:
        outcome = outcomes.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    with pytest.raises(GreenletExit):
        commit_queue._run_forever(step, "a test's loop")
    assert pauses == [2.0, commit_queue.FAILED_SECONDS, 3.0]
    assert [record.getMessage() for record in caplog.records] == ["a test's loop"]
