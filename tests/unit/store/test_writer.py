import errno
import fcntl
import itertools
import os
import re
import stat
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from astralog.clock import TrustedClock
from astralog.store import files
from astralog.store.segment import WRITEV_BUFFERS, Segment
from astralog.store.writer import Starts
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

START = datetime(2026, 11, 23, tzinfo=UTC).timestamp()
DAY = 86_400.0
NAME = re.compile(r"[0-9]{8}T[0-9]{6}\.[0-9]{6}Z-[0-9]+\.ndjson(\.open)?")


# --- One segment


def test_a_segment_is_named_after_its_start_and_process(tmp_path: Path) -> None:
    """The name has the start in UTC, to the microsecond, and the process."""
    segment = Segment(tmp_path, datetime(2026, 11, 23, 6, 25, 0, 123, tzinfo=UTC))
    assert f"20261123T062500.000123Z-{os.getpid()}.ndjson.open" == segment.path.name
    assert segment.path.exists()
    segment.close()


def test_a_segment_is_for_owner_and_group_only(tmp_path: Path) -> None:
    """The file has mode 0640 whatever the umask."""
    mask = os.umask(0o077)
    try:
        make_writer(tmp_path).probe()
    finally:
        os.umask(mask)
    (path,) = tmp_path.iterdir()
    assert 0o640 == stat.S_IMODE(path.stat().st_mode)


def test_a_name_that_is_taken_is_left_alone(tmp_path: Path) -> None:
    """No segment is ever written twice."""
    start = datetime.now(UTC)
    segment = Segment(tmp_path, start)
    segment.write([A])
    with pytest.raises(FileExistsError):
        Segment(tmp_path, start)
    assert [A] == still_open(tmp_path)
    segment.close()


def test_a_segment_is_held_from_its_first_moment_to_its_seal(
    tmp_path: Path, break_os: BreakOs
) -> None:
    """A recovery at any time, for example by a starting worker, does not touch it."""
    writer = make_writer(tmp_path)
    writer.probe()
    recover(tmp_path)
    assert [b""] == still_open(tmp_path)
    writer.append([A])
    recover(tmp_path)
    assert ([], [A]) == (sealed(tmp_path), still_open(tmp_path))
    break_os("rename_new", errno.EIO, times=1, module=files)
    writer.seal()
    recover(tmp_path)
    assert ([A], []) == (sealed(tmp_path), still_open(tmp_path))


@pytest.mark.parametrize("is_removed", [True, False])
def test_a_segment_that_a_recovery_takes_for_an_orphan_is_made_anew(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    is_removed: bool,
) -> None:
    """Between creation and lock, a recovery may lock or remove a new file."""
    flock, calls = fcntl.flock, itertools.count()

    def flock_after_a_recovery(fd: int, how: int) -> None:
        if next(calls) == 0:
            if not is_removed:
                raise BlockingIOError(errno.EAGAIN, "held")
            for path in tmp_path.iterdir():
                path.unlink()
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", flock_after_a_recovery)
    writer = make_writer(tmp_path)
    writer.append([A])
    assert [A] == still_open(tmp_path)
    assert [] == caplog.messages  # no batch was written to the one that was removed
    writer.seal()


@pytest.mark.parametrize("error", [None, OSError(errno.EINVAL, "no advice here")])
def test_all_but_the_newest_synced_bytes_leave_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError | None
) -> None:
    """A large segment does not displace other files; systems without this call work too."""
    advised: list[tuple[int, int, int]] = []

    def advise(fd: int, offset: int, length: int, advice: int) -> None:
        advised.append((offset, length, advice))
        if error:
            raise error

    monkeypatch.setattr(os, "posix_fadvise", advise)
    monkeypatch.setattr("astralog.store.segment.CACHED_BYTES", 2 * len(A))
    writer = make_writer(tmp_path)
    for _ in range(9):
        writer.append([A])
    assert [(0, size * len(A), os.POSIX_FADV_DONTNEED) for size in (2, 4, 6)] == advised
    writer.seal()
    assert [A * 9] == sealed(tmp_path)


def test_a_segment_whose_name_cannot_be_made_durable_is_removed(
    tmp_path: Path, break_os: BreakOs
) -> None:
    """A file that a power cut might remove leaves neither a name nor a descriptor."""
    break_os("fsync", errno.EIO, times=1)
    with pytest.raises(OSError, match="Input/output error"):
        make_writer(tmp_path).append([A])
    assert [] == list(tmp_path.iterdir())
    assert not any(name.startswith(str(tmp_path)) for name in descriptors())


