"""A /dev/shm without room, which any local user can fill, while workers are killed and replaced."""

import os
import signal
from collections.abc import Iterator

from tests.faults.bench import Bench, under_load, wait_for_more
from tests.faults.table import Row
from tests.support.full_memory import FullMemoryService, can_fill_memory
from tests.support.metrics import read_samples
from tests.support.service import Service


def run(bench: Bench, rounds: int) -> Iterator[Row]:
    """Kill a worker and reload `rounds` times, with /dev/shm full from the start or later."""
    if not can_fill_memory():
        bench.say("NOT TESTED: a full /dev/shm; it takes root to mount a small one")
        return
    yield _fill(bench, Row("full /dev/shm at the start"), rounds, is_full=True)
    yield _fill(bench, Row("full /dev/shm later"), rounds, is_full=False)


def _fill(bench: Bench, row: Row, rounds: int, is_full: bool) -> Row:
    service = FullMemoryService(bench.make_directory(), is_full, workers=2)
    with under_load(bench, row, service) as load:
        wait_for_more(load, 20, row)
        service.fill()
        if service.has_room():
            row.fail("/dev/shm was not full")
        counted = 0.0
        for _ in range(rounds):
            victim = bench.random.choice(service.worker_pids())
            os.kill(victim, signal.SIGKILL)
            service.wait_for_workers(other_than=[victim])
            wait_for_more(load, 5, row)
            counted = _check_metrics(row, service, counted)
            service.reload()
            wait_for_more(load, 5, row)
            counted = _check_metrics(row, service, counted)
            row.tried += 1
    return row


def _check_metrics(row: Row, service: Service, before: float) -> float:
    """Return how many logs are counted, which is never fewer than before."""
    answer = service.request("GET", "/metrics")
    if answer.status != 200:
        row.fail(f"answered /metrics with {answer.status}")
        return before
    counted = read_samples(answer.raw.decode())["stored_logs_total"]
    if counted < before:
        row.fail(f"counted {counted:g} logs after {before:g}")
    return counted
