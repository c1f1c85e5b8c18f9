"""System calls on the segment files that fail: one kind of call, one outcome, at random moments."""

import errno
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tests.faults.bench import Bench, under_load, wait_for_more
from tests.faults.shim import NO_MEMORY, SHORT, STALL, TORN, ShimmedService
from tests.faults.table import Row
from tests.support.load import Load


class Fault(NamedTuple):
    """`operation` ends in `outcome`, and `also`, if set, every time."""

    what: str
    operation: str
    outcome: int
    also: str | None = None


FAULTS = (
    Fault("EIO on write", "write", errno.EIO),
    Fault("ENOSPC on write", "write", errno.ENOSPC),
    Fault("short write", "write", SHORT),
    Fault("short write, then ENOSPC", "write", TORN),
    Fault("short write, then no memory", "write", NO_MEMORY),
    Fault("short write, then ENOSPC, and EIO on truncate", "write", TORN, "truncate"),
    Fault("EIO on sync, pages lost", "sync", errno.EIO),
    Fault("ENOSPC on sync, pages lost", "sync", errno.ENOSPC),
    Fault("sync stalls 300 ms", "sync", STALL),
    Fault("EMFILE on open", "open", errno.EMFILE),
    Fault("EIO on rename", "rename", errno.EIO),
    Fault("EIO on rename and on directory sync", "rename", errno.EIO, "dirsync"),
    Fault("EIO on directory sync", "dirsync", errno.EIO),
    Fault("EIO on directory sync and on unlink", "dirsync", errno.EIO, "unlink"),
)

#: Rounds on one running service, before it is stopped and its files are tallied.
ROUNDS_A_SERVICE = 10

#: After these, what could not be truncated was truncated. A kill before would be one fault more at
#: once than is promised to double nothing.
TRUNCATE_SECONDS = 3.0

STALL_MS = 300
SHORT_BYTES = 700


def run(bench: Bench, rounds: int, faults: Sequence[Fault] = FAULTS) -> Iterator[Row]:
    """Let calls fail, each kind `rounds` times, each time one to four in a row."""
    rows = [Row(fault.what) for fault in faults]
    yield from rows  # they fill up together, and what they have stays if one fails
    for first in range(0, rounds, ROUNDS_A_SERVICE):
        for fault, row in zip(faults, rows, strict=True):
            if bench.has_time:
                _campaign(bench, row, fault, min(rounds - first, ROUNDS_A_SERVICE))


def _campaign(bench: Bench, row: Row, fault: Fault, rounds: int) -> None:
    """Run rounds against one service, ended by a stop or a kill, and tally its files."""
    directory = bench.make_directory()
    service = ShimmedService(directory, workers=2, segment_bytes=100_000)
    with under_load(bench, row, service, threads=6) as load:
        for _ in range(rounds):
            _break_once(bench, row, fault, service, load)
        if bench.random.random() < 0.5:
            load.stop()
            if fault.also == "truncate":
                time.sleep(TRUNCATE_SECONDS)
            service.kill()
            service.start()
    bench.remove(directory)


def _break_once(bench: Bench, row: Row, fault: Fault, service: ShimmedService, load: Load) -> None:
    wait_for_more(load, 1, Row(""))
    times = bench.random.choice((1, 1, 2, 4))
    argument = STALL_MS if fault.outcome == STALL else SHORT_BYTES
    before = service.control.hits(fault.operation)
    if fault.also:
        service.control.fail(fault.also, errno.EIO, times=times)
    skip = bench.random.randrange(6)
    service.control.fail(fault.operation, fault.outcome, skip=skip, times=times, argument=argument)
    service.control.wait_for_hits(fault.operation, 10)
    service.control.end_faults()
    if service.control.hits(fault.operation) == before:
        row.fail(f"no {fault.operation} came to fail")
    row.tried += 1
    wait_for_more(load, 5, row)
