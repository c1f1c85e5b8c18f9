"""A disk whose syncs hang: the effect on clients, health checks and stops."""

import contextlib
import signal
import time
from collections.abc import Iterator
from typing import Any

from tests.faults.bench import Bench, tally, wait_for_more
from tests.faults.shim import STALL, ShimmedService
from tests.faults.table import Row
from tests.support.background import meanwhile
from tests.support.load import Load
from tests.support.processes import MIB, resident_bytes, start_stopwatch
from tests.support.service import Service, wait_for

CLIENTS = 40
KEYED_CLIENTS = 10

#: Longest batch, in logs; 40 clients together exceed the queue's bytes.
LARGEST_BATCH = 1000
QUEUE_BYTES = 3 * MIB // 2

#: Seconds beyond the commit timeout in which a client has its answer.
LATE_SECONDS = 1.0

#: Seconds in which /health answers.
HEALTH_SECONDS = 1.0
HEALTH_SECONDS_AT_MOST = 60.0

#: Memory that a worker may add during the stall.
MEMORY_BYTES = 64 * MIB

#: Seconds in which SIGTERM ends the service, whatever the disk does.
STOP_SECONDS = 10.0


class TimedLoad(Load):
    """A load that records the time of responses, and distinguishes two kinds of timeouts."""

    def __init__(self, service: Service) -> None:
        super().__init__(service, CLIENTS - KEYED_CLIENTS, LARGEST_BATCH, keyed=KEYED_CLIENTS)
        self._posted_at: dict[int, float] = {}
        self.slowest_seconds = 0.0
        self.codes: set[str] = set()

    def note_post(self, number: int, port: int) -> None:
        """Take note of when a batch is posted."""
        self._posted_at[number] = time.monotonic()

    def note_answer(self, number: int, size: int, status: int, body: dict[str, Any]) -> None:
        """Record the time, and distinguish the two kinds of timeout."""
        seconds = time.monotonic() - self._posted_at.pop(number)
        self.slowest_seconds = max(self.slowest_seconds, seconds)
        self.codes.add(body.get("code", "accepted"))
        if body.get("code") == "commit_timeout" and "was not stored" in body["message"]:
            body = body | {"code": "commit_timeout, not stored"}
        super().note_answer(number, size, status, body)


def run(bench: Bench, stall_seconds: float, commit_timeout_seconds: float) -> Iterator[Row]:
    """Make a sync hang under load, once until it continues and once until a stop."""
    row = Row(f"a sync stalls {stall_seconds:g} s, {CLIENTS} clients")
    _stall(bench, row, stall_seconds, commit_timeout_seconds)
    bench.say(row.what)
    yield row
    row = Row("SIGTERM while a sync stalls")
    _stop_while_stalled(bench, row)
    bench.say(row.what)
    yield row


def _stall(bench: Bench, row: Row, stall_seconds: float, commit_timeout_seconds: float) -> None:
    directory = bench.make_directory()
    service = ShimmedService(
        directory,
        max_body_bytes=QUEUE_BYTES,
        queue_bytes=QUEUE_BYTES,
        commit_timeout_seconds=commit_timeout_seconds,
    ).start()
    load = TimedLoad(service)
    try:
        with load:
            load.wait_for_acknowledged(100)
            # No batch waits for the syncs with which the log of keys.db is copied after a start.
            wait_for(lambda: service.control.calls("truncate"))
            (worker,) = service.worker_pids()
            memory = resident_bytes(worker)
            service.control.fail("sync", STALL, times=1, argument=int(stall_seconds * 1000))
            service.control.wait_for_hits("sync", 10)
            with watch_health(service, row, stall_seconds):
                end = time.monotonic() + stall_seconds
                while time.monotonic() < end:
                    if resident_bytes(worker) > memory + MEMORY_BYTES:
                        row.fail(f"the worker grew by {(resident_bytes(worker) - memory):,} bytes")
                        break
                    time.sleep(0.1)
            row.tried += 1
            wait_for_more(load, 20, row)
        service.stop()
    finally:
        service.kill()
    slowest_seconds = max(load.slowest_seconds, load.keyed.slowest_seconds)
    if slowest_seconds > commit_timeout_seconds + LATE_SECONDS:
        row.fail(f"an answer took {slowest_seconds:.1f} s")
    _check_answers(load, row)
    tally(row, load, service.files())
    bench.remove(directory)


def _check_answers(load: TimedLoad, row: Row) -> None:
    """Check that the load got the answers that a stall must cause, and no others.

    When the clients sent their batches decides whether those of the hanging sync have keys, and
    whether they leave room in the queue for others, which then are not stored in time.
    """
    plain, keyed = load.codes - {"accepted"}, load.keyed.codes.keys() - {"key_in_use"}
    if "queue_full" not in plain or (plain | keyed) != {"commit_timeout", "queue_full"}:
        row.fail(f"the answers were {sorted(plain)}, and to batches with keys {sorted(keyed)}")
    if "may still be stored" not in " ".join(load.messages | load.keyed.messages):
        row.fail("no answer said that the batch may still be stored")


def _stop_while_stalled(bench: Bench, row: Row) -> None:
    directory = bench.make_directory()
    service = ShimmedService(directory).start()
    load = Load(service, threads=4, keyed=4)
    try:
        with load:
            load.wait_for_acknowledged(20)
            service.control.fail("sync", STALL, times=1, argument=30_000)
            service.control.wait_for_hits("sync", 10)
            start = time.monotonic()
            service.signal(signal.SIGTERM)
            service.wait(20)
            if time.monotonic() > start + STOP_SECONDS:
                row.fail(f"took {time.monotonic() - start:.1f} s to stop")
            wait_for(lambda: not service.pids())
            service.control.end_faults()
            service.start()
            row.tried += 1
            wait_for_more(load, 20, row)
        wait_for(lambda: not service.has_orphans())
        service.stop()
    finally:
        service.kill()
    tally(row, load, service.files())
    bench.remove(directory)


def watch_health(
    service: Service, row: Row, stall_seconds: float | None = None
) -> contextlib.AbstractContextManager[None]:
    """Poll /health, and count each late response in the row.

    A response is late by the CPU time of the busiest worker. During a stall it is late by the
    clock, which also shows a worker that waits for a disk: the first response of such a worker
    takes nearly the whole stall, and a busy machine delays a response less than that.
    """
    limit = HEALTH_SECONDS if stall_seconds is None else 2 / 3 * stall_seconds
    workers = service.worker_pids()

    def poll() -> None:
        start, watches = time.monotonic(), [start_stopwatch(worker) for worker in workers]
        try:
            status = service.request("GET", "/health", timeout=HEALTH_SECONDS_AT_MOST).status
            seconds = max(watch() for watch in watches)
            if stall_seconds is not None:
                seconds = time.monotonic() - start
        except OSError as error:
            row.fail(f"/health: {error!r}")
            return
        if status != 200 or seconds > limit:
            row.fail(f"/health answered {status} after {seconds:.1f} s")

    return meanwhile(poll, 0.05)