@pytest.mark.parametrize("is_stopping", [True, False])
def test_a_new_segment_that_can_neither_be_kept_nor_removed_is_removed_later(
    tmp_path: Path, break_os: BreakOs, is_stopping: bool
) -> None:
    """The first error is raised; neither a descriptor nor a name stays."""
    before = descriptors()
    break_os("fsync", errno.EIO, times=1)
    break_os("unlink", errno.EROFS, times=1)
    writer = make_writer(tmp_path)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        writer.append([A])
    assert before == descriptors()
    assert [b""] == still_open(tmp_path)
    (writer.close if is_stopping else writer.maintain)()
    assert [] == list(tmp_path.iterdir())
    assert 0 == writer.sealed_segments


def test_a_name_that_another_took_is_not_removed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An existing file at the path of a new segment belongs to another program."""
    start = datetime(2026, 11, 23, tzinfo=UTC)
    taken = Segment(tmp_path, start)
    taken.write([A])
    taken.close()
    writer = make_writer(tmp_path)
    monkeypatch.setattr(writer._starts, "next", lambda: start)
    with pytest.raises(FileExistsError):
        writer.append([B])
    writer.close()
    assert [A] == still_open(tmp_path)


def test_more_buffers_than_one_call_takes_are_written_in_order(tmp_path: Path) -> None:
    """A commit group may have any number of batches."""
    buffers = [b"%d\n" % number for number in range(WRITEV_BUFFERS * 2 + 5)]
    segment = Segment(tmp_path, datetime.now(UTC))
    segment.write(buffers)
    assert b"".join(buffers) == segment.path.read_bytes()
    segment.close()


def test_a_short_write_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The remaining bytes are written next, byte by byte if necessary."""

    def write_three(fd: int, buffers: Sequence[bytes]) -> int:
        return os.write(fd, b"".join(buffers)[:3])

    write = os.write
    monkeypatch.setattr(os, "writev", write_three)
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:3]))
    segment = Segment(tmp_path, datetime.now(UTC))
    segment.write([A, B])
    assert A + B == segment.path.read_bytes()
    segment.close()


# --- Appending


def test_a_commit_group_is_there_when_append_returns(tmp_path: Path) -> None:
    """Every buffer of every commit group is in the open segment, in order."""
    writer = make_writer(tmp_path)
    writer.append([A, B])
    assert [A + B] == still_open(tmp_path)
    writer.append([C])
    assert [A + B + C] == still_open(tmp_path)
    writer.seal()


def test_nothing_is_made_before_the_first_commit_group(tmp_path: Path) -> None:
    """An idle writer has no file, and sealing creates none."""
    writer = make_writer(tmp_path)
    writer.maintain()
    writer.seal()
    assert [] == list(tmp_path.iterdir())


def test_sealing_ends_a_segment(tmp_path: Path) -> None:
    """A sealed segment has its final name, and the next commit group goes to a new one."""
    writer = make_writer(tmp_path)
    writer.append([A])
    writer.seal()
    assert ([A], []) == (sealed(tmp_path), still_open(tmp_path))
    writer.append([B])
    writer.seal()
    assert [A, B] == sealed(tmp_path)
    assert all(NAME.fullmatch(path.name) for path in tmp_path.iterdir())


def test_no_descriptor_is_left_behind(tmp_path: Path) -> None:
    """Sealed segments are closed."""
    writer = make_writer(tmp_path, segment_bytes=1)
    for _ in range(5):
        writer.append([A])
    assert 5 == len(sealed(tmp_path))
    assert not any(name.startswith(str(tmp_path)) for name in descriptors())


def test_a_segment_is_sealed_before_it_grows_past_its_size(tmp_path: Path) -> None:
    """A commit group that would not fit starts the next segment; one that fills it seals it."""
    writer = make_writer(tmp_path, segment_bytes=2 * len(A))
    writer.append([A])
    assert ([], [A]) == (sealed(tmp_path), still_open(tmp_path))
    writer.append([B])
    assert ([A + B], []) == (sealed(tmp_path), still_open(tmp_path))
    writer.append([C])
    writer.append([A, B])
    assert [A + B, C, A + B] == sealed(tmp_path)


def test_commit_group_larger_than_a_segment_has_its_own_segment(tmp_path: Path) -> None:
    """A commit group is never divided."""
    writer = make_writer(tmp_path, segment_bytes=5)
    writer.append([A, B, C])
    assert [A + B + C] == sealed(tmp_path)


