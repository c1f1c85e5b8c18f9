"""Following a directory: every line once, whatever happens to the files."""

import errno
import os
import shutil
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from astralog.store import follower as follower_module
from astralog.store.follower import Follower
from astralog.store.merge import oldest_first
from astralog.store.reader import ReadBudget, select_if
from tests.support import foreign
from tests.support.fake_system import BreakOs
from tests.support.processes import open_paths
from tests.support.tail import compress, make_name, make_segment

Caplog = pytest.LogCaptureFixture

START = 1_780_000_000.0


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    path.mkdir()
    return path


@pytest.fixture
def follower(data_dir: Path) -> Iterator[Follower]:
    """Return a follower of an empty directory, which must close all files at its end."""
    follower = Follower(data_dir)
    assert [] == follower.start()
    yield follower
    follower.close()
    assert [] == [path for path in open_paths(os.getpid()) if path.startswith(str(data_dir))]


class Writer:
    """Writes segments as a worker does."""

    def __init__(self, data_dir: Path, pid: int = 1) -> None:
        self._data_dir = data_dir
        self._pid = pid
        self._start = 0.0

    def open(self, *lines: str) -> "Writer":
        """Start a segment."""
        self._start = max(time.time(), self._start + 0.00001)
        name = make_name(self._start, self._pid)
        self.path = make_segment(self._data_dir, name, suffix=".ndjson.open")
        return self.write(*lines)

    def write(self, *lines: str, end: str = "\n") -> "Writer":
        """Append lines."""
        with self.path.open("a") as file:
            file.write("".join(line + end for line in lines))
        return self

    def seal(self) -> "Writer":
        """Seal the segment."""
        self.path = self.path.rename(self.path.with_suffix(""))
        return self


def polled(follower: Follower) -> list[str]:
    return [line.decode() for line in follower.poll()]


def test_lines_are_shown_as_they_come(data_dir: Path, follower: Follower) -> None:
    """The lines of one poll are not in the next."""
    assert [] == polled(follower)
    writer = Writer(data_dir).open("one")
    assert ["one"] == polled(follower)
    assert [] == polled(follower)
    writer.write("two", "three")
    assert ["two", "three"] == polled(follower)
    assert [] == polled(follower)


def test_half_a_line_is_shown_once_it_is_whole(data_dir: Path, follower: Follower) -> None:
    """Also if the segment is sealed with the rest of it."""
    writer = Writer(data_dir).open("one").write("tw", end="")
    assert ["one"] == polled(follower)
    writer.write("o", end="")
    assert [] == polled(follower)
    writer.write("", "thr")
    assert ["two", "thr"] == polled(follower)
    writer.write("fo", end="")
    assert [] == polled(follower)
    writer.write("ur").seal()
    assert ["four"] == polled(follower)


def test_stored_and_new_lines_are_separate(data_dir: Path) -> None:
    """Each line is in one of both, also one that is incomplete at the start."""
    sealed = Writer(data_dir, 1).open("sealed").seal()
    compress(Writer(data_dir, 2).open("compressed").seal().path)
    opened = Writer(data_dir, 3).open("open").write("ha", end="")
    empty = Writer(data_dir, 4).open()
    follower = Follower(data_dir)
    stored = follower.start()
    opened.write("lf").seal()
    compress(sealed.path)
    compress(opened.path)
    empty.write("first")
    Writer(data_dir, 5).open("new")
    assert {b"sealed", b"compressed", b"open"} == set(oldest_first(stored))
    assert {"half", "first", "new"} == set(polled(follower))
    assert [] == polled(follower)
    follower.close()


@pytest.mark.parametrize("polls", [(), (1,), (2,), (3,), (4,), (1, 2, 3, 4)])
def test_rotation_shows_each_line_once(
    data_dir: Path, follower: Follower, polls: tuple[int, ...]
) -> None:
    """For polls at any point between writing, sealing, compressing and the next segment."""
    shown: list[str] = []

    def step(number: int) -> None:
        if number in polls:
            shown.extend(polled(follower))

    writer = Writer(data_dir).open("a")
    step(1)
    writer.write("b").seal()
    step(2)
    compress(writer.path)
    writer.open("c")
    step(3)
    writer.write("d").seal().open("e", "f")
    step(4)
    writer.seal()
    compress(writer.path)
    assert ["a", "b", "c", "d", "e", "f"] == shown + polled(follower)
    assert [] == polled(follower)


def test_a_segment_with_two_names_is_shown_once(data_dir: Path, follower: Follower) -> None:
    """The compressed file exists before the plain one is removed."""
    writer = Writer(data_dir).open("a").seal()
    shutil.copy(writer.path, data_dir / "copy")
    compress(writer.path)
    (data_dir / "copy").rename(writer.path)
    assert ["a"] == polled(follower)
    writer.path.unlink()
    assert [] == polled(follower)


