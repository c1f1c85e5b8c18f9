"""Reading segments in several processes has the same result as in one."""

import errno
import itertools
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from astralog.store.merge import Part, find_parts, newest_arrivals, oldest_arrivals
from astralog.store.reader import ReadBudget, not_blank
from astralog.view import processes as processes_module
from astralog.view.context import ContextPart
from astralog.view.log_filter import LogFilter
from astralog.view.processes import Processes, ProcessPart
from tests.support.tail import make_line, make_name, make_segment

WANTED = LogFilter(text="m1")


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory with overlapping segments in each form, all large enough."""
    monkeypatch.setattr(processes_module, "MIN_FILE_BYTES", 1)
    for number in range(9):
        suffix = (".ndjson.zst", ".ndjson", ".ndjson.open")[number // 3]
        start = 1000 * (number // 2)
        lines = [make_line(f"m{number} {at}", start + 10 * at + number) for at in range(50)]
        make_segment(
            tmp_path, make_name(start, number + 1), *lines, suffix=suffix, changed=start + 600
        )
    return tmp_path


def read(
    data_dir: Path, count: int, limit: int | None = None, wanted: LogFilter = WANTED
) -> list[bytes]:
    """Return the lines that a search with so many processes finds."""
    parts = find_parts(data_dir, ProcessPart)
    running = Processes(parts, wanted.select, limit, count, lambda: None)
    try:
        if limit is None:
            return [arrival.line for arrival in oldest_arrivals(parts, wanted.select)]
        return [arrival.line for arrival in newest_arrivals(parts, limit, wanted.select)]
    finally:
        running.close()


@pytest.mark.parametrize("limit", [None, 1, 60, 1000])
@pytest.mark.parametrize(
    "wanted",
    [
        WANTED,
        pytest.param(LogFilter(), marks=pytest.mark.slow),
        pytest.param(LogFilter(text="nothing"), marks=pytest.mark.slow),
    ],
)
def test_several_processes_find_the_same_as_one(
    data_dir: Path, limit: int | None, wanted: LogFilter
) -> None:
    parts = find_parts(data_dir)
    if limit is None:
        expected = [arrival.line for arrival in oldest_arrivals(parts, wanted.select)]
    else:
        expected = [arrival.line for arrival in newest_arrivals(parts, limit, wanted.select)]
    for count in (1, 3):
        assert read(data_dir, count, limit, wanted) == expected


def test_lines_around_are_read_in_processes(data_dir: Path) -> None:
    def make(*place: object) -> Part:
        return ContextPart(1, 1, *place)

    found = []
    for count in (1, 2):
        parts = find_parts(data_dir, make)
        running = Processes(parts, WANTED.select, None, count, lambda: None)
        found.append(list(oldest_arrivals(parts, WANTED.select)))
        running.close()
    assert found[0] == found[1] != []


def test_progress_counts_all_bytes_of_the_files(data_dir: Path) -> None:
    parts = find_parts(data_dir, ProcessPart)
    budget = ReadBudget()
    reports: list[int] = []
    running = Processes(
        parts, WANTED.select, None, 2, lambda: reports.append(int(budget.file_bytes))
    )
    list(oldest_arrivals(parts, WANTED.select, budget))
    assert budget.file_bytes == sum(map(Part.file_size, parts))
    assert reports == sorted(reports) != []
    running.close()


def stuck(block: bytes) -> Iterator[tuple[int, bytes]]:
    """Select nothing, and never end."""
    signal.pause()
    yield 0, block


def children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def test_close_ends_all_processes(data_dir: Path) -> None:
    before = children()
    parts = find_parts(data_dir, ProcessPart)
    running = Processes(parts, stuck, None, 3, lambda: None)
    assert isinstance(parts[0], ProcessPart)
    running.lines(parts[0], ReadBudget())
    assert len(children()) == len(before) + 3
    running.close()
    assert children() == before


def test_processes_read_one_segment_after_the_other(data_dir: Path) -> None:
    """No others are started, and none waits until the lines of its last segment are read."""
    before = children()
    parts = find_parts(data_dir, ProcessPart)
    running = Processes(parts, not_blank, None, 2, lambda: None)
    seen = set()
    for _ in oldest_arrivals(parts):
        seen.update(children())
    assert len(seen - set(before)) == 2
    running.close()
    assert children() == before


def test_each_process_has_one_pipe(data_dir: Path) -> None:
    """However many segments there are, and however fast the processes read them."""
    parts = find_parts(data_dir, ProcessPart)
    before = len(os.listdir("/proc/self/fd"))
    running = Processes(parts, not_blank, None, 2, lambda: None)
    list(oldest_arrivals(parts, not_blank))
    assert len(os.listdir("/proc/self/fd")) - before == 2 + 1  # with the file of the readers
    running.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_lines_that_wait_for_others_take_bounded_memory(data_dir: Path) -> None:
    """The merge waits for no process that still has to send the lines of another segment."""
    for number in range(8):
        lines = [make_line(f"m1 {'x' * 5000}", 500 + at) for at in range(50)]
        make_segment(data_dir, make_name(500, 100 + number), *lines, changed=600)
    parts = find_parts(data_dir, ProcessPart)
    running = Processes(parts, WANTED.select, None, 2, lambda: None)
    most = 0
    for _ in oldest_arrivals(parts, WANTED.select):
        for process in running._processes.values():
            waiting = itertools.chain.from_iterable(process._waiting.values())
            most = max(most, sum(len(message.text) for message in waiting))
    running.close()
    assert most < 128 * 1024


def test_the_first_lines_of_a_limited_search_wait_for_no_other_segment(data_dir: Path) -> None:
    """The segment that was changed last is read first, although others have later names."""
    lines = [make_line(f"m1 {'x' * 5000}", 500 + at) for at in range(50)]
    for number in range(8):
        make_segment(data_dir, make_name(500, 101 + number), *lines, changed=600)
    oldest = make_name(500, 100)
    make_segment(data_dir, oldest, *lines, suffix=".ndjson.open", changed=9999)
    parts = find_parts(data_dir, ProcessPart)
    running = Processes(parts, WANTED.select, 20, 2, lambda: None)
    next(newest_arrivals(parts, 20, WANTED.select))
    waiting = [
        message
        for process in running._processes.values()
        for messages in process._waiting.values()
        for message in messages
    ]
    running.close()
    assert waiting == []


def test_full_pipes_do_not_stop_the_merge(data_dir: Path) -> None:
    """Segments that are not begun are read by the merge while all processes wait for it."""
    for number in range(8):
        lines = [make_line(f"m1 {'x' * 5000}", 500 + at) for at in range(50)]
        make_segment(data_dir, make_name(500, 100 + number), *lines, changed=600)
    expected = [arrival.line for arrival in oldest_arrivals(find_parts(data_dir), WANTED.select)]
    assert read(data_dir, 2) == expected


@pytest.mark.parametrize("name", ["fork", "pipe"])
def test_without_processes_or_pipes_all_is_read_here(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The first one is made, as under a limit that is reached then."""
    expected = read(data_dir, 1)
    make = getattr(os, name)
    calls = itertools.count()

    def make_once() -> object:
        if next(calls):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return make()

    monkeypatch.setattr(os, name, make_once)
    assert read(data_dir, 3) == expected
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_process_ends_quietly_after_its_parent(capfd: pytest.CaptureFixture[str]) -> None:
    """Also if the parent has not received its last lines."""

    def write(pipe: BinaryIO) -> None:
        pipe.write(b"line")

    ours, theirs = os.pipe()
    os.close(ours)
    parent = os.getpid()
    pid = os.fork()
    if not pid:
        processes_module._run_child(write, parent, theirs)
    os.waitpid(pid, 0)
    os.close(theirs)
    assert capfd.readouterr().err == ""


