"""Batches with keys, with failures of processes, disks and machines at every step."""

import errno
import fcntl
import itertools
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gevent.threadpool import ThreadPool

from astralog.errors import STORAGE_FAILED, Rejection
from astralog.settings import Settings
from astralog.store import segment, writer
from astralog.store.files import lock_byte
from astralog.store.keys import database, idempotency_keys
from astralog.store.keys.claims import make_key
from astralog.store.keys.database import Database, ranges_in
from astralog.store.keys.idempotency_keys import IdempotencyKeys
from astralog.store.segment import RECOVERY_BYTE, recover_file
from tests.support.fake_system import BreakOs
from tests.support.segment_files import stored
from tests.unit.store.keys.workers import (
    IN_USE,
    REPLAYED,
    STORED,
    TOKEN,
    Batch,
    Killed,
    Worker,
    kill_at,
    query,
)

A, B, C = b'{"m":"a1"}\n{"m":"a2"}\n', b'{"m":"b"}\n', b'{"m":"c"}\n'


@pytest.fixture
def make_worker(settings: Settings) -> Iterator[Callable[..., Worker]]:
    """Return a factory of workers on one data directory."""
    made: list[Worker] = []

    def make(**changes: object) -> Worker:
        made.append(Worker(replace(settings, **changes)))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for worker in filter(lambda worker: worker.is_alive, made):
        worker.storage.close()
        worker.kill()


@pytest.fixture
def worker(make_worker: Callable[..., Worker]) -> Worker:
    return make_worker()


def kill_while_storing(worker: Worker, key: str, lines: bytes) -> None:
    with pytest.raises(Killed):
        worker.send(key, lines)
    worker.kill()


# --- Without faults


def test_a_batch_is_stored_once(worker: Worker, tmp_path: Path) -> None:
    """Each further request is a replay, also among other batches."""
    assert STORED == worker.send("a", A)
    assert STORED == worker.send("b", B)
    assert [REPLAYED] * 3 == [worker.send("a", A), worker.send("b", B), worker.send("a", A)]
    assert A + B == stored(tmp_path)


def test_another_worker_knows_a_stored_batch(
    make_worker: Callable[..., Worker], tmp_path: Path
) -> None:
    """While the segment is written, and after it was sealed, removed or compressed."""
    one, two = make_worker(), make_worker()
    assert STORED == one.send("a", A)
    assert REPLAYED == two.send("a", A)
    assert "key_reused" == two.send("a", A, b"another body")
    one.storage.close()
    assert REPLAYED == two.send("a", A)
    (path,) = tmp_path.glob("*.ndjson")
    path.unlink()
    assert [REPLAYED] * 3 == [w.send("a", A) for w in (one, two, make_worker())]
    assert STORED == two.send("b", B)
    assert REPLAYED == one.send("b", B)
    assert B == stored(tmp_path)


def test_one_worker_has_a_key_at_a_time(make_worker: Callable[..., Worker], tmp_path: Path) -> None:
    """A second request is rejected, in any process, until the first one releases the key."""
    one, two = make_worker(), make_worker()
    claim = one.claim("a", A)
    assert (IN_USE, IN_USE) == (one.send("a", A), two.send("a", A))
    assert [STORED] == one.store(Batch(A, claim))
    assert IN_USE == two.send("a", A)
    claim.release()
    assert REPLAYED == two.send("a", A)
    assert A == stored(tmp_path)


def test_commit_group_may_contain_replays(worker: Worker, tmp_path: Path) -> None:
    """Batches that are already stored are left out."""
    assert STORED == worker.send("a", A)
    again, new = worker.claim("a", A), worker.claim("b", B)
    group = [Batch(C, None), Batch(A, again), Batch(B, new), Batch(C, None)]
    assert [STORED, REPLAYED, STORED, STORED] == worker.store(*group)
    new.release()
    again.release()
    assert A + C + B + C == stored(tmp_path)
    assert [REPLAYED, REPLAYED] == [worker.send("a", A), worker.send("b", B)]


# --- A process dies


