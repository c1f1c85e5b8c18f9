"""The order of lines across segments, and the few reads that it takes."""

import errno
import os
import random
import shutil
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import islice, permutations
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astralog.store import merge, reader
from astralog.store.merge import (
    find_parts,
    last_first,
    make_parts,
    newest_arrivals,
    newest_lines,
    oldest_arrivals,
    oldest_first,
    parts_since,
    remaining,
)
from astralog.store.names import Form, SegmentFile, SegmentName, parse_file_names
from astralog.store.reader import LAST_BLOCK_BYTES, ReadBudget, not_blank, select_if
from astralog.view.context import ContextPart
from astralog.view.processes import ProcessPart
from tests.support import foreign
from tests.support.tail import compress, make_line, make_name, make_segment, message_of

START = 1_780_000_000.0
HOUR = 3600.0
NAME = SegmentName(make_name(START))


def newest(directory: Path, limit: int = 100, **kwargs: Any) -> list[str]:
    return list(map(message_of, newest_lines(find_parts(directory), limit, **kwargs)))


def oldest(directory: Path) -> list[str]:
    return list(map(message_of, oldest_first(find_parts(directory))))


def make_worker(
    directory: Path, pid: int, start: float, seconds: list[float], suffix: str = ".ndjson"
) -> Path:
    """Write a worker's segment with a log at each of some seconds after its start."""
    lines = [make_line(f"{pid}@{start + at - START:g}", start + at) for at in seconds]
    changed = start + seconds[-1] + 0.001
    return make_segment(directory, make_name(start, pid), *lines, suffix=suffix, changed=changed)


@pytest.mark.parametrize("suffix", [".ndjson.open", ".ndjson", ".ndjson.zst"])
def test_workers_are_merged_by_time(tmp_path: Path, suffix: str) -> None:
    """For segments written at the same time, the timestamps decide."""
    make_worker(tmp_path, 1, START, [0, 10, 20, 30], suffix)
    make_worker(tmp_path, 2, START + 5, [0, 10, 20], suffix)
    expected = ["1@0", "2@5", "1@10", "2@15", "1@20", "2@25", "1@30"]
    assert expected == oldest(tmp_path) == newest(tmp_path)
    assert expected[-3:] == newest(tmp_path, 3)
    assert [] == newest(tmp_path, 0)


def test_segments_of_a_worker_follow_each_other(tmp_path: Path) -> None:
    """In any state."""
    make_worker(tmp_path, 1, START, [0, 1], ".ndjson.zst")
    make_worker(tmp_path, 1, START + 10, [0, 1], ".ndjson")
    make_worker(tmp_path, 1, START + 20, [0, 1], ".ndjson.open")
    expected = ["1@0", "1@1", "1@10", "1@11", "1@20", "1@21"]
    assert expected == oldest(tmp_path) == newest(tmp_path)
    assert expected[-3:] == newest(tmp_path, 3)


def test_a_segment_under_two_names_is_one(tmp_path: Path) -> None:
    """During compression, and while its name changes, each line is shown once."""
    path = make_worker(tmp_path, 1, START, [0, 1])
    shutil.copy2(path, tmp_path / "copy")
    compress(path)
    (tmp_path / "copy").rename(path)
    shutil.copy2(path, path.with_name(path.name + ".open"))
    assert ["1@0", "1@1"] == oldest(tmp_path) == newest(tmp_path)


def test_other_files_are_no_segments(tmp_path: Path) -> None:
    """With any names, they are neither read nor waited for."""
    make_worker(tmp_path, 1, START, [0])
    (tmp_path / "token").write_text("secret\n")
    foreign.make_all(tmp_path)
    assert ["1@0"] == oldest(tmp_path) == newest(tmp_path)


