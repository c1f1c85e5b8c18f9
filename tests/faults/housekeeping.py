"""Retention while the housekeeper is killed, and on a small disk."""

import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.faults import mounts
from tests.faults.bench import Bench, note_answers, read_lines, wait_for_more
from tests.faults.table import Row
from tests.support.load import Load
from tests.support.service import Service, size_of, wait_for

KIB = 1024
MIB = 1024 * KIB
RETAIN_BYTES = 1500 * KIB
SEGMENT_BYTES = 100 * KIB

#: By so much a segment may be larger: its last commit group ends it.
SLACK_BYTES = 100 * KIB

FREE_BYTES = 16 * MIB
LEAST_FREE_BYTES = 4 * MIB


def run(bench: Bench, rounds: int) -> Iterator[Row]:
    """Kill the housekeeper `rounds` times; fill a disk."""
    yield _kill_housekeeper(bench, rounds)
    if mounts.can_mount():
        yield _fill(bench)
    else:
        bench.say("NOT TESTED: a disk that retention keeps free; it takes root to mount one")


def _housekeepers(service: Service) -> list[int]:
    """Return the workers that hold the data directory."""
    return [pid for pid in service.worker_pids() if service.data_dir in _held_by(pid)]


def _held_by(pid: int) -> set[Path]:
    try:
        return {path.readlink() for path in Path(f"/proc/{pid}/fd").iterdir()}
    except FileNotFoundError:  # closed meanwhile, or the process ended
        return set()


def _kill_housekeeper(bench: Bench, rounds: int) -> Row:
    """Kill the housekeeper; another worker must take over, and remove only the oldest segments."""
    row = Row("kill -9 of the housekeeper")
    service = Service(
        bench.make_directory(), workers=2, segment_bytes=SEGMENT_BYTES, retain_bytes=RETAIN_BYTES
    )
    with service, Load(service, threads=4, keyed=4, is_patient=True) as load:
        for _ in range(rounds):
            (pid, *_) = wait_for(lambda: _housekeepers(service))
            # Without a sealed segment, nothing would have to go.
            seen = {path.name for path in wait_for(lambda: service.files("*.ndjson"))}
            os.kill(pid, signal.SIGKILL)
            row.tried += 1
            wait_for_more(load, 20, row)
            wait_for(lambda: not service.has_orphans())
            wait_for(partial(_are_removed, service, seen, row))
        load.stop()
        wait_for(partial(_is_kept, service))
        note_answers(row, load)
        if service.stop() != 0 or service.files("*.open"):
            row.fail("did not stop with every segment sealed")
        lines = read_lines(service.files(), row)
        row.doubled += sum(1 for count in lines.values() if count > 1)
    bench.say(f"{row.what}: {row.tried} rounds")
    return row


def _are_removed(service: Service, seen: set[str], row: Row) -> bool:
    """Return whether none of the segments is there any more; the oldest must go first."""
    names = {path.name for path in service.files("*.ndjson")}
    left = [name for name in seen & names if (service.data_dir / name).exists()]
    removed = seen - names
    if left and removed and max(removed) > min(left):
        row.fail(f"removed {max(removed)} before {min(left)}")
    return not left


def _is_kept(service: Service) -> bool:
    """Return whether the directory has the size to keep, within one segment."""
    total = sum(map(size_of, service.files()))
    return RETAIN_BYTES - SEGMENT_BYTES - SLACK_BYTES < total <= RETAIN_BYTES


def _fill(bench: Bench) -> Row:
    """Let logs come into a disk that is nearly full: old ones make room, none is rejected."""
    row = Row("disk kept free by retention")
    directory = bench.make_directory()
    disk = directory / "disk"
    with mounts.small_disk(disk):
        (disk / "filler").write_bytes(bytes(mounts.DISK_BYTES - FREE_BYTES - 4 * MIB))
        service = Service(
            disk,
            workers=2,
            segment_bytes=200 * KIB,
            retain_free_bytes=FREE_BYTES,
            min_free_bytes=LEAST_FREE_BYTES,
        )
        with service, Load(service, threads=4, keyed=4, is_patient=True) as load:
            before = wait_for(lambda: service.files("*.ndjson"))[0]
            wait_for(lambda: not before.exists())
            wait_for_more(load, 200, row)
            row.tried += 1
            load.stop()
            note_answers(row, load)
            if load.rejected:
                row.fail(f"rejected with {set(load.rejected.values())}")
            if not service.files("*.ndjson"):
                row.fail("removed everything")
            service.stop()
    bench.remove(directory)
    bench.say(f"{row.what}: {row.acknowledged} acknowledged")
    return row
