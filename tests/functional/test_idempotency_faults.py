"""Idempotency keys while the disk stalls or fails, or everything is killed."""

import errno
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.service import Answer, Service, make_batch, wait_for
from tests.torture import shim
from tests.torture.shim import ALWAYS, STALL, ShimmedService

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shim.is_available(), reason="needs gcc"),
]

STALL_MS = 5000


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
    """Send a batch as a client does that wants to know, and return the answer 200."""

    def stored() -> Answer | None:
        answer = send(service, key, message)
        assert answer.status in (200, 409, 503)
        return answer if answer.status == 200 else None

    return wait_for(stored)


def send_into_stall(service: ShimmedService, stalled: str, message: str) -> None:
    """Send a batch, with its message for its key, whose first or second sync stalls."""
    send_until_stored(service, "first", "first")
    service.control.fail("sync", STALL, skip=stalled == "the lines", argument=STALL_MS)
    answer = send(service, message, message)
    assert (503, "commit_timeout") == (answer.status, answer.body["code"])


@pytest.mark.parametrize("stalled", ["the journal", "the lines"])
def test_a_stalled_batch_has_its_key_until_it_is_over(
    service: ShimmedService, stalled: str
) -> None:
    """Whoever was told `commit_timeout` learns from any worker that nothing is decided yet."""
    send_into_stall(service, stalled, "stalled")
    for _ in range(20):
        answer = send(service, "stalled", "stalled")
        assert (409, "key_in_use", "1") == (
            answer.status,
            answer.body["code"],
            answer.headers["Retry-After"],
        )
    answer = send_until_stored(service, "stalled", "stalled")
    assert "true" == answer.headers["Idempotency-Replayed"]
    assert 1 == count(service, "stalled")


@pytest.mark.parametrize("stalled", ["the journal", "the lines"])
def test_a_batch_that_was_killed_in_a_stall_is_stored_once(
    service: ShimmedService, stalled: str
) -> None:
    """Whether its lines were written when the service died or not, the next try makes it right."""
    send_into_stall(service, stalled, "killed")
    service.kill()
    service.control.mend()
    service.start()
    answer = send_until_stored(service, "killed", "killed")
    assert (stalled == "the lines") == (answer.headers["Idempotency-Replayed"] == "true")
    assert 1 == count(service, "killed")


def test_without_a_journal_only_batches_with_keys_are_rejected(service: ShimmedService) -> None:
    """Its disk is full; what has no key is stored all the same, and keys are taken again later."""
    service.control.fail("write", errno.ENOSPC, times=1)
    answer = send(service, "full", "full")
    assert (503, "storage_full", "1") == (
        answer.status,
        answer.body["code"],
        answer.headers["Retry-After"],
    )
    assert 200 == send(service, None, "plain").status
    assert 200 == service.request("GET", "/ready").status
    assert None is send_until_stored(service, "full", "full").headers["Idempotency-Replayed"]
    assert (1, 1) == (count(service, "full"), count(service, "plain"))


def test_a_segment_waits_for_its_record(service: ShimmedService) -> None:
    """It is sealed when the journal says its size: else it could not be removed one day."""
    send_until_stored(service, "a", "a")
    service.control.fail("write", errno.EIO, times=ALWAYS)
    service.signal(signal.SIGTERM)
    service.wait()
    assert 1 == len(service.files("*.open"))
    service.control.mend()
    service.start()
    wait_for(lambda: service.files("*.ndjson"))
    for path in service.files():
        path.unlink()
    assert "true" == send(service, "a", "a").headers["Idempotency-Replayed"]
