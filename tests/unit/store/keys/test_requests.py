"""How requests claim their keys, and when they release them."""

import errno
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import gevent
import pytest

from astralog.errors import Rejection
from astralog.settings import Settings
from astralog.store import commit_queue
from astralog.store.commit_queue import CommitQueue
from astralog.store.keys import idempotency_keys
from astralog.store.keys.claims import Key, make_key
from astralog.store.keys.idempotency_keys import IdempotencyKeys
from astralog.store.queue import Batch
from astralog.store.writer import Storage
from astralog.telemetry.counters import Counters
from tests.support.greenlets import wait_until
from tests.support.segment_files import stored

TIMEOUT_SECONDS = 30
A, B = b'{"m":"a"}\n', b'{"m":"b"}\n'


def key_of(name: str, body: bytes = A) -> Key:
    return make_key(bytes(32), "00000000", name, body, "")


class Stall:
    """A function that waits until a test continues it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._opened = threading.Event()
        self.calls = 0

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        assert self._opened.wait(TIMEOUT_SECONDS)
        return self._function(*arguments)

    def end(self) -> None:
        self._opened.set()


@pytest.fixture
def stall(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[type, str], Stall]]:
    """Return a function that makes a method wait: `stall(Storage, "store")`."""
    made: list[Stall] = []

    def make(owner: type, name: str) -> Stall:
        made.append(Stall(getattr(owner, name)))
        stalled = made[-1]

        def wait(each: Any, *arguments: Any) -> Any:
            return stalled(each, *arguments)

        monkeypatch.setattr(owner, name, wait)
        return made[-1]

    yield make
    for each in made:
        each.end()


@pytest.fixture
def queue(settings: Settings, request: pytest.FixtureRequest) -> Iterator[CommitQueue]:
    """Return a queue with short timeouts that matter only if something stalls."""
    seconds = 0.3 if "stall" in request.fixturenames else TIMEOUT_SECONDS
    made = CommitQueue(replace(settings, commit_timeout_seconds=seconds), Counters().store)
    yield made
    made.stop(TIMEOUT_SECONDS)


def send(queue: CommitQueue, key: Key, lines: bytes = A) -> str:
    """Send a batch as a request does; return `stored`, `replayed`, or the code of its rejection."""
    try:
        with closing(queue.admit()) as reservation:
            reservation.resize(len(lines))
            claim = queue.claim(key)
            try:
                queue.commit(Batch(lines, 1), reservation, claim)
            finally:
                claim.release()
    except Rejection as rejection:
        return rejection.code
    return "replayed" if claim.is_replayed else "stored"


def send_until_known(queue: CommitQueue, key: Key) -> str:
    """Send a batch until its key is not in use and the machine is not too busy to store it."""
    with gevent.Timeout(TIMEOUT_SECONDS):
        while (outcome := send(queue, key)) in ("key_in_use", "commit_timeout"):
            gevent.sleep(0.01)
    return outcome


def test_a_batch_is_stored_by_its_first_request(queue: CommitQueue, tmp_path: Path) -> None:
    """The first batch with a key starts the queue and creates the database."""
    assert ["stored", "replayed"] == [send(queue, key_of("a")), send(queue, key_of("a"))]
    assert "key_reused" == send(queue, key_of("a", B), B)
    assert ["stored"] == [send(queue, key_of("b"), B)]
    assert A + B == stored(tmp_path)
    assert 0 == queue.budget.reserved


def test_request_that_ends_before_its_commit_releases_its_key(queue: CommitQueue) -> None:
    """An invalid batch may be sent again with the same key, corrected."""
    claim = queue.claim(key_of("a"))
    assert "key_in_use" == send(queue, key_of("a"))
    claim.release()
    assert "stored" == send(queue, key_of("a"))


def send_until_taken(queue: CommitQueue, key: Key) -> None:
    """Send a batch until a writer takes it; on a busy machine, its client may time out before."""
    while (answer := send(queue, key)) != "key_in_use":
        assert answer == "commit_timeout"


def test_a_batch_that_a_writer_has_keeps_its_key(
    queue: CommitQueue, stall: Callable[[type, str], Stall], tmp_path: Path
) -> None:
    """Its client gets `commit_timeout`, and later the outcome."""
    stalled = stall(Storage, "store")
    send_until_taken(queue, key_of("a"))
    assert ["key_in_use"] * 3 == [send(queue, key_of("a")) for _ in range(3)]
    stalled.end()
    assert "replayed" == send_until_known(queue, key_of("a"))
    assert A == stored(tmp_path)


@pytest.mark.slow
def test_batch_that_no_writer_took_releases_its_key(
    queue: CommitQueue, stall: Callable[[type, str], Stall], tmp_path: Path
) -> None:
    """It was dropped from the queue, so its retry stores it."""
    stalled = stall(Storage, "store")
    send_until_taken(queue, key_of("a"))
    assert ["commit_timeout"] * 2 == [send(queue, key_of("b")) for _ in range(2)]
    assert "key_in_use" == send(queue, key_of("a"))
    stalled.end()
    assert ["replayed", "stored"] == [
        send_until_known(queue, key_of("a")),
        send_until_known(queue, key_of("b")),
    ]
    assert A + A == stored(tmp_path)


def test_a_database_that_is_not_opened_in_time_rejects_nothing_for_good(
    queue: CommitQueue, stall: Callable[[type, str], Stall]
) -> None:
    """Clients are asked to retry, and other batches do not wait."""
    stalled = stall(IdempotencyKeys, "open")
    assert ["commit_timeout"] * 2 == [send(queue, key_of("a")) for _ in range(2)]
    with closing(queue.admit()) as reservation:
        queue.commit(Batch(B, 1), reservation)
    stalled.end()
    assert send_until_known(queue, key_of("a")) in ("stored", "replayed")


def test_a_failing_database_rejects_until_it_works(queue: CommitQueue) -> None:
    """Requests do not wait for it, and batches without a key are not affected."""
    assert "stored" == send(queue, key_of("a"))
    queue.keys._note_error(OSError(errno.EIO, "failed"))
    assert ["storage_failed"] * 2 == [send(queue, key_of(name)) for name in "ab"]
    with closing(queue.admit()) as reservation:
        queue.commit(Batch(B, 1), reservation)
    queue.keys.step()
    assert ["replayed", "stored"] == [send(queue, key_of(name)) for name in "ab"]


def test_a_fault_in_the_maintenance_does_not_end_it(
    queue: CommitQueue, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception is logged, and the next step ends the database's error."""
    monkeypatch.setattr(commit_queue, "FAILED_SECONDS", 0.01)
    monkeypatch.setattr(idempotency_keys, "MAINTENANCE_SECONDS", 0.01)
    assert "stored" == send(queue, key_of("a"))
    step, faults = IdempotencyKeys.step, [ValueError("odd"), RuntimeError("odder")]

    def fail(keys: IdempotencyKeys) -> None:
        if faults:
            raise faults.pop()
        step(keys)

    monkeypatch.setattr(IdempotencyKeys, "step", fail)
    queue.keys._note_error(OSError(errno.EIO, "failed"))
    wait_until(lambda: not faults and not queue.keys.error)
    assert any("maintenance of the keys failed" in message for message in caplog.messages)


def test_without_a_data_directory_batches_with_keys_are_rejected(
    queue: CommitQueue, tmp_path: Path
) -> None:
    """The keys are retried once per second, as the storage is."""
    away = tmp_path.with_name("away")
    tmp_path.rename(away)
    assert "storage_failed" == send(queue, key_of("a"))
    away.rename(tmp_path)
    queue.keys.step()
    queue.storages[0].maintain()
    assert "stored" == send(queue, key_of("a"))


def test_without_a_key_there_is_no_file(queue: CommitQueue, tmp_path: Path) -> None:
    """Services without keys have no database."""
    with closing(queue.admit()) as reservation:
        queue.commit(Batch(A, 1), reservation)
    queue.keys.step()
    assert [".open"] == [path.suffix for path in tmp_path.iterdir()]