def test_truncated_lines_are_not_read_again(data_dir: Path, follower: Follower) -> None:
    """After a failed write, its file and the next one continue, each line once."""
    writer = Writer(data_dir).open("one")
    assert ["one"] == polled(follower)
    writer.write("failed", "failed too")
    assert ["failed", "failed too"] == polled(follower)
    os.truncate(writer.path, len("one\n"))
    assert [] == polled(follower)
    writer.write("two")
    assert ["two"] == polled(follower)
    os.truncate(writer.path, len("one\n"))
    writer.seal().open("three")
    assert ["three"] == polled(follower)


def test_a_removed_segment_is_read_to_its_end(data_dir: Path, follower: Follower) -> None:
    """Retention does not affect an open segment; one removed before was never seen."""
    writer = Writer(data_dir).open("one")
    assert ["one"] == polled(follower)
    writer.write("two").seal().path.unlink()
    writer.open("three").write("four").path.unlink()
    writer.open("five")
    assert ["two", "five"] == polled(follower)
    assert [] == polled(follower)
    held = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert not [path for path in held if path.endswith("(deleted)") and str(data_dir) in path]


def test_a_segment_that_was_shown_is_not_read_again_when_it_is_compressed(
    data_dir: Path, follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decompressing it would cost more than following it did."""
    writer = Writer(data_dir).open("one")
    assert ["one"] == polled(follower)
    writer.seal()
    assert [] == polled(follower)
    opened: list[object] = []
    monkeypatch.setattr(os, "open", lambda *args: opened.append(args))
    compress(writer.path)
    assert [] == polled(follower)
    assert [] == opened


def test_segment_removed_before_its_turn_is_named(
    data_dir: Path, follower: Follower, caplog: pytest.LogCaptureFixture
) -> None:
    """It was listed, and removed before it was read."""
    lost = Writer(data_dir, 1).open("lost").seal()
    kept = Writer(data_dir, 2).open("kept").seal()
    kept.path.rename(data_dir / f"{make_name(START - 10)}.ndjson")
    lines = follower.poll()
    assert b"kept" == next(lines)
    lost.path.unlink()
    assert [] == list(lines)
    assert [f"{lost.path.stem} was removed before it was read"] == caplog.messages
    assert [] == polled(follower)


def test_missing_directory_is_retried(tmp_path: Path) -> None:
    """All its lines are new once it exists."""
    follower = Follower(tmp_path / "data")
    assert [] == follower.start()
    assert isinstance(follower.error, FileNotFoundError)
    assert [] == polled(follower)
    Writer(tmp_path / "data").open("one")
    assert ["one"] == polled(follower)
    assert follower.error is None
    follower.close()


def test_directory_may_disappear_temporarily(data_dir: Path, follower: Follower) -> None:
    """Earlier lines are not shown again, and new ones are shown."""
    writer = Writer(data_dir).open("one").seal().open("two")
    assert ["one", "two"] == polled(follower)
    away = data_dir.rename(data_dir.with_name("away"))
    assert [] == polled(follower)
    assert isinstance(follower.error, FileNotFoundError)
    writer.path = away / writer.path.name
    writer.write("three")
    assert ["three"] == polled(follower)
    writer.write("four").seal()
    away.rename(data_dir)
    writer = Writer(data_dir, 2).open("five")
    assert {"four", "five"} == set(polled(follower))
    assert follower.error is None
    assert [] == polled(follower)


@pytest.mark.parametrize("are_new", [True, False])
def test_a_disk_may_be_unmounted_for_a_while(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, are_new: bool
) -> None:
    """An empty directory in its place makes none of the returning lines new, however many."""
    monkeypatch.setattr(follower_module, "REMEMBERED_SEGMENTS", 1)
    follower = Follower(data_dir)
    writer = Writer(data_dir)
    if are_new:
        follower.start()
        writer.open("zero").seal().open("one").seal().open("two")
        assert ["zero", "one", "two"] == polled(follower)
    else:
        writer.open("zero").seal().open("one").seal().open("two")
        assert 3 == len(follower.start())
    mounted = data_dir.rename(data_dir.with_name("mounted"))
    data_dir.mkdir()
    assert [] == polled(follower)
    Writer(data_dir, 2).open("three")
    assert ["three"] == polled(follower)
    shutil.rmtree(data_dir)
    mounted.rename(data_dir)
    assert [] == polled(follower)
    writer.write("four")
    assert ["four"] == polled(follower)
    follower.close()


def test_memory_of_removed_segments_is_bounded(
    data_dir: Path, follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some removed ones are known by name; existing ones are all known."""
    monkeypatch.setattr(follower_module, "REMEMBERED_SEGMENTS", 5)
    writer = Writer(data_dir)
    for number in range(50):
        writer.open(str(number))
        assert [str(number)] == polled(follower)
        if number % 2:
            writer.seal()
        assert [] == polled(follower)
        writer.path.unlink()
    writer.open("kept").seal()
    assert ["kept"] == polled(follower)
    assert len(follower._done) <= 7
    assert len(follower._left) <= 5
    writer.path.touch()
    assert [] == polled(follower)


def test_a_poll_within_a_budget_leaves_the_rest_to_the_next(
    data_dir: Path, follower: Follower
) -> None:
    """No line is lost or doubled, also if the caller reads only a few."""
    numbers = [str(number).zfill(1000) for number in range(1000)]
    writer = Writer(data_dir).open(*numbers[:500])
    shown = [line.decode() for line in follower.poll(budget=ReadBudget(1))]
    assert 0 < len(shown) < 500
    shown += [line.decode() for line in islice(follower.poll(), 10)]
    writer.seal().open(*numbers[500:])
    shown += [line.decode() for line in islice(follower.poll(), 3)]
    assert len(shown) < 500
    shown += polled(follower)
    assert numbers == shown
    assert [] == polled(follower)


def test_a_sealed_segment_is_read_in_many_polls(data_dir: Path, follower: Follower) -> None:
    """It is followed until its last line."""
    numbers = [str(number).zfill(1000) for number in range(1000)]
    Writer(data_dir).open(*numbers).seal()
    shown = []
    for _ in range(10):
        shown += [line.decode() for line in follower.poll(budget=ReadBudget(100_000))]
    assert numbers == shown


def test_budget_suffices_to_skip_lines_that_do_not_match(
    data_dir: Path, follower: Follower
) -> None:
    """However far the next matching line is."""
    Writer(data_dir).open(*["x" * 999] * 2000, "wanted")
    shown: list[bytes] = []
    polls = 0
    while not shown and polls < 20:
        shown += follower.poll(select_if(lambda line: line == b"wanted"), ReadBudget(100_000))
        polls += 1
    assert [b"wanted"] == shown
    assert 5 < polls


def test_follower_shows_only_matching_lines(data_dir: Path, follower: Follower) -> None:
    """Lines that do not match are read once."""
    writer = Writer(data_dir).open("a1", "b1")
    assert [b"b1"] == list(follower.poll(select_if(lambda line: line.startswith(b"b"))))
    assert [] == polled(follower)
    writer.write("a2")
    assert ["a2"] == polled(follower)


def test_workers_are_merged_by_arrival(data_dir: Path, follower: Follower) -> None:
    """Lines from before the last poll are not moved behind later ones."""
    one, two = Writer(data_dir, 1).open("1a"), Writer(data_dir, 2).open("2a")
    assert {"1a", "2a"} == set(polled(follower))
    one.write("1b")
    assert ["1b"] == polled(follower)
    two.write("2b")
    assert ["2b"] == polled(follower)


def test_an_idle_directory_is_not_listed(
    data_dir: Path, follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time of change is enough, once it is long enough ago."""
    listed = 0
    scandir = os.scandir

    def count(path: Path) -> Any:
        nonlocal listed
        listed += 1
        return scandir(path)

    monkeypatch.setattr(os, "scandir", count)
    Writer(data_dir).open("one")
    for _ in range(3):
        polled(follower)
    assert 3 == listed
    os.utime(data_dir, (START, START))
    for _ in range(3):
        polled(follower)
    assert 4 == listed
    Writer(data_dir, 2).open("two")
    assert ["two"] == polled(follower)


def test_changes_within_one_tick_of_the_clock_are_seen(data_dir: Path, follower: Follower) -> None:
    """A directory that has just changed is listed again although its time is the same."""
    Writer(data_dir, 1).open("one")
    changed = data_dir.stat().st_mtime_ns
    assert ["one"] == polled(follower)
    Writer(data_dir, 2).open("two")
    os.utime(data_dir, ns=(changed, changed))
    assert ["two"] == polled(follower)


def test_a_segment_that_cannot_be_opened_is_named_once(
    data_dir: Path, follower: Follower, break_os: BreakOs, caplog: Caplog
) -> None:
    """The others are followed."""
    make_segment(data_dir, make_name(START), b"x", suffix=".ndjson.open")
    Writer(data_dir).open("one")
    break_os("open", errno.EACCES, times=1)
    assert ["one"] == polled(follower)
    assert [] == polled(follower)
    assert [f"cannot read {make_name(START)}: {os.strerror(errno.EACCES)}"] == caplog.messages


def test_files_that_are_no_segments_are_not_followed(
    data_dir: Path, follower: Follower, caplog: Caplog
) -> None:
    """With any names, they are neither read nor waited for nor logged."""
    foreign.make_all(data_dir)
    Writer(data_dir).open("one")
    assert ["one"] == polled(follower)
    assert [] == polled(follower)
    late = Follower(data_dir)
    assert 1 == len(late.start())
    late.close()
    assert [] == caplog.messages


def test_a_segment_that_cannot_be_read_is_named_once(
    data_dir: Path,
    follower: Follower,
    break_os: BreakOs,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The next segment is followed."""
    writer = Writer(data_dir).open("one")
    fault = break_os("pread", errno.EIO, times=1)
    assert [] == polled(follower)
    writer.write("two")
    assert [] == polled(follower)
    assert 1 == len(fault.calls)
    writer.seal().open("three")
    assert ["three"] == polled(follower)
    assert 1 == len(caplog.messages)
    assert caplog.messages[0].startswith("cannot read 2")
