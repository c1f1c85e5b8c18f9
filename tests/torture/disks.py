"""A disk that is full, below its floor, read-only or gone, and a clock that jumps."""

import errno
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.support.load import Load
from tests.support.service import Service, segment_pid, wait_for
from tests.torture import mounts
from tests.torture.bench import Bench, tally, under_load, wait_for_more
from tests.torture.shim import ALWAYS, ShimmedService
from tests.torture.table import Row

KIB = 1024
MIB = 1024 * KIB
FLOOR_BYTES = 8 * MIB

#: A chunk that was checked against the floor by each of two workers.
FLOOR_SLACK_BYTES = MIB


def torture(bench: Bench, rounds: int) -> Iterator[Row]:
    """Try each trouble `rounds` times."""
    if mounts.can_mount():
        yield _fill(bench, rounds, 0)
        yield _fill(bench, rounds, FLOOR_BYTES)
        yield _remount(bench, rounds)
    else:
        bench.say("NOT TESTED: a disk full or remounted; it takes root to mount a file system")
    if mounts.can_mount_ext4():
        yield _break_file_system(bench, rounds)
    else:
        bench.say("NOT TESTED: an ext4 with an error; it takes root, mkfs.ext4, a loop device")
    if bench.has_time:
        yield _make_read_only(bench, rounds)
        yield _move_away(bench, rounds)
        yield _delete(bench, rounds)
        yield _turn_clock_back(bench, rounds)


def _wait_for_rejection(load: Load, row: Row, *codes: str) -> None:
    before = len(load.rejected)
    wait_for(lambda: len(load.rejected) > before + 5)
    for code in set(list(load.rejected.values())[before:]) - {*codes}:
        row.fail(f"rejected with {code}")
    for code in load.keyed.codes.keys() - {*codes, "key_in_use"}:
        row.fail(f"rejected a batch with a key with {code}")


def _fill(bench: Bench, rounds: int, floor_bytes: int) -> Row:
    """Fill a small disk, really or down to the floor, and make room again."""
    row = Row("free disk below the floor" if floor_bytes else "disk full")
    directory = bench.make_directory()
    disk = directory / "disk"
    with mounts.small_disk(disk):
        filler = disk / "filler"
        service = Service(disk, workers=2, min_free_bytes=floor_bytes, segment_bytes=2 * MIB)
        with under_load(bench, row, service) as load:
            for _ in range(rounds):
                load.wait_for_acknowledged(20)
                fill_up(filler, floor_bytes + bench.random.randrange(200 * KIB))
                _wait_for_rejection(load, row, "storage_full")
                free = os.statvfs(disk)
                if free.f_bavail * free.f_frsize < floor_bytes - FLOOR_SLACK_BYTES:
                    row.fail("wrote below the floor")
                filler.unlink()
                row.tried += 1
                wait_for_more(load, 5, row)
    bench.remove(directory)
    return row


def fill_up(filler: Path, size: int) -> None:
    """Fill a disk, which others write to, but for about `size` bytes."""
    free = os.statvfs(filler.parent)
    left = free.f_bavail * free.f_frsize - size
    with filler.open("wb") as file:
        while left > 0:
            step = min(MIB, left)
            try:
                os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), step)
            except OSError:
                return  # full already
            left -= step


def _remount(bench: Bench, rounds: int) -> Row:
    """Remount the disk read-only as an administrator does, and writable again."""
    row = Row("disk remounted read-only")
    directory = bench.make_directory()
    disk = directory / "disk"
    with mounts.small_disk(disk):
        # Only between two segments no file is open, which a read-only remount waits for.
        # Nor is there a journal of keys, which stays open.
        service = Service(directory, data_dir=disk / "data", segment_bytes=20 * KIB)
        with under_load(bench, row, service, has_keys=False) as load:
            for _ in range(rounds):
                load.wait_for_acknowledged(20)
                mounts.remount(disk, read_only=True)
                _wait_for_rejection(load, row, "storage_failed")
                time.sleep(bench.random.uniform(0, 1.5))
                mounts.remount(disk, read_only=False)
                row.tried += 1
                wait_for_more(load, 5, row)
    bench.remove(directory)
    return row