def test_lines_of_a_segment_keep_their_order(tmp_path: Path) -> None:
    """A late log, or one of a fast clock, does not move within its segment."""
    make_worker(tmp_path, 1, START, [0, 30, 10, 20, 40])
    make_worker(tmp_path, 2, START + 1, [0, 34])
    for shown in (oldest(tmp_path), newest(tmp_path)):
        mine = [message for message in shown if message.startswith("1@")]
        assert ["1@0", "1@30", "1@10", "1@20", "1@40"] == mine
        assert ["2@1", "2@35"] == [message for message in shown if message.startswith("2@")]
        assert ("1@0", "1@40") == (shown[0], shown[-1])


def test_timestamps_far_from_the_arrival(tmp_path: Path) -> None:
    """Logs of last year count as arrived with their neighbours, and end with their segment."""
    old = [make_line(f"old {number}", START - 9000 * HOUR + number) for number in range(3)]
    make_segment(tmp_path, make_name(START, 1), *old, changed=START + 50)
    make_worker(tmp_path, 2, START + 10, [0, 30])
    assert ["2@10", "2@40", "old 0", "old 1", "old 2"] == newest(tmp_path)
    assert ["old 1", "old 2"] == newest(tmp_path, 2)
    assert ["old 0", "old 1", "old 2", "2@10", "2@40"] == oldest(tmp_path)


def test_old_logs_between_new_ones_stay_there(tmp_path: Path) -> None:
    """They arrived between the lines before and after them."""
    lines = [make_line("a", START), make_line("old", 0), make_line("b", START + 20)]
    make_segment(tmp_path, make_name(START, 1), *lines, changed=START + 20)
    make_worker(tmp_path, 2, START + 10, [0])
    assert ["a", "old", "2@10", "b"] == oldest(tmp_path)
    assert ["a", "2@10", "old", "b"] == newest(tmp_path)


def test_clocks_may_differ_a_little(tmp_path: Path) -> None:
    """A timestamp may be before its segment's start, or after its end."""
    early = [make_line("1 early", START - 3), make_line("1 ahead", START + 33)]
    make_segment(tmp_path, make_name(START, 1), *early, changed=START + 30)
    make_worker(tmp_path, 2, START + 10, [0, 10])
    expected = ["1 early", "2@10", "2@20", "1 ahead"]
    assert expected == oldest(tmp_path) == newest(tmp_path)


def test_a_log_did_not_arrive_before_its_segment_began_or_after_it_ended(tmp_path: Path) -> None:
    """Whatever its timestamp is."""
    late = [make_line("late", START - 3), make_line("ahead", START + 40)]
    make_segment(tmp_path, make_name(START + 10, 1), *late, changed=START + 20)
    make_worker(tmp_path, 2, START + 5, [0])
    make_worker(tmp_path, 2, START + 25, [0])
    expected = ["2@5", "late", "ahead", "2@25"]
    assert expected == oldest(tmp_path) == newest(tmp_path)


@pytest.mark.parametrize("line", [b"no log\n", b'{"timestamp":"2024-02-31T00:00:00Z"}\n', b"{}\n"])
def test_lines_that_are_no_logs_stay_with_their_neighbours(tmp_path: Path, line: bytes) -> None:
    """They have no time, and are shown nevertheless."""
    lines = [make_line("a", START), line, make_line("b", START + 20)]
    make_segment(tmp_path, make_name(START), *lines, changed=START + 20)
    assert [text.strip() for text in lines] == newest_lines(find_parts(tmp_path), 9)
    assert [text.strip() for text in lines] == list(oldest_first(find_parts(tmp_path)))


def test_the_quiet_worker_is_not_forgotten(tmp_path: Path) -> None:
    """A segment started long before others, and sealed last, has the newest line."""
    make_worker(tmp_path, 1, START, [0, HOUR])
    for number in range(100):
        make_worker(tmp_path, 2, START + 30 * number, [0, 20])
    assert ["2@2990", "1@3600"] == newest(tmp_path, 2)


def test_the_open_segment_of_a_quiet_worker_is_not_forgotten(tmp_path: Path) -> None:
    """However many segments of others were started after it."""
    make_worker(tmp_path, 1, START, [0, HOUR], ".ndjson.open")
    for number in range(2 * merge.CONCURRENT_SEGMENTS):
        make_worker(tmp_path, 2, START + number, [0, 0.5])
    assert ["2@255.5", "1@3600"] == newest(tmp_path, 2)