def test_killed_process_fails_its_segment(data_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The others are read nevertheless."""
    before = children()
    parts = find_parts(data_dir, ProcessPart)

    def select(block: bytes) -> Iterator[tuple[int, bytes]]:
        if b'"m0 1"' in block and os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return iter(list(not_blank(block)))

    parent = os.getpid()
    running = Processes(parts, select, None, 2, lambda: None)
    with caplog.at_level(logging.WARNING):
        found = list(oldest_arrivals(parts, select))
    running.close()
    assert [part.is_failed for part in parts] == [True] + [False] * 8
    assert len(found) == 8 * 50
    assert "the process that read it ended early" in caplog.text
    assert children() == before


def test_errors_of_a_process_are_those_of_its_segment(
    data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Damaged segments are failed, and removed ones removed."""
    parts = find_parts(data_dir, ProcessPart)
    damaged, removed, *_ = sorted(data_dir.iterdir())
    damaged.write_bytes(b"bad")
    running = Processes(parts, WANTED.select, None, 2, lambda: None)
    removed.unlink()
    with caplog.at_level(logging.WARNING):
        list(oldest_arrivals(parts, WANTED.select))
    running.close()
    assert [part.is_failed for part in parts] == [True, True] + [False] * 7
    assert [part.is_removed for part in parts] == [False, True] + [False] * 7
    assert f"cannot read {parts[0].segment}" in caplog.text
