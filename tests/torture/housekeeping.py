"""Retention while the process that looks after the directory is killed, and on a small disk."""

import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.support.load import Load
from tests.support.service import Service, wait_for
from tests.torture import mounts
from tests.torture.bench import Bench, note_answers, read_lines, wait_for_more
from tests.torture.table import Row

KIB = 1024
MIB = 1024 * KIB
RETAIN_BYTES = 300 * KIB
SEGMENT_BYTES = 20 * KIB

#: What comes in between two looks at the directory, and what is open.
SLACK_BYTES = 2 * MIB

FREE_BYTES = 16 * MIB
LEAST_FREE_BYTES = 4 * MIB


def torture(bench: Bench, rounds: int) -> Iterator[Row]:
    """Kill the process that looks after the directory `rounds` times; fill a disk."""
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
    """Kill the one that looks after the directory; another one must, and remove only the oldest."""
    row = Row("kill -9 of who looks after the directory")
    service = Service(
        bench.make_directory(), workers=2, segment_bytes=SEGMENT_BYTES, retain_bytes=RETAIN_BYTES
    )
    seen: set[str] = set()
    with service, Load(service, threads=4, keyed=4, is_patient=True) as load:
        for _ in range(rounds):
            (pid, *_) = wait_for(lambda: _housekeepers(service))
            seen |= {path.name for path in service.files("*.ndjson")}
            os.kill(pid, signal.SIGKILL)
            row.tried += 1
            wait_for_more(load, 20, row)
            wait_for(lambda: not service.has_orphans())
            wait_for(partial(_is_kept, service, seen))
        load.stop()
        note_answers(row, load)
        if service.stop() != 0 or service.files("*.open"):
            row.fail("did not stop with every segment sealed")
        lines = read_lines(service.files(), row)
        row.doubled += sum(1 for count in lines.values() if count > 1)
    bench.say(f"{row.what}: {row.tried} rounds")
    return row


def _is_kept(service: Service, seen: set[str]) -> bool:
    """Return whether about as much is there as is to be kept, and only the oldest was removed."""
    paths = service.files()
    try:
        total = sum(path.stat().st_size for path in paths)
    except FileNotFoundError:  # sealed or removed meanwhile
        return False
    names = {path.name for path in paths}
    removed = seen - names
    is_oldest = not removed or max(removed) < min(names)
    return is_oldest and RETAIN_BYTES // 2 < total < RETAIN_BYTES + SLACK_BYTES


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