@pytest.mark.parametrize("forms", list(permutations([Form.OPEN, Form.PLAIN])))
def test_a_segment_that_is_being_sealed_is_not_open(forms: tuple[Form, Form]) -> None:
    """A listing may have both names."""
    (part,) = make_parts(Path(), [SegmentFile(NAME, form) for form in forms])
    assert not part.is_open


def test_merge_shows_only_matching_lines(tmp_path: Path) -> None:
    """Only matching lines count towards the limit."""
    make_worker(tmp_path, 1, START, list(range(100)), ".ndjson.zst")
    make_worker(tmp_path, 1, START + 100, list(range(100)))

    def matches(line: bytes) -> bool:
        return message_of(line).endswith("0")

    assert ["1@170", "1@180", "1@190"] == newest(tmp_path, 3, select=select_if(matches))
    assert [f"1@{at}" for at in range(50, 200, 10)] == newest(
        tmp_path, 15, select=select_if(matches)
    )
    lines = oldest_first(find_parts(tmp_path), select_if(matches))
    assert [f"1@{at}" for at in range(0, 200, 10)] == list(map(message_of, lines))


def test_segments_from_before_a_moment_are_left_out(tmp_path: Path) -> None:
    """A segment's last change limits the arrival of its lines; clocks may be off by a minute."""
    for number in range(3):
        make_worker(tmp_path, 1, START + number * HOUR, [0, 10])
    for seconds, expected in [(-START, 3), (70, 3), (71, 2), (3 * HOUR, 0)]:
        moment = datetime.fromtimestamp(START + seconds, UTC)
        found = parts_since(find_parts(tmp_path), f"{moment:%Y-%m-%dT%H:%M:%S}.9Z")
        assert expected == len(found)
    assert 3 == len(parts_since(find_parts(tmp_path), None))