@pytest.mark.parametrize("written", [0, 1, len(A) // 2, len(A) - 1])
def test_incomplete_lines_are_truncated_and_stored_again(
    make_worker: Callable[..., Worker],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    written: int,
) -> None:
    """Killed between the record and the last line, also after some of several lines."""
    one, two = make_worker(), make_worker()
    assert STORED == one.send_plain(B)
    kill_at(monkeypatch, "write", written)
    kill_while_storing(one, "a", A)
    assert [(len(B), len(B + A))] == query(tmp_path, "SELECT start, stop FROM keys")
    assert B + A[:written] == stored(tmp_path)
    assert STORED == two.send("a", A)
    assert B + A == stored(tmp_path)
    assert [REPLAYED, REPLAYED] == [two.send("a", A), make_worker().send("a", A)]


def test_complete_lines_count_without_a_response(
    make_worker: Callable[..., Worker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the sync of the lines: the next lookup syncs them, and it is a replay."""
    one, two = make_worker(), make_worker()
    kill_at(monkeypatch, "sync")
    kill_while_storing(one, "a", A)
    assert [REPLAYED, REPLAYED] == [two.send("a", A), make_worker().send("a", A)]
    assert [A] == [path.read_bytes() for path in tmp_path.glob("*.ndjson")]


def test_recovery_records_the_kept_size(
    make_worker: Callable[..., Worker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the segment is removed, truncated lines do not count as stored, and kept ones do."""
    one = make_worker()
    assert STORED == one.send("b", B)
    kill_at(monkeypatch, "write", len(A) // 2)
    kill_while_storing(one, "a", A)
    (path,) = tmp_path.glob("*.open")
    assert len(B) == recover_file(path)
    (sealed,) = tmp_path.glob("*.ndjson")
    assert [(sealed.name.removesuffix(".ndjson"), len(B))] == query(
        tmp_path, "SELECT name, size FROM segments"
    )
    sealed.unlink()
    two = make_worker()
    assert REPLAYED == two.send("b", B)
    assert STORED == two.send("a", A)
    assert A == stored(tmp_path)


def test_a_segment_that_never_had_a_line_does_not_count(
    make_worker: Callable[..., Worker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recovery removes an empty file; the record alone is not enough."""
    one = make_worker()
    kill_at(monkeypatch, "write")
    kill_while_storing(one, "a", A)
    (path,) = tmp_path.glob("*.open")
    assert 0 == recover_file(path)
    assert [] == list(tmp_path.glob("*.ndjson*"))
    assert STORED == make_worker().send("a", A)


@pytest.mark.parametrize("first_hole", [0, len(B), len(B) + 3, len(B) + len(A) - 1])
def test_after_a_power_cut_no_part_of_a_batch_is_kept(
    make_worker: Callable[..., Worker], tmp_path: Path, first_hole: int
) -> None:
    """Lost pages read as zeros; the lines after them are not kept either."""
    one = make_worker()
    for key, lines in (("b", B), ("a", A), ("c", C)):
        assert STORED == one.send(key, lines)
    one.kill()
    (path,) = tmp_path.glob("*.open")
    content = bytearray(path.read_bytes())
    content[first_hole] = 0
    path.write_bytes(content)
    two = make_worker()
    outcomes = [two.send(key, lines) for key, lines in (("c", C), ("a", A), ("b", B))]
    kept_b = first_hole >= len(B)
    assert [STORED, STORED, REPLAYED if kept_b else STORED] == outcomes
    assert sorted(A + B + C) == sorted(stored(tmp_path))
    assert stored(tmp_path) == (B if kept_b else b"") + C + A + (b"" if kept_b else B)


def test_segment_under_recovery_is_not_synced(
    make_worker: Callable[..., Worker],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    break_os: BreakOs,
) -> None:
    """A second sync could receive the error of the recovery's sync, and hide the loss."""
    one, two = make_worker(), make_worker()
    kill_at(monkeypatch, "sync")
    kill_while_storing(one, "a", A)
    syncs = break_os("fdatasync", errno.EIO, times=0)
    outcomes = []

    def look_meanwhile(directory: Path, segment: str, lock_seconds: float) -> list[tuple[int, int]]:
        outcomes.append(two.send("a", A))
        return ranges_in(directory, segment, lock_seconds)

    monkeypatch.setattr(idempotency_keys, "WAIT_SECONDS", 0.05)
    monkeypatch.setattr(segment, "ranges_in", look_meanwhile)
    (path,) = tmp_path.glob("*.open")
    assert len(A) == recover_file(path)
    assert ["storage_failed"] == outcomes
    assert [] == [file for file in syncs.calls if ".ndjson" in file]
    assert REPLAYED == two.send("a", A)


def test_retry_waits_for_a_recovery_on_a_slow_disk(
    make_worker: Callable[..., Worker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process recovers the segment with five syncs, of 0.7 s each."""
    one, two = make_worker(), make_worker()
    kill_at(monkeypatch, "sync")
    kill_while_storing(one, "a", A)
    (path,) = tmp_path.glob("*.open")
    slept = 0.0
    fd = os.open(path, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    lock_byte(fd, RECOVERY_BYTE)

    def sleep(seconds: float) -> None:
        nonlocal slept, fd
        slept += seconds
        if slept >= 5 * 0.7 and fd >= 0:
            os.close(fd)
            fd = -1
            recover_file(path)

    monkeypatch.setattr(idempotency_keys, "time", SimpleNamespace(monotonic=lambda: slept))
    monkeypatch.setattr(idempotency_keys, "block_thread", sleep)
    assert REPLAYED == two.send("a", A)
    assert A == stored(tmp_path)


def test_retry_waits_for_a_database_that_is_locked(
    make_worker: Callable[..., Worker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other recoveries open the database again and again, longer than one of them waits for it."""
    one, two = make_worker(), make_worker()
    kill_at(monkeypatch, "sync")
    kill_while_storing(one, "a", A)
    locked = [True] * 3

    def fail_at_first(directory: Path, segment: str, lock_seconds: float) -> list[tuple[int, int]]:
        if locked:
            locked.pop()
            raise OSError(errno.EBUSY, "keys.db is being opened for too long")
        return ranges_in(directory, segment, lock_seconds)

    monkeypatch.setattr(segment, "ranges_in", fail_at_first)
    assert REPLAYED == two.send("a", A)
    assert A == stored(tmp_path)


# --- The system or the disk fails


def test_first_batch_is_rejected_if_no_thread_can_be_started(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database is opened in a thread, with the first batch that has a key."""

    def fail(pool: ThreadPool) -> None:
        raise RuntimeError("can't start new thread")

    keys = IdempotencyKeys(settings)
    key = make_key(TOKEN, "00000000", "a", A, "")
    with monkeypatch.context() as patch:
        patch.setattr(ThreadPool, "_add_thread", fail)
        with pytest.raises(Rejection, match="No thread can be started") as rejected:
            keys.claim(key)
    assert rejected.value.code == "storage_failed"
    keys.claim(key).release()


def test_unexpected_error_of_the_opening_is_raised(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is logged as a failure of the request, and is no timeout of the disk."""

    def fail(database: Database) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Database, "open", fail)
    with pytest.raises(ZeroDivisionError):
        IdempotencyKeys(settings).claim(make_key(TOKEN, "00000000", "a", A, ""))


def fail_to_add(monkeypatch: pytest.MonkeyPatch, number: int, *, times: int = 1) -> None:
    """Let a number of commits of records fail."""
    add, left = Database.add, [number] * times

    def fail(self: Database, *arguments: Any) -> None:
        if left:
            raise OSError(left.pop(), os.strerror(number))
        add(self, *arguments)

    monkeypatch.setattr(Database, "add", fail)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, "storage_full"),
        (errno.EIO, "storage_failed"),
        (errno.EBUSY, "storage_failed"),
    ],
)
def test_without_a_record_only_batches_with_keys_are_rejected(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    """A database that cannot be written does not affect batches without a key."""
    claim = worker.claim("a", A)
    fail_to_add(monkeypatch, number)
    assert [code, STORED] == worker.store(Batch(A, claim), Batch(B, None))
    assert B == stored(tmp_path)
    assert worker.storage.error is None
    assert code == worker.send("b", B)


def test_locked_database_delays_no_other_batch(worker: Worker, tmp_path: Path) -> None:
    """After a wait for the lock, batches with keys are rejected for a while."""
    worker.keys._database._lock_seconds = 0.05
    claim = worker.claim("a", A)
    with closing(sqlite3.connect(tmp_path / "keys.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert ["storage_failed", STORED] == worker.store(Batch(A, claim), Batch(B, None))
        claim.release()
        worker.keys.step()
        assert "storage_failed" == worker.send("a", A)
        other.execute("ROLLBACK")
    worker.keys.step()
    assert STORED == worker.send("a", A)
    assert B + A == stored(tmp_path)


def test_a_full_database_rejects_with_its_own_code(worker: Worker) -> None:
    """SQLite reports a full database, and accepts records again once there is room."""
    assert STORED == worker.send("a", A)
    worker.keys._database.execute("PRAGMA max_page_count = 1")
    numbers = itertools.count()
    while (outcome := worker.send(f"{next(numbers)}", A)) == STORED:
        assert next(numbers) < 1000
    assert "storage_full" == outcome
    worker.keys._database.execute("PRAGMA max_page_count = 1000000")
    worker.keys.step()
    assert [STORED, REPLAYED] == [worker.send("b", B), worker.send("a", A)]


def test_a_record_whose_commit_failed_does_not_count(
    make_worker: Callable[..., Worker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be found, but its offsets are never written to."""
    one, two = make_worker(), make_worker()
    assert STORED == one.send("c", C)
    claim = one.claim("a", A)
    add = Database.add

    def add_and_fail(self: Database, *arguments: Any) -> None:
        monkeypatch.setattr(Database, "add", add)
        add(self, *arguments)
        raise OSError(errno.EIO, "sync failed")

    monkeypatch.setattr(Database, "add", add_and_fail)
    assert ["storage_failed", STORED] == one.store(Batch(A, claim), Batch(B, None))
    claim.release()
    assert 1 == len(list(tmp_path.glob("*.ndjson")))
    for _ in range(20):
        one.send_plain(B)
    one.storage.close()
    assert STORED == two.send("a", A)
    assert 1 == stored(tmp_path).count(A)
    one.keys.step()
    assert [REPLAYED] * 3 == [one.send("a", A), one.send("c", C), make_worker().send("a", A)]


def test_keys_are_accepted_again_when_a_commit_succeeds(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The database is retried once per second, and the log reports its recovery."""
    fail_to_add(monkeypatch, errno.EIO)
    commit = Database.commit_nothing
    monkeypatch.setattr(Database, "commit_nothing", _fail)
    assert "storage_failed" == worker.send("a", A)
    for _ in range(2):
        worker.keys.step()
        assert worker.keys.error == STORAGE_FAILED
    monkeypatch.setattr(Database, "commit_nothing", commit)
    worker.keys.step()
    assert worker.keys.error is None
    assert STORED == worker.send("a", A)
    logged = [message for message in caplog.messages if message.startswith("idempotency keys: ")]
    assert 2 == len(logged)
    assert "Input/output error; batches with a key are rejected" in logged[0]
    assert "stored again" in logged[1]


def _fail(database: Database) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_segment_stays_open_until_its_size_is_recorded(
    make_worker: Callable[..., Worker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise its size would be unknown after its removal."""
    one, two = make_worker(), make_worker()
    assert STORED == one.send("a", A)

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        for module in (writer, segment):
            patch.setattr(module, "record_size", fail)
        one.storage.close()
        assert [] == list(tmp_path.glob("*.ndjson"))
    one.storage.close()
    (path,) = tmp_path.glob("*.ndjson")
    path.unlink()
    assert REPLAYED == two.send("a", A)


def test_a_stop_waits_for_the_commits_of_others(
    make_worker: Callable[..., Worker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its seal is the last one; any other seal is retried, and waits shorter."""
    one, two = make_worker(), make_worker()
    assert STORED == one.send("a", A)
    assert STORED == two.send("b", B)
    monkeypatch.setattr(writer, "SEAL_LOCK_SECONDS", 0)
    with closing(sqlite3.connect(tmp_path / "keys.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        monkeypatch.setattr(database, "block_thread", lambda seconds: other.rollback())
        one.storage.seal()
        assert 2 == len(list(tmp_path.glob("*.open")))
        two.storage.close()
        assert 1 == len(list(tmp_path.glob("*.open")))
        other.execute("BEGIN IMMEDIATE")
        one.storage.close()
    assert [] == list(tmp_path.glob("*.open"))


@pytest.mark.parametrize("wait_seconds", [0.8, 4.0])
def test_batches_and_seals_wait_for_the_syncs_of_others(
    make_worker: Callable[..., Worker],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wait_seconds: float,
) -> None:
    """On a slow disk, another worker's commit takes as long as a sync; a seal waits shorter."""
    worker = make_worker()
    assert STORED == worker.send("a", A)
    with closing(sqlite3.connect(tmp_path / "keys.db", isolation_level=None)) as other:
        slept = 0.0

        def sleep(seconds: float) -> None:
            nonlocal slept
            slept += seconds
            if slept >= wait_seconds and other.in_transaction:
                other.rollback()

        clock = SimpleNamespace(monotonic=lambda: slept)
        monkeypatch.setattr(database, "time", clock)
        monkeypatch.setattr(database, "block_thread", sleep)
        other.execute("BEGIN IMMEDIATE")
        assert STORED == worker.send("b", B)
        slept = 0.0
        other.execute("BEGIN IMMEDIATE")
        worker.storage.seal()
    assert (wait_seconds > 1) == bool(list(tmp_path.glob("*.open")))


def test_lines_that_cannot_be_truncated_keep_their_key(
    make_worker: Callable[..., Worker], tmp_path: Path, break_os: BreakOs
) -> None:
    """Until they are truncated, it is unknown whether the batch will be stored."""
    one, two = make_worker(), make_worker()
    break_os("fdatasync", errno.EIO, times=1)
    cuts = break_os("ftruncate", errno.EIO)
    assert "storage_failed" == one.send("a", A)
    assert (IN_USE, IN_USE) == (one.send("a", A), two.send("a", A))
    cuts.times = 0
    one.storage.maintain()
    one.keys.step()
    assert STORED == two.send("a", A)
    assert REPLAYED == one.send("a", A)
    assert 1 == stored(tmp_path).count(A)


def test_untruncated_lines_are_recovered_after_their_process_ends(
    make_worker: Callable[..., Worker], tmp_path: Path, break_os: BreakOs
) -> None:
    """A recovery keeps complete lines, and the retry finds them."""
    one, two = make_worker(), make_worker()
    break_os("fdatasync", errno.EIO, times=1)
    cuts = break_os("ftruncate", errno.EIO)
    assert "storage_failed" == one.send("a", A)
    cuts.times = 0
    one.kill()
    assert REPLAYED == two.send("a", A)
    assert 1 == stored(tmp_path).count(A)


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, "storage_full"), (errno.EIO, "storage_failed")]
)
def test_a_retry_is_rejected_while_its_segment_cannot_be_recovered(
    make_worker: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    """The recovery records the size of the segment, for which a full disk has no room."""
    one, two = make_worker(), make_worker()
    kill_at(monkeypatch, "sync")
    kill_while_storing(one, "a", A)

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(segment, "record_size", fail)
        assert code == two.send("a", A)
    assert REPLAYED == two.send("a", A)


# --- Keys age


def test_a_clock_that_jumps_for_seconds_forgets_no_key(
    make_worker: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ages follow a clock that cannot be set, in a commit group and in the upkeep."""
    worker = make_worker()
    assert STORED == worker.send("a", A)
    assert STORED == worker.send("b", B)
    now = time.time()
    for jump in (30 * 86400, -30 * 86400):
        monkeypatch.setattr(worker.keys._clock, "_wall", lambda jump=jump: now + jump)
        for _ in worker.keys.upkeep.step():
            pass
        assert [REPLAYED, REPLAYED] == [worker.send("a", A), worker.send("b", B)]


def test_key_may_be_reused_after_its_time(
    make_worker: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also before the upkeep has deleted it."""
    worker = make_worker(idempotency_seconds=100)
    now = [1e9]
    monkeypatch.setattr(worker.keys._clock, "now", lambda: now[0])
    assert STORED == worker.send("a", A)
    now[0] += 99
    assert REPLAYED == worker.send("a", A)
    now[0] += 2
    assert STORED == worker.send("a", A)


# --- Somebody interferes


@pytest.mark.parametrize("pattern", ["keys.db*", "keys.db", "keys.db-wal", "keys.db-shm"])
def test_deleted_files_lose_only_their_keys(
    make_worker: Callable[..., Worker], tmp_path: Path, pattern: str
) -> None:
    """Later keys are remembered again, by every worker."""
    one, two = make_worker(), make_worker()
    assert STORED == one.send("a", A)
    assert REPLAYED == two.send("a", A)
    for path in tmp_path.glob(pattern):
        path.unlink()
    assert STORED == one.send("b", B)
    assert REPLAYED == two.send("b", B)
    assert STORED == two.send("a", A)
    for worker in (one, two, make_worker()):
        assert [REPLAYED, REPLAYED] == [worker.send("a", A), worker.send("b", B)]
    assert [("ok",)] == query(tmp_path, "PRAGMA integrity_check")


def test_a_record_in_a_database_that_was_deleted_meanwhile_does_not_count(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could not be found: the batch is rejected, and stored on its retry."""
    assert STORED == worker.send("a", A)
    insert = Database._insert

    def delete_and_insert(self: Database, *arguments: Any) -> None:
        for path in tmp_path.glob("keys.db*"):
            path.unlink()
        insert(self, *arguments)

    monkeypatch.setattr(Database, "_insert", delete_and_insert)
    assert "storage_failed" == worker.send("b", B)
    monkeypatch.setattr(Database, "_insert", insert)
    worker.keys.step()
    assert [STORED, REPLAYED] == [worker.send("b", B), worker.send("b", B)]
    assert A + B == stored(tmp_path)


def test_deleted_lock_file_lets_no_two_requests_claim_a_key(
    make_worker: Callable[..., Worker], tmp_path: Path
) -> None:
    """A request that locked the old file is rejected with a retry."""
    one, two = make_worker(), make_worker()
    claim = one.claim("a", A)
    (tmp_path / "keys.lock").unlink()
    assert IN_USE == two.send("b", B)  # it finds the file gone, and makes a new one
    assert STORED == two.send("a", A)
    assert [IN_USE] == one.store(Batch(A, claim))
    claim.release()
    assert REPLAYED == one.send("a", A)
    assert A == stored(tmp_path)
