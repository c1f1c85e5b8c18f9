import errno
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from astralog.errors import Cause
from astralog.settings import Settings
from astralog.store import writer as storages
from astralog.store.writer import MAINTENANCE_SECONDS, Storage
from tests.support.fake_system import BreakOs, Disk
from tests.support.segment_files import stored
from tests.unit.store.segments import code_of

A, B = b'{"m":"a"}\n', b'{"m":"b"}\n'


@pytest.fixture
def storage(settings: Settings) -> Storage:
    return Storage(settings)


class Time:
    """The storage's clock, while the wall clock is set back again and again."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return -self.now


def storage_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the log lines about rejecting batches and about its end."""
    return [line for line in caplog.messages if line.startswith("storage_")]


def test_a_commit_group_is_stored(storage: Storage, tmp_path: Path) -> None:
    """None means that the commit group is on disk; closing seals it."""
    assert storage.store([A, B]) is None
    assert storage.error is None
    assert A + B == stored(tmp_path)
    storage.close()
    assert [A + B] == [path.read_bytes() for path in tmp_path.glob("*.ndjson")]


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, "storage_full"),
        (errno.EDQUOT, "storage_full"),
        (errno.EIO, "storage_failed"),
        (errno.EROFS, "storage_failed"),
    ],
)
def test_a_commit_group_that_cannot_be_written_is_rejected_with_its_code(
    storage: Storage, tmp_path: Path, break_os: BreakOs, number: int, code: str
) -> None:
    """A full and a failed disk have different codes, and none of the group is stored."""
    storage.store([A])
    break_os("writev", number, times=1)
    assert code == code_of(storage.store([B]))
    assert code == code_of(storage.error)
    assert A == stored(tmp_path)
    assert storage.store([B]) is None
    assert storage.error is None
    assert A + B == stored(tmp_path)
    storage.close()


def test_a_sync_that_fails_twice_is_a_failed_storage(
    storage: Storage, tmp_path: Path, break_os: BreakOs
) -> None:
    """One failed sync has no effect, two in a row reject the commit group."""
    break_os("fdatasync", errno.EIO, times=1)
    assert storage.store([A]) is None
    break_os("fdatasync", errno.EIO, times=2)
    assert "storage_failed" == code_of(storage.store([B]))
    assert A == stored(tmp_path)


@pytest.mark.parametrize(("free", "code"), [(1000 + len(A), None), (999 + len(A), "storage_full")])
def test_a_commit_group_is_rejected_before_the_disk_is_really_full(
    settings: Settings, tmp_path: Path, disk: Disk, free: int, code: str | None
) -> None:
    """The commit group counts towards the free disk that is kept."""
    storage = Storage(replace(settings, min_free_bytes=1000))
    disk.free = free
    assert code == code_of(storage.store([A]))
    assert (b"" if code else A) == stored(tmp_path)
    storage.close()