class Calls:
    """Counts system calls."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.opened = 0
        self.bytes_read = 0
        self.looked_at = 0
        patch.setattr(os, "open", self._counting(os.open, "opened"))
        patch.setattr(os, "pread", self._counting(os.pread, "bytes_read", len))
        patch.setattr(os, "stat", self._counting(os.stat, "looked_at"))

    def _counting(
        self, function: Callable[..., Any], name: str, size: Callable[[Any], int] = lambda _: 1
    ) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            setattr(self, name, getattr(self, name) + size(result))
            return result

        return call


def make_many(directory: Path, count: int, pids: int = 2, copied: bool = False) -> list[str]:
    """Write segments of a minute, one started every half minute; return all messages by time."""
    logs = []
    for number in range(count):
        start = START + 30 * number
        seconds = range(0, 60, 6)
        lines = [make_line(f"{number}/{at}", start + at) for at in seconds]
        changed = None if copied else start + 54
        make_segment(directory, make_name(start, number % pids + 1), *lines, changed=changed)
        logs += [(start + at, number, f"{number}/{at}") for at in seconds]
    return [message for _, _, message in sorted(logs)]


@pytest.mark.slow
def test_the_newest_lines_of_many_segments_take_few_reads(tmp_path: Path) -> None:
    """The last 50 lines of 2,000 segments open only the last few files."""
    messages = make_many(tmp_path, 2000)
    with pytest.MonkeyPatch.context() as patch:
        calls = Calls(patch)
        assert messages[-50:] == newest(tmp_path, 50)
    assert calls.opened <= 10
    assert calls.bytes_read <= 10 * LAST_BLOCK_BYTES
    assert calls.looked_at <= merge.CONCURRENT_SEGMENTS + 10


@pytest.mark.parametrize("pids", [2, 1000])
def test_a_copied_directory_takes_few_reads_too(tmp_path: Path, pids: int) -> None:
    """If copying changed the times of all files, names and timestamps give the order."""
    messages = make_many(tmp_path, 300, pids, copied=True)
    with pytest.MonkeyPatch.context() as patch:
        calls = Calls(patch)
        assert messages[-50:] == newest(tmp_path, 50)
    assert calls.opened <= merge.CONCURRENT_SEGMENTS + 10
    assert calls.bytes_read <= calls.opened * LAST_BLOCK_BYTES
    assert messages == oldest(tmp_path)


def test_copied_segments_without_useful_timestamps_are_in_the_order_of_names(
    tmp_path: Path,
) -> None:
    """So are those that were all changed at the same time."""
    messages = []
    for number in range(200):
        mine = [f"{number}/{line}" for line in range(5)]
        lines = [make_line(message) for message in mine]
        make_segment(tmp_path, make_name(START + number, number + 1), *lines, changed=START + HOUR)
        messages += mine
    assert messages[-50:] == newest(tmp_path, 50)
    assert messages == oldest(tmp_path)


def test_few_files_are_open_at_a_time(tmp_path: Path) -> None:
    """A segment is opened only when its time has come."""
    make_many(tmp_path, 100)
    before = len(os.listdir("/proc/self/fd"))
    counts = [len(os.listdir("/proc/self/fd")) for _ in oldest_first(find_parts(tmp_path))]
    assert 1000 == len(counts)
    assert max(counts) <= before + 5
    assert before == len(os.listdir("/proc/self/fd"))


def test_a_spent_budget_ends_the_search(tmp_path: Path) -> None:
    """The lines found so far are the newest; without a budget all are found."""
    make_worker(tmp_path, 1, START, list(range(1000)))
    make_worker(tmp_path, 1, START + 1000, list(range(1000)))
    budget = ReadBudget(2 * LAST_BLOCK_BYTES)
    found = newest(tmp_path, 5000, budget=budget)
    assert budget.is_spent
    assert 50 < len(found) < 500
    assert [f"1@{at}" for at in range(2000 - len(found), 2000)] == found
    assert 2000 == len(newest(tmp_path, 5000))


def test_a_spent_budget_leaves_no_gap(tmp_path: Path) -> None:
    """No older lines of one worker are shown before newer ones of another."""
    make_worker(tmp_path, 1, START, [at / 10 for at in range(2000)])
    make_worker(tmp_path, 2, START, list(range(200)))
    found = newest(tmp_path, 5000, budget=ReadBudget(2 * LAST_BLOCK_BYTES))
    assert 50 < len(found) < 500
    assert newest(tmp_path, 5000)[-len(found) :] == found


def test_a_spent_budget_opens_no_more(tmp_path: Path) -> None:
    """A continued read opens the next segments."""
    make_many(tmp_path, 100)
    parts = find_parts(tmp_path)
    for number in range(3):
        shown = list(map(message_of, oldest_first(parts, not_blank, ReadBudget(1))))
        assert [f"{number}/{at}" for at in range(0, 60, 6)] == shown


@pytest.mark.slow
def test_a_search_in_a_compressed_segment_keeps_few_lines(tmp_path: Path) -> None:
    """It is decompressed as a whole, but only the requested lines are held."""
    make_worker(tmp_path, 1, START, list(range(20_000)), ".ndjson.zst")
    tracemalloc.start()
    try:
        assert ["1@19999"] == newest(tmp_path, 1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000


def test_budget_too_small_to_decompress_a_segment_ends_the_search(tmp_path: Path) -> None:
    """The newest lines of a compressed segment are known only after all of it."""
    make_worker(tmp_path, 1, START, list(range(5000)), ".ndjson.zst")
    make_worker(tmp_path, 1, START + 5000, [0, 1])
    assert ["1@5000", "1@5001"] == newest(tmp_path, 5, budget=ReadBudget(LAST_BLOCK_BYTES))
    assert ["1@4999", "1@5000", "1@5001"] == newest(tmp_path, 3, budget=ReadBudget(10**7))


@given(
    workers=st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=20), max_size=4),
    sizes=st.lists(st.integers(1, 3000), min_size=1),
    wants=st.integers(1, 3),
)
def test_reading_continues_after_a_spent_budget(
    tmp_path_factory: pytest.TempPathFactory, workers: list[list[int]], sizes: list[int], wants: int
) -> None:
    """However it is divided, the lines and their order per segment are the same."""
    directory = tmp_path_factory.mktemp("segments")
    for pid, seconds in enumerate(workers, 1):
        suffix = [".ndjson.open", ".ndjson", ".ndjson.zst"][pid % 3]
        make_worker(directory, pid, START + pid, [float(at) for at in seconds], suffix)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "BLOCK_BYTES", 300)
        whole = list(oldest_first(find_parts(directory)))
        parts = find_parts(directory)
        pieces: list[bytes] = []
        for size in [*sizes, *[10**6] * 3]:
            pieces += oldest_first(parts, not_blank, ReadBudget(size))
        assert sorted(whole) == sorted(pieces)
        assert all(part.is_read for part in parts)
        for pid in range(1, len(workers) + 1):
            mine = [line for line in pieces if message_of(line).startswith(f"{pid}@")]
            assert [line for line in whole if line in mine] == mine
        stopped = find_parts(directory)
        first = list(islice(oldest_first(stopped), wants))
        assert whole == first + list(oldest_first(stopped))


@pytest.mark.parametrize("suffix", [".ndjson", ".ndjson.zst"])
def test_search_in_small_steps_yields_each_line_once(tmp_path: Path, suffix: str) -> None:
    """A step may end before it has begun all the segments that earlier ones began."""
    for pid in (1, 2, 3):
        words = ["wanted" if (at + 77 * pid) % 200 == 0 else "x" * 300 for at in range(2000)]
        lines = [make_line(f"{word} {pid}-{at}", START + at) for at, word in enumerate(words)]
        changed = START + 2000 + pid
        make_segment(tmp_path, make_name(START, pid), *lines, suffix=suffix, changed=changed)
    select = select_if(lambda line: b"wanted" in line)
    whole = newest(tmp_path, select=select)
    found: list[str] = []
    parts = find_parts(tmp_path)
    for _ in range(200):
        budget = ReadBudget(60_000, is_soft=True)
        found += map(message_of, newest_lines(parts, 100, select, budget)[::-1])
        if (rest := remaining(parts)) is None:
            break
        parts = list(rest.parts(find_parts(tmp_path)))
    assert 30 == len(whole)
    assert whole == found[::-1]


def test_a_segment_removed_meanwhile_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A segment removed by retention is named; all others are shown."""
    removed = make_worker(tmp_path, 1, START, [0, 1])
    make_worker(tmp_path, 1, START + 10, [0, 1])
    parts = find_parts(tmp_path)
    removed.unlink()
    assert ["1@10", "1@11"] == list(map(message_of, newest_lines(parts, 9)))
    assert ["1@10", "1@11"] == list(map(message_of, oldest_first(parts)))
    assert f"{removed.stem} was removed before it was read" in caplog.messages


