"""Idempotency keys while the disk stalls or fails, or all processes are killed."""

import errno
import itertools
import json
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.faults import shim
from tests.faults.diskmodel import read_trace
from tests.faults.shim import ALWAYS, STALL, ShimmedService
from tests.support.service import Answer, Service, make_batch, make_head, read_answer, wait_for
from tests.support.workers import connect_to

pytestmark = pytest.mark.skipif(not shim.is_available(), reason="needs gcc")

#: Longer than any test; a test ends its stall.
STALL_SECONDS = 600


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ShimmedService]:
    made = ShimmedService(tmp_path, workers=2, commit_timeout_seconds=1)
    made.start()
    yield made
    made.kill()


def send(service: Service, key: str | None, message: str) -> Answer:
    return service.drain(make_batch(message), {"Idempotency-Key": key} if key else None)


def count(service: Service, message: str) -> int:
    return sum(log["message"] == message for log in service.logs())


def send_until_stored(service: Service, key: str, message: str) -> Answer:
    """Send a batch until its client gets 200, and return that response."""

    def stored() -> Answer | None:
        answer = send(service, key, message)
        assert answer.status in (200, 409, 503)
        return answer if answer.status == 200 else None

    return wait_for(stored)


def warm_up(service: Service) -> None:
    """Store a batch with a key in each worker, and return when the housekeeper writes no more.

    Once there is a database, it copies its log and empties it; later on, it copies only a long one.
    """
    pids = service.worker_pids()
    wait_for(partial(is_stored_by, service, pids[0], "first"))
    wait_for(lambda: (service.data_dir / "keys.db-wal").stat().st_size == 0)
    for pid in pids:
        wait_for(partial(is_stored_by, service, pid, f"next-{pid}"))


def is_stored_by(service: Service, pid: int, key: str) -> bool:
    """Send a batch to a worker, and return whether the disk was fast enough to store it."""
    body = json.dumps(make_batch("first")).encode()
    head = make_head(f"Idempotency-Key: {key}", f"Content-Length: {len(body)}")
    with connect_to(service, pid) as connection:
        connection.sendall(head + body)
        return read_answer(connection).status == 200


def send_into_stall(service: ShimmedService, stalled: str, message: str) -> None:
    """Send a batch with its message as key; one of its two syncs stalls until `end_stall`."""
    warm_up(service)
    service.control.fail("sync", STALL, skip=stalled == "the lines", argument=STALL_SECONDS * 1000)
    answer = send(service, message, message)
    assert (503, "commit_timeout") == (answer.status, answer.body["code"])


@pytest.mark.parametrize("stalled", ["the record", "the lines"])
def test_stalled_batch_keeps_its_key(service: ShimmedService, stalled: str) -> None:
    """After `commit_timeout`, any worker answers that the key is in use."""
    send_into_stall(service, stalled, "stalled")
    for _ in range(20):
        answer = send(service, "stalled", "stalled")
        assert (409, "key_in_use", "1") == (
            answer.status,
            answer.body["code"],
            answer.headers["Retry-After"],
        )
    service.control.end_stall("sync")
    answer = send_until_stored(service, "stalled", "stalled")
    assert "true" == answer.headers["Idempotency-Replayed"]
    assert 1 == count(service, "stalled")


@pytest.mark.parametrize("stalled", ["the record", "the lines"])
def test_a_batch_that_was_killed_in_a_stall_is_stored_once(
    service: ShimmedService, stalled: str
) -> None:
    """The retry stores the batch, whether or not its lines were written when the service died."""
    send_into_stall(service, stalled, "killed")
    service.kill()
    service.control.end_stall("sync")
    service.start()
    answer = send_until_stored(service, "killed", "killed")
    assert (stalled == "the lines") == (answer.headers["Idempotency-Replayed"] == "true")
    assert 1 == count(service, "killed")


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, "storage_full"), (errno.EIO, "storage_failed")]
)
def test_without_a_record_only_batches_with_keys_are_rejected(
    service: ShimmedService, number: int, code: str
) -> None:
    """Batches without a key are stored, and keys are accepted again later."""
    warm_up(service)
    service.control.fail("write", number, times=1)
    answer = send(service, "full", "full")
    assert (503, code, "5") == (
        answer.status,
        answer.body["code"],
        answer.headers["Retry-After"],
    )
    assert 200 == send(service, None, "plain").status
    assert 200 == service.request("GET", "/ready").status
    assert None is send_until_stored(service, "full", "full").headers["Idempotency-Replayed"]
    assert (1, 1) == (count(service, "full"), count(service, "plain"))


def test_a_segment_waits_for_its_record(service: ShimmedService) -> None:
    """It is sealed once its size is recorded; otherwise it could not be removed later."""
    send_until_stored(service, "a", "a")
    service.control.fail("write", errno.EIO, times=ALWAYS)
    service.signal(signal.SIGTERM)
    service.wait()
    assert 1 == len(service.files("*.open"))
    service.control.end_faults()
    service.start()
    wait_for(lambda: service.files("*.ndjson"))
    for path in service.files():
        path.unlink()
    assert "true" == send(service, "a", "a").headers["Idempotency-Replayed"]


def test_a_record_is_synced_before_the_first_line(tmp_path: Path) -> None:
    """Lines that reached the disk without it would be stored again by the retry."""
    trace = tmp_path / "trace"
    with ShimmedService(tmp_path, trace, workers=1) as service:
        warm_up(service)
        before = len(read_trace(trace))
        assert 200 == send(service, "b", "b").status
    operations = read_trace(trace)
    names = {words[0]: Path(words[1]).name for kind, words, _ in operations if kind == "C"}
    told = [(kind, names[words[0]]) for kind, words, _ in operations[before:] if kind in "WY"]
    kinds = [(kind, "segment" if name.endswith(".open") else name) for kind, name in told]
    stored = kinds[: kinds.index(("Y", "segment")) + 1]
    assert [
        ("W", "keys.db-wal"),
        ("Y", "keys.db-wal"),
        ("W", "segment"),
        ("Y", "segment"),
    ] == [kind for kind, _ in itertools.groupby(stored)]
