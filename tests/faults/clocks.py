"""A clock that jumps by an hour or by days, while segments are sealed and old ones removed."""

import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from tests.faults.bench import Bench, under_load, wait_for_more
from tests.faults.shim import ShimmedService
from tests.faults.table import Row
from tests.support.service import Service, segment_pid, wait_for
from tests.support.tail import make_name

MIB = 1024 * 1024

#: The size to keep, filled by old segments before a run; a run stores less.
RETAIN_BYTES = 512 * MIB
RETAIN_SECONDS = DAY = 86_400
WEEK = 7 * DAY

#: Seconds by which the clock is wrong at the start.
STARTS = (0, WEEK, -DAY)


def run(bench: Bench, rounds: int, starts: Iterable[int] = STARTS) -> Iterator[Row]:
    """Let the clock jump `rounds` times in each way, and by days from each of `starts`."""
    yield _turn_clock_back(bench, rounds)
    for start in starts:
        if bench.has_time:
            yield _jump(bench, rounds, start)


def make_old_segments(data_dir: Path, count: int, size: int = 0) -> list[Path]:
    """Make segments that are half a day old by name and by their last change."""
    data_dir.mkdir(exist_ok=True)
    old = time.time() - DAY // 2
    paths = []
    for number in range(count):
        path = data_dir / f"{make_name(old + number / 1000)}.ndjson"
        path.touch()
        os.truncate(path, size)
        os.utime(path, (old, old))
        paths.append(path)
    return paths


def remove_segments(paths: list[Path]) -> None:
    """Remove the old segments that are left, which hold no logs."""
    for path in paths:
        path.unlink(missing_ok=True)


def _count_sealed(service: Service) -> Counter[int]:
    """Return how many segments each worker has sealed."""
    return Counter(map(segment_pid, service.files("*.ndjson")))


def _has_every_worker_sealed(service: Service, before: Counter[int]) -> bool:
    """Return whether each worker has sealed the segment it had, and one that it made since."""
    sealed = _count_sealed(service)
    return all(sealed[pid] > before[pid] + 1 for pid in service.worker_pids())


def _turn_clock_back(bench: Bench, rounds: int) -> Row:
    """Set the clock back an hour and forth again, while segments are sealed every second."""
    row = Row("clock jumps an hour back and forth")
    service = ShimmedService(bench.make_directory(), workers=2, segment_seconds=1)
    with under_load(bench, row, service, threads=4) as load:
        for seconds in [-3600, 0] * rounds:
            load.wait_for_acknowledged(20)
            load.wait_for_every_worker()  # one that has no segment yet starts it by the new clock
            before = _count_sealed(service)
            known = _names(service)
            newest = {pid: max(n for p, n in known if p == pid) for pid, _ in known}
            service.control.set_clock(seconds)
            wait_for(partial(_has_every_worker_sealed, service, before))
            row.tried += 1
            wait_for_more(load, 5, row)
            if any(name < newest.get(pid, "") for pid, name in _names(service) - known):
                row.fail("a later segment has an earlier name")
    return row


def _names(service: Service) -> set[tuple[int, str]]:
    """Return the names of the segments, each with its worker."""
    return {(segment_pid(path), path.name.partition(".ndjson")[0]) for path in service.files()}


def _jump(bench: Bench, rounds: int, start: int) -> Row:
    """Set the clock days ahead and back for seconds, from a time that may be wrong at the start.

    With retention by age and by size, which old segments exceed: logs stored meanwhile are young.
    """
    row = Row(f"clock jumps by days, {start // DAY:+} at the start, with retention")
    service = ShimmedService(
        bench.make_directory(),
        workers=2,
        segment_seconds=1,
        retain_seconds=RETAIN_SECONDS,
        retain_bytes=RETAIN_BYTES,
    )
    service.control.set_clock(start)
    old = make_old_segments(service.data_dir, 64, RETAIN_BYTES // 64)
    # The keys' records are forgotten by the wall clock, as of now.
    with under_load(bench, row, service, threads=4, has_keys=False) as load:
        for days in [2, 0, -2, 0, 30, 0] * rounds:
            load.wait_for_acknowledged(20)
            load.wait_for_every_worker()
            before = _count_sealed(service)
            service.control.set_clock(start + days * DAY)
            wait_for(partial(_has_every_worker_sealed, service, before))
            row.tried += 1
            wait_for_more(load, 5, row)
        service.control.set_clock(0)
        wait_for_more(load, 50, row)
        if all(path.exists() for path in old):
            row.fail("removed nothing for the size to keep")
        remove_segments(old)
    return row