def _break_file_system(bench: Bench, rounds: int) -> Row:
    """Let ext4 turn read-only at an error, while segments are open, and mount it anew.

    Nothing is written at the moment of the error: a sync may then succeed whose bytes are lost.
    """
    row = Row("ext4 turned read-only by an error")
    directory = bench.make_directory()
    disk = directory / "disk"
    with mounts.ext4_disk(disk):
        service = Service(directory, data_dir=disk / "data", workers=2, segment_bytes=100_000)
        with under_load(bench, row, service) as load:
            for _ in range(rounds):
                load.wait_for_acknowledged(20)
                load.wait_for_every_worker()  # so that each has an open segment
                with load.paused():
                    mounts.fail_ext4(disk)
                _wait_for_rejection(load, row, "storage_failed")
                mounts.unmount(disk)
                _wait_for_rejection(load, row, "storage_failed")
                mounts.mount_ext4(disk)
                row.tried += 1
                wait_for_more(load, 5, row)
    bench.remove(directory)
    return row


def _make_read_only(bench: Bench, rounds: int) -> Row:
    """Let every change fail as on a file system that turned read-only after an error."""
    row = Row("disk read-only for a while")
    service = ShimmedService(bench.make_directory(), workers=2, segment_bytes=100_000)
    with under_load(bench, row, service) as load:
        for _ in range(rounds):
            load.wait_for_acknowledged(20)
            for operation in ("write", "open", "rename", "unlink", "truncate"):
                service.control.fail(operation, errno.EROFS, times=ALWAYS)
            _wait_for_rejection(load, row, "storage_failed")
            time.sleep(bench.random.uniform(0, 1.5))
            service.control.mend()
            row.tried += 1
            wait_for_more(load, 5, row)
    return row


def _move_away(bench: Bench, rounds: int) -> Row:
    """Move the data directory away under the service, and make a new one later."""
    row = Row("data directory moved away")
    service = Service(bench.make_directory(), workers=2, segment_bytes=100_000)
    stray = service.data_dir.parent / "stray"
    stray.mkdir()
    # A batch that was moved away may be stored again: no client sends one that it knows is stored.
    with under_load(bench, row, service, strays=stray, is_patient=True) as load:
        for number in range(rounds):
            load.wait_for_acknowledged(20)
            load.wait_for_every_worker()  # so that each has an open segment
            service.data_dir.rename(stray / str(number))
            _wait_for_rejection(load, row, "storage_failed")
            service.data_dir.mkdir()
            row.tried += 1
            wait_for_more(load, 5, row)
            for path in sorted((stray / str(number)).glob("*.ndjson*")):
                path.rename(stray / f"{number}-{path.name}")
    return row


def _delete(bench: Bench, rounds: int) -> Row:
    """Delete the data directory; what is acknowledged once it is back must be there."""
    row = Row("data directory deleted")
    service = Service(bench.make_directory(), workers=2, segment_bytes=100_000)
    with service:
        for number in range(rounds):
            with Load(service, start=number << 32) as before:
                before.wait_for_acknowledged(20)
                before.wait_for_every_worker()  # so that each has an open segment
                doomed = service.data_dir.rename(service.data_dir.with_name("doomed"))
                shutil.rmtree(doomed)
                _wait_for_rejection(before, row, "storage_failed")
            service.data_dir.mkdir()
            row.tried += 1
            start = (number << 32) + (1 << 31)
            with Load(service, threads=4, start=start, keyed=4) as load:
                wait_for_more(load, 50, row)
            tally(row, load, service.files())
        service.stop()
    bench.say(f"{row.what}: {row.tried} rounds")
    return row


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
    with under_load(bench, row, service) as load:
        for seconds in [-3600, 0] * rounds:
            load.wait_for_acknowledged(20)
            load.wait_for_every_worker()  # one that has no segment yet starts it by the new clock
            before = _count_sealed(service)
            service.control.set_clock(seconds)
            wait_for(partial(_has_every_worker_sealed, service, before))
            row.tried += 1
            wait_for_more(load, 5, row)
    for pid in set(map(segment_pid, service.files())):
        written = [path.stat().st_mtime for path in service.files(f"*-{pid}.ndjson")]
        if written != sorted(written):
            row.fail("a later segment has an earlier name")
    return row