def test_batches_are_rejected_before_the_inodes_run_out(
    settings: Settings, tmp_path: Path, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    """One per 256 KiB is kept; the message names the resource that is short."""
    storage = Storage(replace(settings, min_free_bytes=1 << 20))
    disk.inodes, disk.free_inodes = 1 << 40, 3
    assert code_of(storage.store([A])) == "storage_full"
    assert code_of(storage.store([A])) == "storage_full"
    assert stored(tmp_path) == b""
    assert storage.error == Cause(
        "storage_full",
        "The disk has fewer than 4 inodes free (ASTRALOG_MIN_FREE_BYTES); "
        "nothing was stored; retry later.",
    )
    disk.free_inodes = 4
    storage.maintain()  # which makes a segment, to see whether that works
    disk.free_inodes = 3
    assert storage.error is None
    assert storage.store([A]) is None
    assert stored(tmp_path) == A
    assert caplog.messages == [
        "storage_full: [Errno 28] 3 inodes of the disk are free, ASTRALOG_MIN_FREE_BYTES keeps 4; "
        "batches are rejected",
        "storage_full is over: batches are stored again",
    ]
    storage.close()


@pytest.mark.parametrize(
    ("call", "inodes", "words"),
    [
        ("open", 64, "no inodes free"),
        ("open", 0, "disk is full"),
        ("writev", 64, "disk is full"),
    ],
)
@pytest.mark.parametrize("free_inodes", [0, 5])
def test_without_a_floor_the_systems_error_is_explained(
    settings: Settings,
    disk: Disk,
    break_os: BreakOs,
    call: str,
    inodes: int,
    words: str,
    free_inodes: int,
) -> None:
    """A file cannot be created for lack of an inode, although bytes are free.

    By the time that they are counted, another process may have freed an inode.
    """
    storage = Storage(settings)
    disk.inodes, disk.free_inodes = inodes, free_inodes
    break_os(call, errno.ENOSPC)
    assert code_of(storage.store([A])) == "storage_full"
    assert storage.error
    assert words in storage.error.message


@pytest.mark.parametrize(("kept", "full", "enough"), [(0, 0, 1), (1000, 999, 1000)])
def test_acceptance_comes_back_by_itself(
    settings: Settings, disk: Disk, kept: int, full: int, enough: int
) -> None:
    """Maintenance notices that the disk is full and that it has room again.

    Without a limit on free disk, a full disk still stores nothing.
    """
    storage = Storage(replace(settings, min_free_bytes=kept))
    disk.free = full
    storage.maintain()
    assert "storage_full" == code_of(storage.error)
    disk.free = enough
    storage.maintain()
    assert storage.error is None
    storage.close()


def test_a_failed_storage_is_probed_before_it_is_used_again(
    storage: Storage, tmp_path: Path, break_os: BreakOs
) -> None:
    """A free disk alone does not end a failure; a file must be created."""
    break_os("writev", errno.EIO, times=1)
    storage.store([A])
    syncs = break_os("fsync", errno.EIO, times=1)
    storage.maintain()
    assert "storage_failed" == code_of(storage.error)
    assert 1 == len(syncs.calls)
    storage.maintain()
    assert storage.error is None
    assert storage.store([B]) is None
    assert B == stored(tmp_path)
    storage.close()


def test_a_lack_of_memory_is_a_failed_storage(
    storage: Storage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """None of the group is stored, the log has the reason, and the next group is stored."""

    def fail(fd: int, buffers: Sequence[bytes]) -> int:
        raise MemoryError

    storage.store([A])
    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", fail)
        assert "storage_failed" == code_of(storage.store([B]))
    assert "storage_failed: out of memory; batches are rejected" in caplog.messages
    assert storage.store([B]) is None
    assert A + B == stored(tmp_path)
    storage.close()


def test_a_failed_background_sync_is_a_failed_storage(
    settings: Settings,
    tmp_path: Path,
    break_os: BreakOs,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In the mode everysec, the log has one line about the possible loss, and one about its end."""
    storage = Storage(replace(settings, sync="everysec"))
    storage.store([A])
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 2)
    syncs = break_os("fdatasync", errno.EIO)
    for _ in range(5):
        storage.maintain()
        assert "storage_failed" == code_of(storage.store([B]))
    syncs.times = 0
    assert storage.store([B]) is None
    lines = storage_lines(caplog)
    assert [
        "storage_failed: [Errno 5] sync failed: Input/output error; acknowledged batches that may "
        "be lost: 1; batches are rejected",
        "storage_failed is over: batches are stored again",
    ] == lines
    assert 1 == storage.possibly_lost_batches
    assert A + B == stored(tmp_path)
    storage.close()


def test_a_full_disk_names_its_limit(
    settings: Settings, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    """The log line has the free bytes and the setting."""
    storage = Storage(replace(settings, min_free_bytes=1000))
    disk.free = 999
    storage.maintain()
    assert [
        "storage_full: [Errno 28] 999 bytes of the disk are free, ASTRALOG_MIN_FREE_BYTES keeps "
        "1000; batches are rejected"
    ] == caplog.messages


def test_missing_directory_is_a_failed_storage(settings: Settings, tmp_path: Path) -> None:
    """It rejects commit groups until it is back."""
    path = tmp_path / "data"
    storage = Storage(replace(settings, data_dir=path))
    assert "storage_failed" == code_of(storage.store([A]))
    storage.maintain()
    assert "storage_failed" == code_of(storage.error)
    path.mkdir()
    storage.maintain()
    assert storage.error is None
    assert storage.store([B]) is None
    assert B == stored(path)
    storage.close()


def test_an_error_is_two_lines_in_the_log(
    storage: Storage, break_os: BreakOs, caplog: pytest.LogCaptureFixture
) -> None:
    """For any number of rejected groups, one line at its start and one at its end."""
    for rejections in (3, 1):
        caplog.clear()
        break_os("writev", errno.EIO, times=rejections)
        for _ in range(rejections):
            storage.store([A])
            storage.maintain()
        storage.store([A])
        storage.store([A])
        lines = storage_lines(caplog)
        assert [
            "storage_failed: [Errno 5] Input/output error; batches are rejected",
            "storage_failed is over: batches are stored again",
        ] == lines
    storage.close()


def test_an_error_that_becomes_another_is_logged(
    settings: Settings, disk: Disk, break_os: BreakOs, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk that then fails is two errors, and the end names the last one."""
    storage = Storage(replace(settings, min_free_bytes=1000))
    disk.free = 0
    storage.store([A])
    disk.free = 1 << 40
    break_os("writev", errno.EIO, times=1)
    storage.store([A])
    storage.store([A])
    lines = storage_lines(caplog)
    assert ["storage_full", "storage_failed", "storage_failed is over"] == [
        line.partition(":")[0] for line in lines
    ]
    storage.close()


def test_maintenance_is_due_after_a_while(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most once per interval, however often it is requested."""
    time = Time()
    monkeypatch.setattr(storages, "time", time)
    storage.maintain()
    assert not storage.is_maintenance_due()
    time.now += MAINTENANCE_SECONDS
    assert storage.is_maintenance_due()
    storage.maintain()
    assert not storage.is_maintenance_due()


def test_maintenance_seals_by_age(settings: Settings, tmp_path: Path) -> None:
    """An idle segment is sealed by maintenance alone."""
    storage = Storage(replace(settings, segment_seconds=1e-9))
    storage.store([A])
    assert [] == list(tmp_path.glob("*.ndjson"))
    storage.maintain()
    assert [A] == [path.read_bytes() for path in tmp_path.glob("*.ndjson")]


def test_healthy_storage_logs_nothing(storage: Storage, caplog: pytest.LogCaptureFixture) -> None:
    """Storing, maintaining and closing log no line."""
    caplog.set_level(logging.INFO)
    storage.store([A])
    storage.maintain()
    storage.close()
    assert [] == caplog.messages
