import errno
import fcntl
import os
import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gevent
import pytest

from astralog.settings import SyncMode
from astralog.store import files
from astralog.store import writer as writer_module
from astralog.store.segment import WRITEV_BUFFERS, SegmentLost, recover_file
from astralog.store.writer import MAX_UNSEALED
from tests.support.fake_system import BreakOs
from tests.unit.store.segments import (
    A,
    B,
    C,
    Clock,
    descriptors,
    make_writer,
    recover,
    sealed,
    still_open,
)

# --- Failures: all or nothing


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_write_that_fails_leaves_nothing_of_its_commit_group(
    tmp_path: Path, break_os: BreakOs, number: int
) -> None:
    """The error is raised; the accepted lines are sealed completely."""
    writer = make_writer(tmp_path)
    writer.append([A])
    break_os("writev", number, times=1)
    with pytest.raises(OSError, match=re.escape(os.strerror(number))) as raised:
        writer.append([B])
    assert number == raised.value.errno
    assert ([A], []) == (sealed(tmp_path), still_open(tmp_path))
    writer.append([C])
    writer.seal()
    assert [A, C] == sealed(tmp_path)


def test_a_short_write_that_then_fails_is_truncated(
    tmp_path: Path, break_os: BreakOs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a commit group on a full disk is truncated, though its first line is complete."""
    write = os.write

    def write_half(fd: int, buffers: Sequence[bytes]) -> int:
        return write(fd, b"".join(buffers)[: len(B) + 3])

    writer = make_writer(tmp_path)
    writer.append([A])
    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", write_half)
        break_os("write", errno.ENOSPC, times=1)
        with pytest.raises(OSError, match="No space left"):
            writer.append([B, C])
    assert ([A], []) == (sealed(tmp_path), still_open(tmp_path))


def test_a_commit_group_of_many_buffers_is_truncated_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the second of two writes fails, none of the first one stays."""
    writev = os.writev
    results = [writev]

    def write_once(fd: int, buffers: Sequence[bytes]) -> int:
        if not results:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return results.pop()(fd, buffers)

    writer = make_writer(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", write_once)
        with pytest.raises(OSError, match="No space left"):
            writer.append([A] * (WRITEV_BUFFERS + 1))
    assert [] == list(tmp_path.iterdir())


def test_the_first_commit_group_that_fails_leaves_no_file(
    tmp_path: Path, break_os: BreakOs
) -> None:
    """A segment without accepted lines is removed."""
    break_os("writev", errno.ENOSPC)
    writer = make_writer(tmp_path)
    with pytest.raises(OSError, match="No space left"):
        writer.append([A])
    assert [] == list(tmp_path.iterdir())


def test_a_failure_that_repeats_is_logged_once(
    tmp_path: Path, break_os: BreakOs, caplog: pytest.LogCaptureFixture
) -> None:
    """One line per commit group would fill another disk during the failure."""
    writer = make_writer(tmp_path)
    syncs = break_os("fdatasync", errno.EIO)
    for _ in range(5):
        with pytest.raises(SegmentLost):
            writer.append([A])
    lost = [message for message in caplog.messages if message.startswith("segment lost")]
    assert 1 == len(lost)
    syncs.times = 0
    writer.append([A])
    writer.append([A])
    syncs.times, syncs.calls = 1, []
    writer.append([B])
    assert 2 == sum(message.startswith("segment lost") for message in caplog.messages)
    writer.close()


def test_segments_that_cannot_be_sealed_are_logged_once(
    tmp_path: Path, break_os: BreakOs, caplog: pytest.LogCaptureFixture
) -> None:
    """And once more when they can."""
    writer = make_writer(tmp_path, segment_bytes=1)
    renames = break_os("rename_new", errno.EIO, module=files)
    for _ in range(3):
        writer.append([A])
    renames.times = 0
    writer.append([A])
    lines = [record.message for record in caplog.records if record.name.endswith("writer")]
    assert [line.partition(" 2")[0] for line in lines] == [
        "cannot seal",
        "segments are sealed again",
    ]
    writer.close()


def test_after_a_failed_sync_the_commit_group_goes_to_a_new_file(
    tmp_path: Path, break_os: BreakOs, caplog: pytest.LogCaptureFixture
) -> None:
    """The old file is truncated to its last synced end and sealed; the group is written again."""
    writer = make_writer(tmp_path)
    writer.append([A])
    syncs = break_os("fdatasync", errno.EIO, times=1)
    writer.append([B])
    assert ([A], [B]) == (sealed(tmp_path), still_open(tmp_path))
    assert 2 == len(syncs.calls)
    assert any(message.startswith("segment lost: ") for message in caplog.messages)
    writer.append([C])
    writer.seal()
    assert [A, B + C] == sealed(tmp_path)


def test_a_descriptor_whose_sync_failed_is_never_synced_again(
    tmp_path: Path, break_os: BreakOs
) -> None:
    """A second sync of the same file would hide the loss."""
    writer = make_writer(tmp_path)
    writer.append([A])
    syncs = break_os("fdatasync", errno.EIO, times=3)
    for _ in range(2):
        try:
            writer.append([B])
        except SegmentLost:
            continue
    writer.append([C])
    writer.seal()
    failed = syncs.calls[:3]
    assert 3 == len(set(failed))
    assert not set(failed) & set(syncs.calls[3:])


def test_a_second_failed_sync_rejects_the_commit_group(tmp_path: Path, break_os: BreakOs) -> None:
    """If the new file cannot be synced either, none of the group is stored."""
    writer = make_writer(tmp_path)
    writer.append([A])
    syncs = break_os("fdatasync", errno.EIO, times=2)
    with pytest.raises(SegmentLost, match="sync failed"):
        writer.append([B])
    assert ([A], []) == (sealed(tmp_path), still_open(tmp_path))
    assert 2 == len(syncs.calls)
    writer.append([C])
    writer.seal()
    assert [A, C] == sealed(tmp_path)


def test_a_new_file_that_cannot_be_written_rejects_the_commit_group(
    tmp_path: Path, break_os: BreakOs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the sync fails and then the disk is full, none of the group is stored."""

    def fail_and_fill(fd: int) -> None:
        break_os("writev", errno.ENOSPC, times=1)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    writer = make_writer(tmp_path)
    writer.append([A])
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail_and_fill)
        with pytest.raises(OSError, match="No space left"):
            writer.append([B])
    assert ([A], []) == (sealed(tmp_path), still_open(tmp_path))
    writer.append([C])
    writer.seal()
    assert [A, C] == sealed(tmp_path)


def test_failed_sync_by_the_timer_keeps_accepted_lines(
    tmp_path: Path, break_os: BreakOs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the mode `everysec` the written lines stay, and the file is ended."""
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    writer = make_writer(tmp_path, sync="everysec")
    writer.append([A])
    syncs = break_os("fdatasync", errno.EIO, times=1)
    now += 2
    with pytest.raises(SegmentLost, match="acknowledged batches that may be lost: 1$"):
        writer.maintain()
    writer.append([B])
    writer.seal()
    assert [A, B] == sealed(tmp_path)
    assert 2 == len(set(syncs.calls))


def test_a_file_that_cannot_be_truncated_is_truncated_later(
    tmp_path: Path, break_os: BreakOs
) -> None:
    """No rejected line is sealed: the file stays open until it can be truncated."""
    writer = make_writer(tmp_path)
    writer.append([A])
    cuts = break_os("ftruncate", errno.EIO)
    break_os("fdatasync", errno.EIO, times=2)
    with pytest.raises(SegmentLost):
        writer.append([B])
    writer.maintain()
    assert [] == sealed(tmp_path)
    cuts.times = 0
    writer.maintain()
    assert ([A], []) == (sealed(tmp_path), still_open(tmp_path))


def test_a_segment_that_cannot_be_sealed_is_sealed_later(tmp_path: Path, break_os: BreakOs) -> None:
    """After a failed rename new groups go to a new file, and the rename is retried."""
    writer = make_writer(tmp_path)
    writer.append([A])
    renames = break_os("rename_new", errno.EIO, module=files)
    writer.seal()
    writer.append([B])
    writer.maintain()
    assert ([], [A, B]) == (sealed(tmp_path), still_open(tmp_path))
    renames.times = 0
    writer.maintain()
    assert ([A], [B]) == (sealed(tmp_path), still_open(tmp_path))
    writer.seal()
    assert [A, B] == sealed(tmp_path)


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_file_that_was_removed_under_the_writer_is_noticed(
    tmp_path: Path, is_replaced: bool
) -> None:
    """A commit group goes to a new file, not to one without a name."""
    writer = make_writer(tmp_path)
    writer.append([A])
    (path,) = tmp_path.iterdir()
    path.unlink()
    if is_replaced:
        path.write_bytes(b"someone else's\n")
    writer.append([B])
    writer.seal()
    assert B in sealed(tmp_path)
    assert A not in b"".join(sealed(tmp_path))


def test_a_directory_that_was_removed_rejects_commit_groups_until_it_is_back(
    tmp_path: Path,
) -> None:
    """Without the directory no group is accepted."""
    path = tmp_path / "data"
    path.mkdir()
    writer = make_writer(path)
    writer.append([A])
    moved = path.rename(tmp_path / "moved")
    for _ in range(2):
        with pytest.raises(OSError, match=r"No such file|removed"):
            writer.append([B])
    path.mkdir()
    writer.append([C])
    writer.seal()
    assert [C] == sealed(path)
    assert B not in b"".join(still_open(moved))


def test_probe_checks_whether_a_file_can_be_created(tmp_path: Path, break_os: BreakOs) -> None:
    """It fails as the next group would; a successful probe leaves the file for the group."""
    writer = make_writer(tmp_path)
    break_os("fsync", errno.EIO, times=1)
    with pytest.raises(OSError, match="Input/output error"):
        writer.probe()
    assert [] == list(tmp_path.iterdir())
    writer.probe()
    writer.probe()
    assert [b""] == still_open(tmp_path)
    writer.append([A])
    assert [A] == still_open(tmp_path)
    writer.seal()


def test_a_probe_notices_a_removed_file(tmp_path: Path) -> None:
    """A removed file fails the probe once; the next probe creates a new file."""
    writer = make_writer(tmp_path)
    writer.append([A])
    (path,) = tmp_path.iterdir()
    path.unlink()
    with pytest.raises(SegmentLost):
        writer.probe()
    writer.probe()
    writer.seal()
    assert [] == list(tmp_path.iterdir())


def test_stop_retries_failed_seals(tmp_path: Path, break_os: BreakOs) -> None:
    """A failed rename is retried at the stop, not left to the next start."""
    writer = make_writer(tmp_path)
    writer.append([A])
    break_os("rename_new", errno.EIO, times=1, module=files)
    writer.seal()
    assert [A] == still_open(tmp_path)
    writer.close()
    assert ([A], []) == (sealed(tmp_path), still_open(tmp_path))


def test_retried_seals_do_not_keep_batches_waiting(
    tmp_path: Path, break_os: BreakOs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a slow disk each takes several syncs: after a second, the others follow later."""
    writer = make_writer(tmp_path)
    break_os("rename_new", errno.EIO, times=4, module=files)
    for _ in range(4):
        writer.append([A])
        writer.seal()
    now = 0.0

    def recover_slowly(*arguments: Any) -> int:
        nonlocal now
        now += 0.6
        return recover_file(*arguments)

    clock = SimpleNamespace(monotonic=lambda: now, time=time.time)
    monkeypatch.setattr(writer_module, "time", clock)
    monkeypatch.setattr(writer_module, "recover_file", recover_slowly)
    writer.maintain()
    assert [A] * 2 == still_open(tmp_path)
    now = 0.0
    monkeypatch.setattr(writer_module, "RETRY_SECONDS", 0.0)
    writer.close()
    assert [] == still_open(tmp_path)


# --- Whatever comes between

INTERRUPTIONS = [MemoryError, KeyboardInterrupt, SystemExit, gevent.GreenletExit, gevent.Timeout]


def half_written(error: type[BaseException]) -> Callable[..., int]:
    """Return a writev that is interrupted after the first line and half of the second."""
    write = os.write

    def write_half(fd: int, buffers: Sequence[bytes]) -> int:
        write(fd, b"".join(buffers)[: len(B) + 3])
        raise error

    return write_half


@pytest.mark.parametrize("error", INTERRUPTIONS)
@pytest.mark.parametrize("sync", ["always", "everysec", "never"])
def test_interrupted_write_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], sync: SyncMode
) -> None:
    """None of the group is stored, and later groups are complete in another file."""
    writer = make_writer(tmp_path, sync=sync)
    writer.append([A])
    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", half_written(error))
        with pytest.raises(error):
            writer.append([B, C])
    assert ([A], []) == (sealed(tmp_path), still_open(tmp_path))
    writer.append([C])
    writer.close()
    assert [A, C] == sealed(tmp_path)


@pytest.mark.parametrize("error", INTERRUPTIONS)
@pytest.mark.parametrize("call", ["fdatasync", "stat"])
def test_interruption_after_a_write_undoes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], call: str
) -> None:
    """A written group that was not accepted is removed, at whichever step."""
    writer = make_writer(tmp_path)
    writer.append([A])
    calls = 0
    function = getattr(os, call)

    def interrupt(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise error
        return function(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, interrupt)
        with pytest.raises(error):
            writer.append([B])
    writer.append([C])
    writer.close()
    assert [A, C] == sealed(tmp_path)


@pytest.mark.parametrize("error", INTERRUPTIONS)
def test_interrupted_creation_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """A file that could not be claimed neither exists nor is open."""

    def interrupt(fd: int, operation: int) -> None:
        raise error

    writer = make_writer(tmp_path)
    before = descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", interrupt)
        with pytest.raises(error):
            writer.append([A])
    assert [] == list(tmp_path.iterdir())
    assert before == descriptors()


def test_interrupted_seal_is_completed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group that filled its segment is stored, whatever happens to the seal."""

    def interrupt(path: Path, size: int) -> None:
        raise MemoryError

    writer = make_writer(tmp_path, segment_bytes=1)
    with monkeypatch.context() as patch:
        patch.setattr(files, "seal_file", interrupt)
        writer.append([A])
    assert ([], [A]) == (sealed(tmp_path), still_open(tmp_path))
    writer.maintain()
    assert ([A], []) == (sealed(tmp_path), still_open(tmp_path))


def test_no_recovery_takes_a_file_that_cannot_be_truncated(
    tmp_path: Path, break_os: BreakOs, caplog: pytest.LogCaptureFixture
) -> None:
    """Rejected lines are not stored because another process finds them complete."""
    writer = make_writer(tmp_path)
    writer.append([A])
    cuts = break_os("ftruncate", errno.EIO)
    break_os("fdatasync", errno.EIO, times=2)
    with pytest.raises(SegmentLost):
        writer.append([B])
    for _ in range(3):
        recover(tmp_path)
        writer.maintain()
    assert ([], {A + B, B}) == (sealed(tmp_path), set(still_open(tmp_path)))
    assert 1 == sum(message.startswith("cannot truncate") for message in caplog.messages)
    cuts.times = 0
    writer.close()
    assert "all segments are truncated" in caplog.messages
    assert ([A], []) == (sealed(tmp_path), still_open(tmp_path))
    assert not any(name.startswith(str(tmp_path)) for name in descriptors())


def test_a_file_is_truncated_before_the_next_group_is_appended(
    tmp_path: Path, break_os: BreakOs
) -> None:
    """Only until then could a crash leave rejected lines to a recovery."""
    writer = make_writer(tmp_path)
    writer.append([A])
    cuts = break_os("ftruncate", errno.EIO)
    break_os("fdatasync", errno.EIO, times=2)
    with pytest.raises(SegmentLost):
        writer.append([B])
    cuts.times = 0
    writer.append([C])
    assert ([A], [C]) == (sealed(tmp_path), still_open(tmp_path))
    writer.close()


def test_file_without_rejected_lines_is_closed(tmp_path: Path, break_os: BreakOs) -> None:
    """A disk that became read-only can be unmounted, although it cannot be truncated."""
    writer = make_writer(tmp_path)
    writer.append([A])
    break_os("ftruncate", errno.EROFS)
    break_os("writev", errno.EROFS, times=1)
    renames = break_os("rename_new", errno.EROFS, module=files)
    with pytest.raises(OSError, match="Read-only"):
        writer.append([B])
    assert not any(name.startswith(str(tmp_path)) for name in descriptors())
    renames.times = 0
    writer.maintain()
    assert [A] == sealed(tmp_path)


# --- Names and directories


@pytest.mark.parametrize("suffix", [".ndjson", ".ndjson.zst"])
def test_a_new_segment_has_no_name_of_a_sealed_one(tmp_path: Path, suffix: str) -> None:
    """A clock that was set back does not lead to an earlier name."""
    moment = datetime(2026, 11, 23, tzinfo=UTC).timestamp()
    taken = tmp_path / f"20261123T000000.000000Z-{os.getpid()}{suffix}"
    taken.write_bytes(A)
    writer = make_writer(tmp_path, clock=Clock(moment))
    writer.append([B])
    writer.close()
    assert A == taken.read_bytes()
    assert B == (tmp_path / f"20261123T000000.000001Z-{os.getpid()}.ndjson").read_bytes()


def test_a_seal_never_replaces_a_file(tmp_path: Path) -> None:
    """A file at the path of the sealed segment stays, and so does the segment."""
    writer = make_writer(tmp_path)
    writer.append([A])
    (path,) = tmp_path.iterdir()
    taken = path.with_suffix("")
    taken.write_bytes(B)
    writer.close()
    assert B == taken.read_bytes()
    assert {B: 1, A: 1} == {content: sealed(tmp_path).count(content) for content in (A, B)}
    assert [] == still_open(tmp_path)
    assert 1 == writer.sealed_segments


@pytest.mark.parametrize("is_by_writer", [True, False], ids=["at a seal", "at an append"])
def test_a_segment_whose_directory_was_away_is_sealed_when_it_is_back(
    tmp_path: Path, is_by_writer: bool
) -> None:
    """Whether a seal or an append failed, a clean stop leaves no segment open."""
    path = tmp_path / "data"
    path.mkdir()
    writer = make_writer(path)
    writer.append([A])
    away = path.rename(tmp_path / "away")
    if is_by_writer:
        writer.seal()
    else:
        with pytest.raises(OSError, match=r"No such file|removed"):
            writer.append([B])
    writer.maintain()
    away.rename(path)
    writer.close()
    assert ([A], []) == (sealed(path), still_open(path))
    assert 1 == writer.sealed_segments


def test_a_segment_that_another_process_sealed_is_done(tmp_path: Path, break_os: BreakOs) -> None:
    """A segment that was recovered meanwhile is not retried."""
    writer = make_writer(tmp_path)
    writer.append([A])
    break_os("rename_new", errno.EIO, times=1, module=files)
    writer.seal()
    recover(tmp_path)
    writer.maintain()
    opens = break_os("open", errno.EIO)
    writer.maintain()
    assert [] == opens.calls
    assert 1 == writer.sealed_segments


def test_search_for_removed_segments_is_bounded(tmp_path: Path) -> None:
    """Removing every open segment does not make the service slower and slower."""
    writer = make_writer(tmp_path)
    for _ in range(MAX_UNSEALED + 5):
        writer.append([A])
        for path in tmp_path.iterdir():
            path.unlink()
        writer.seal()
    assert MAX_UNSEALED == len(writer._ended)


def test_rejected_keys_are_unsettled_until_their_segment_is_sealed(
    tmp_path: Path, break_os: BreakOs
) -> None:
    """Also if so many later seals fail that this segment is left to a recovery."""
    writer = make_writer(tmp_path)
    renames = break_os("rename_new", errno.EIO, module=files)
    writer.append([A])
    break_os("writev", errno.EIO, times=1)
    with pytest.raises(OSError, match="Input/output error"):
        writer.append([B], lambda segment, start: None)
    assert writer.has_unsettled()
    for _ in range(MAX_UNSEALED + 5):
        writer.append([A])
        writer.seal()
    assert writer.has_unsettled()
    assert len(writer._ended) == MAX_UNSEALED + 1
    renames.times = 0
    recover(tmp_path)
    assert not writer.has_unsettled()
    writer.close()
    assert writer._ended == {}


# --- What a failed background sync may cost


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return a function that advances the time by seconds."""
    moment = time.monotonic()

    def wait(seconds: float) -> None:
        nonlocal moment
        moment += seconds

    monkeypatch.setattr(time, "monotonic", lambda: moment)
    return wait


def test_batches_since_the_last_good_sync_are_counted_when_one_fails(
    tmp_path: Path, break_os: BreakOs, now: Callable[[float], None]
) -> None:
    """Not those that an earlier sync made durable, nor those written again."""
    writer = make_writer(tmp_path, sync="everysec")
    writer.append([A, A])
    now(2)
    writer.append([A])
    writer.append([B, B])
    writer.append([B])
    break_os("fdatasync", errno.EIO, times=1)
    now(2)
    writer.append([C])
    assert 3 == writer.possibly_lost_batches
    writer.close()
    assert A * 3 + B * 3 + C == b"".join(sealed(tmp_path))


@pytest.mark.parametrize("end", ["maintain", "seal"])
def test_a_sync_without_a_batch_counts_too(
    tmp_path: Path,
    break_os: BreakOs,
    now: Callable[[float], None],
    caplog: pytest.LogCaptureFixture,
    end: str,
) -> None:
    """The timer's sync and the one before a seal report the batches that they may lose."""
    writer = make_writer(tmp_path, sync="everysec")
    writer.append([A, B])
    break_os("fdatasync", errno.EIO, times=1)
    now(2)
    text = "sync failed: Input/output error; acknowledged batches that may be lost: 2"
    if end == "maintain":
        with pytest.raises(SegmentLost, match=text):
            writer.maintain()
    else:
        writer.seal()
        assert text in caplog.text
    assert 2 == writer.possibly_lost_batches


def test_after_a_failed_sync_each_group_is_synced_until_one_is_good(
    tmp_path: Path, break_os: BreakOs, now: Callable[[float], None]
) -> None:
    """A disk that does not sync acknowledges nothing more."""
    writer = make_writer(tmp_path, sync="everysec")
    writer.append([A])
    syncs = break_os("fdatasync", errno.EIO, times=5)
    now(2)
    with pytest.raises(SegmentLost):
        writer.maintain()
    for _ in range(2):
        with pytest.raises(SegmentLost):
            writer.append([B])
    assert 5 == len(syncs.calls)
    assert 1 == writer.possibly_lost_batches
    writer.probe()
    writer.maintain()  # there is nothing to sync, which says nothing of the disk
    writer.append([C])
    assert 6 == len(syncs.calls)
    writer.append([C])
    assert 6 == len(syncs.calls)
    writer.close()
    assert A + C + C == b"".join(sealed(tmp_path))


def test_mode_always_never_loses_acknowledged_batches(tmp_path: Path, break_os: BreakOs) -> None:
    """Acknowledged batches were synced."""
    writer = make_writer(tmp_path)
    writer.append([A])
    break_os("fdatasync", errno.EIO, times=2)
    with pytest.raises(SegmentLost, match="sync failed: Input/output error$"):
        writer.append([B])
    assert 0 == writer.possibly_lost_batches