def test_a_broken_segment_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that is not zstd is named; all others are shown."""
    name = make_name(START + 5)
    (tmp_path / f"{name}.ndjson.zst").write_bytes(b"no zstd at all")
    make_worker(tmp_path, 1, START + 10, [0, 1])
    assert ["1@10", "1@11"] == newest(tmp_path) == oldest(tmp_path)
    assert [f"cannot read {name}"] * 2 == [message[: 12 + len(name)] for message in caplog.messages]


def test_an_error_of_the_system_is_logged_by_its_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*place: Any) -> NoReturn:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "path")

    make_worker(tmp_path, 1, START + 10, [0])
    monkeypatch.setattr(merge, "SegmentReader", refuse)
    assert newest(tmp_path) == []
    assert caplog.messages == [f"cannot read {make_name(START + 10, 1)}: Permission denied"]


def test_lines_before_a_tear_are_shown_in_both_directions(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As after a power cut; the segment is named."""
    numbers = random.Random(1)
    lines = [make_line(f"{at} {numbers.randbytes(500).hex()}", START + at) for at in range(2000)]
    path = make_segment(tmp_path, NAME, *lines, suffix=".ndjson.zst", changed=START + 2000)
    os.truncate(path, path.stat().st_size // 2)
    shown = oldest(tmp_path)
    assert [line[:-1] for line in lines[: len(shown)]] == list(oldest_first(find_parts(tmp_path)))
    assert 500 < len(shown) < 1500
    assert shown == newest(tmp_path, 2000)
    assert 3 == len(caplog.messages)
    assert {f"cannot read {NAME}: the compressed file ends early"} == set(caplog.messages)


@pytest.mark.parametrize("limit", [1, 7, 40, 100])
def test_a_compressed_segment_is_read_backwards_in_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """Each holds few lines; the lines around matching ones stay with these."""
    monkeypatch.setattr(merge, "MAX_HELD_BYTES", 500)
    make_worker(tmp_path, 1, START, list(range(50)), ".ndjson.zst")
    assert oldest(tmp_path)[-limit:] == newest(tmp_path, limit)

    def make(*place: Any) -> ContextPart:
        return ContextPart(1, 1, *place)

    select = select_if(lambda line: b"5" in line[line.index(b"@") :])
    groups = list(oldest_arrivals(find_parts(tmp_path, make), select))
    backwards = list(newest_arrivals(find_parts(tmp_path, make), limit, select))
    lines = [[arrival.line for arrival in found] for found in (groups, backwards[::-1])]
    assert lines[0][-limit:] == lines[1] != []


def test_lines_that_are_read_backwards_take_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge, "MAX_HELD_BYTES", 1_000_000)
    tracemalloc.start()
    try:
        lines = last_first(
            lambda: ((number, bytes(100_000)) for number in range(100)), 1000, ReadBudget()
        )
        assert [number for number, _ in lines] == list(reversed(range(100)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 1_000_000 < peak < 2_000_000


def test_a_copied_directory_is_read_with_few_open_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its times of change are all late, and so are the timestamps of its lines."""
    monkeypatch.setattr(merge, "CONCURRENT_SEGMENTS", 4)
    for number in range(20):
        line = make_line(f"{number}", START + HOUR)
        make_segment(tmp_path, make_name(START + number), line, changed=START + 2 * HOUR)
    before = len(os.listdir("/proc/self/fd"))
    counts = []
    shown = []
    for line in oldest_first(find_parts(tmp_path)):
        counts.append(len(os.listdir("/proc/self/fd")) - before)
        shown.append(message_of(line))
    assert max(counts) <= merge.CONCURRENT_SEGMENTS + 1
    assert sorted(shown, key=int) == [str(number) for number in range(20)]


def test_a_part_takes_little_memory(tmp_path: Path) -> None:
    """300,000 segments take less than 80 MiB, also while they are sorted."""
    count = 2000
    files = (f"{make_name(START + number)}.ndjson" for number in range(count))
    tracemalloc.start()
    try:
        parts = make_parts(tmp_path, parse_file_names(files), ProcessPart)
        assert all(part.until <= part.latest for part in parts)
        assert not list(oldest_arrivals(parts, not_blank, ReadBudget(0)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(parts) == count
    assert peak / count < 280


def test_a_missing_directory_is_an_error(tmp_path: Path) -> None:
    """An empty one has no lines."""
    assert [] == newest(tmp_path)
    with pytest.raises(FileNotFoundError):
        find_parts(tmp_path / "missing")


def test_removed_segment_is_not_an_unreadable_one(tmp_path: Path) -> None:
    """Retention may remove it between its listing and its reading."""
    path = make_segment(tmp_path, NAME, make_line("one"))
    (part,) = find_parts(tmp_path)
    path.unlink()
    assert [] == list(oldest_first([part]))
    assert part.is_failed
    assert part.is_removed
