"""A disk that is full, below its floor, without inodes, read-only or gone."""

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.faults import mounts
from tests.faults.bench import Bench, tally, under_load, wait_for_more
from tests.faults.clocks import make_old_segments, remove_segments
from tests.faults.shim import ALWAYS, ShimmedService
from tests.faults.table import Row
from tests.support.load import Load
from tests.support.service import Service, wait_for

KIB = 1024
MIB = 1024 * KIB
FLOOR_BYTES = 8 * MIB

#: A small disk's inodes, and the old segments that take most of them before a run.
INODES = 600
OLD_SEGMENTS = 500

#: A chunk that was checked against the floor by each of two workers.
FLOOR_SLACK_BYTES = MIB


def run(bench: Bench, rounds: int) -> Iterator[Row]:
    """Try each trouble `rounds` times."""
    if mounts.can_mount():
        yield _fill(bench, rounds, 0)
        yield _fill(bench, rounds, FLOOR_BYTES)
        yield _use_up_inodes(bench, rounds)
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
                if _free_bytes(disk) < floor_bytes - FLOOR_SLACK_BYTES:
                    row.fail("wrote below the floor")
                filler.unlink()
                row.tried += 1
                wait_for_more(load, 5, row)
    bench.remove(directory)
    return row


def _use_up_inodes(bench: Bench, rounds: int) -> Row:
    """Take all inodes of a disk with files that are no segments: old segments make room."""
    row = Row("no inode left")
    directory = bench.make_directory()
    disk = directory / "disk"
    with mounts.small_disk(disk, INODES):
        service = Service(
            directory,
            data_dir=disk / "data",
            workers=2,
            segment_seconds=1,
            min_free_bytes=FLOOR_BYTES,
            retain_free_bytes=2 * FLOOR_BYTES,
        )
        taken = disk / "taken"
        old = make_old_segments(service.data_dir, OLD_SEGMENTS)
        with under_load(bench, row, service) as load:
            for _ in range(rounds):
                load.wait_for_acknowledged(20)
                wait_for(partial(_take_inodes, taken, load, len(load.rejected) + 5))
                row.tried += 1
                wait_for_more(load, 20, row)
                if not any(path.exists() for path in old):
                    row.fail("removed every old segment")
                shutil.rmtree(taken)
                old += make_old_segments(
                    service.data_dir, OLD_SEGMENTS - sum(map(Path.exists, old))
                )
            for code in {*load.rejected.values()} - {"storage_full"}:
                row.fail(f"rejected with {code}")
            for message in load.messages:
                if "inodes free" not in message:
                    row.fail(f"rejected with the message {message}")
            remove_segments(old)
    bench.remove(directory)
    return row


def _take_inodes(directory: Path, load: Load, rejections: int) -> bool:
    """Make files until no inode is left; return whether so many batches are rejected by then."""
    directory.mkdir(exist_ok=True)
    number = len(list(directory.iterdir()))
    with contextlib.suppress(OSError):
        while True:
            (directory / str(number)).touch()
            number += 1
    return len(load.rejected) > rejections


def fill_up(filler: Path, size: int) -> None:
    """Fill a disk to which others write, except about `size` bytes."""
    with filler.open("wb") as file:
        while (left := _free_bytes(filler.parent) - size) > 0:
            try:
                os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), min(MIB, left))
            except OSError:
                return  # full already


def _free_bytes(directory: Path) -> int:
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize


def _remount(bench: Bench, rounds: int) -> Row:
    """Remount the disk read-only as an administrator does, and writable again."""
    row = Row("disk remounted read-only")
    directory = bench.make_directory()
    disk = directory / "disk"
    with mounts.small_disk(disk):
        # Only between two segments no file is open, which a read-only remount waits for.
        # Nor is there a database of keys, which stays open.
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
    """Let ext4 turn read-only at an error, while segments are open, and mount it again.

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
            service.control.end_faults()
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
    """Delete the data directory; batches acknowledged after its return must be there."""
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