def test_a_segment_is_sealed_at_its_age_though_idle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Maintenance seals it, not the next write."""
    writer = make_writer(tmp_path, segment_seconds=100)
    writer.append([A])
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 99)
    writer.maintain()
    assert ([], [A]) == (sealed(tmp_path), still_open(tmp_path))
    monkeypatch.setattr(time, "monotonic", lambda: now + 101)
    writer.maintain()
    assert ([A], []) == (sealed(tmp_path), still_open(tmp_path))


@pytest.mark.parametrize("step_seconds", [-3600, 0, 0.000001, 3600])
def test_lexical_order_is_the_order_of_creation(tmp_path: Path, step_seconds: float) -> None:
    """Names grow also if the clock stands still or is set back."""
    clock = Clock(*(START + n * step_seconds for n in range(30)))
    writer = make_writer(tmp_path, segment_bytes=1, clock=clock)
    groups = [b"%d\n" % number for number in range(20)]
    for group in groups:
        writer.append([group])
    assert groups == sealed(tmp_path)


def test_names_follow_a_clock_that_was_far_ahead(tmp_path: Path) -> None:
    """Otherwise all segments would have the wrong time, for as long as it was ahead."""
    clock = Clock(START + 8 * DAY, START + 8 * DAY, START, START)
    writer = make_writer(tmp_path, segment_bytes=1, clock=clock)
    for group in (A, B, C):
        writer.append([group])
    days = [path.name[:15] for path in sorted(tmp_path.iterdir())]
    assert days == ["20261123T000000", "20261201T000000", "20261201T000000"]


def test_names_follow_the_trusted_clock(tmp_path: Path) -> None:
    """A temporary jump of the wall clock leads to no name that is ahead."""
    wall = [START, START + 2 * DAY, START + 2 * DAY]
    clock = TrustedClock(lambda: wall.pop(0) if len(wall) > 1 else wall[0], lambda: 0.0)
    writer = make_writer(tmp_path, segment_bytes=1, clock=clock)
    writer.append([A])
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("20261123T000000")


def test_two_writers_of_one_process_have_their_own_files(tmp_path: Path) -> None:
    """A name that the other writer used in the same microsecond is skipped."""
    first, second = (make_writer(tmp_path, clock=Clock(START)) for _ in range(2))
    first.append([A])
    second.append([B])
    first.append([A])
    first.seal()
    second.seal()
    assert [A + A, B] == sealed(tmp_path)


def test_writers_of_one_process_name_in_one_order(tmp_path: Path) -> None:
    """After the clock was set back by an hour, later segments still have later names."""
    starts = Starts(Clock(START + 3600, START))
    first, second = (make_writer(tmp_path, starts=starts) for _ in range(2))
    first.append([A])
    second.append([B])
    first.seal()
    second.seal()
    assert sealed(tmp_path) == [A, B]


# --- Syncing


def test_always_syncs_every_commit_group_once(tmp_path: Path, break_os: BreakOs) -> None:
    """In the mode `always`, a group of any number of batches is synced before append returns."""
    syncs = break_os("fdatasync", errno.EIO, times=0)
    writer = make_writer(tmp_path)
    for expected in (1, 2, 3):
        writer.append([A, B])
        assert expected == len(syncs.calls)
    writer.seal()
    assert 3 == len(syncs.calls)


def test_everysec_syncs_once_a_second(
    tmp_path: Path, break_os: BreakOs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the mode `everysec` a sync comes with a group or the timer, a second after the last."""
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    syncs = break_os("fdatasync", errno.EIO, times=0)
    writer = make_writer(tmp_path, sync="everysec")
    writer.append([A])
    writer.append([A])
    writer.maintain()
    assert 0 == len(syncs.calls)
    now += 1.1
    writer.append([A])
    assert 1 == len(syncs.calls)
    writer.append([A])
    writer.maintain()
    assert 1 == len(syncs.calls)
    now += 1.1
    writer.maintain()
    assert 2 == len(syncs.calls)
    now += 1.1
    writer.maintain()
    assert 2 == len(syncs.calls)
    writer.append([A])
    writer.seal()
    assert 3 == len(syncs.calls)


def test_never_does_not_sync(tmp_path: Path, break_os: BreakOs) -> None:
    """In the mode `never` the system alone decides."""
    syncs = break_os("fdatasync", errno.EIO)
    writer = make_writer(tmp_path, sync="never")
    writer.append([A])
    writer.maintain()
    writer.seal()
    assert [] == syncs.calls
    assert [A] == sealed(tmp_path)


def test_a_segment_is_not_sealed_before_it_is_synced(tmp_path: Path, break_os: BreakOs) -> None:
    """If the last sync fails, the file is recovered completely through a new descriptor."""
    syncs = break_os("fdatasync", errno.EIO)
    writer = make_writer(tmp_path, sync="everysec")
    writer.append([A])
    writer.seal()
    assert ([], [A]) == (sealed(tmp_path), still_open(tmp_path))
    writer.maintain()
    assert ([A], []) == (sealed(tmp_path), still_open(tmp_path))
    assert 1 == len(syncs.calls)
