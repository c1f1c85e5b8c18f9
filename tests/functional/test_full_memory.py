"""A full /dev/shm, which any local user can cause, has no effect."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.full_memory import FullMemoryService, can_fill_memory
from tests.support.metrics import read_samples
from tests.support.service import Service, make_batch, wait_for
from tests.support.workers import kill_a_worker

pytestmark = pytest.mark.skipif(
    not can_fill_memory(),
    reason="NOT TESTED: a full /dev/shm; it takes root to mount a small one",
)


def check_counts(service: Service, logs: int) -> None:
    """Send one more log, and check the stored logs and the counters."""
    assert 200 == service.drain(make_batch("one more")).status
    wait_for(lambda: stored_logs(service) == logs)
    assert logs == len(service.logs())


def stored_logs(service: Service) -> float:
    """Return the metrics' count of stored logs."""
    answer = service.request("GET", "/metrics")
    assert 200 == answer.status
    return read_samples(answer.raw.decode())["stored_logs_total"]


@pytest.mark.parametrize("is_full", [True, False], ids=["at the start", "later"])
def test_nothing_is_lost(tmp_path: Path, is_full: bool) -> None:
    """The service starts, its workers live and are replaced, and metrics are complete."""
    with FullMemoryService(tmp_path, is_full, workers=2) as service:
        if not is_full:
            check_counts(service, 1)
            service.fill()
        assert not service.has_room()
        master, workers = service.process.pid, service.worker_pids()
        changes: list[Callable[[Service], None]] = [kill_a_worker, Service.reload]
        for number, change in enumerate(changes, 2 - is_full):
            check_counts(service, number)
            assert workers == service.worker_pids()
            change(service)
            workers = service.worker_pids()
        check_counts(service, 4 - is_full)
        assert not service.has_room()
        assert master == service.process.pid
        assert 0 == service.stop()
    assert "Traceback" not in service.log()
    assert [] == service.files("*.open")
