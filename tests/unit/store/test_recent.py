import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

from astralog.store import recent
from astralog.store.names import SegmentName
from astralog.store.reader import ReadBudget, not_blank, select_if
from astralog.store.recent import (
    END,
    MAX_FOLLOWED,
    MAX_SEGMENTS,
    PageCursor,
    Recent,
    RecentLines,
)
from tests.support import foreign
from tests.support.tail import compress, make_line, make_name, make_segment, message_of

OPEN = ".ndjson.open"
NOW = 1_700_000_000.0


class Poller:
    """A reader that polls repeatedly, each time for new lines; `lines` waits for nothing."""

    def __init__(self, directory: Path, limit: int = 100) -> None:
        self.lines = RecentLines(directory)
        self.cursor: PageCursor | None = None
        self._limit = limit

    def again(self, text: str = "", lines: RecentLines | None = None) -> list[str]:
        """Return the messages that are new and have a text, newest first."""
        return [message_of(one.line) for one in self.read(text, lines).arrivals]

    def read(self, text: str = "", lines: RecentLines | None = None) -> Recent:
        lines = lines or self.lines
        lines._list_again_at = 0
        found = lines.read(
            self._limit,
            select_if(lambda line: text.encode() in line),
            ReadBudget(1 << 20),
            self.cursor,
        )
        self.cursor = found.cursor
        return found


def append(path: Path, *messages: str, at: float = NOW) -> None:
    """Write lines to the end of a segment."""
    with path.open("ab") as file:
        file.writelines(make_line(message, at) for message in messages)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Return an empty data directory."""
    return tmp_path / "data"


@pytest.fixture
def segment(data_dir: Path) -> Path:
    """Return an open segment of a line."""
    now = time.time()
    return make_segment(data_dir, make_name(now - 60), make_line("first", now), suffix=OPEN)


def test_new_lines_are_shown_once(segment: Path) -> None:
    """Newest first, from any segment."""
    poller = Poller(segment.parent)
    assert ["first"] == poller.again()
    assert [] == poller.again()
    append(segment, "second", "third")
    assert ["third", "second"] == poller.again()
    other = make_segment(segment.parent, make_name(time.time(), 2), make_line("x"), suffix=OPEN)
    assert ["x"] == poller.again()
    append(other, "y")
    append(segment, "z")
    assert {"y", "z"} == set(poller.again())
    assert [] == poller.again()


def test_a_line_that_is_being_written_is_shown_when_it_is_whole(segment: Path) -> None:
    """Its beginning, which an earlier poll saw, belongs to it."""
    poller = Poller(segment.parent)
    line = make_line("half", NOW)
    with segment.open("ab", buffering=0) as file:
        file.write(line[:30])
        assert ["first"] == poller.again()
        file.write(line[30:50])
        assert [] == poller.again()
        file.write(line[50:])
    assert ["half"] == poller.again()
    assert [] == poller.again()


def test_a_segment_is_followed_under_all_its_names(segment: Path) -> None:
    """Lines added before the seal are shown, and none twice, compressed or not."""
    poller = Poller(segment.parent)
    assert ["first"] == poller.again()
    append(segment, "last")
    sealed = segment.rename(segment.with_name(segment.name.removesuffix(".open")))
    assert ["last"] == poller.again()
    assert [] == poller.again()
    new = make_segment(segment.parent, make_name(time.time()), make_line("new"), suffix=OPEN)
    new = compress(new.rename(new.with_name(new.name.removesuffix(".open"))))
    assert ["new"] == poller.again()
    assert [] == poller.again()
    compress(sealed)
    assert [] == poller.again()
    assert ["first", "last", "new"] == sorted(Poller(segment.parent).again())


def test_a_segment_that_was_compressed_meanwhile_is_read_on(segment: Path) -> None:
    """From its earlier position, without the lines seen."""
    poller = Poller(segment.parent)
    poller.again()
    append(segment, "last")
    compress(segment.rename(segment.with_name(segment.name.removesuffix(".open"))))
    assert ["last"] == poller.again()
    assert [] == poller.again()


def test_any_process_continues_a_cursor(segment: Path) -> None:
    """Also one that has not listed the directory since, or never."""
    poller, other = Poller(segment.parent), RecentLines(segment.parent)
    other.read(1, not_blank, ReadBudget())
    assert ["first"] == poller.again()
    new = make_segment(segment.parent, make_name(time.time(), 2), make_line("new"), suffix=OPEN)
    assert ["new"] == poller.again()
    append(segment, "second")
    found = other.read(9, not_blank, ReadBudget(), poller.cursor)  # does not know of the new one
    assert ["second"] == [message_of(one.line) for one in found.arrivals]
    poller.cursor = found.cursor
    append(new, "newer")
    assert ["newer"] == poller.again(lines=RecentLines(segment.parent))
    assert [] == poller.again()


def test_lines_that_do_not_match_are_skipped(segment: Path) -> None:
    """They count as seen."""
    poller = Poller(segment.parent)
    append(segment, "a wanted one", "b")
    assert ["a wanted one"] == poller.again("wanted")
    append(segment, "c", "another wanted one", "d")
    assert ["another wanted one"] == poller.again("wanted")
    assert [] == poller.again()


def test_more_lines_than_requested_are_reported(segment: Path) -> None:
    """The newest are shown with a note that there are others; these are not shown later."""
    poller = Poller(segment.parent, limit=2)
    append(segment, "second")
    assert poller.read().is_all
    append(segment, "a", "b", "c")
    found = poller.read()
    assert (["c", "b"], False) == ([message_of(one.line) for one in found.arrivals], found.is_all)
    assert [] == poller.again()


def test_poll_reads_no_more_than_its_budget(data_dir: Path) -> None:
    """For any filter and segment size; the result indicates that there may be more lines."""
    for pid in range(1, 5):
        lines = [make_line("x" * 200, NOW)] * 3000
        make_segment(data_dir, make_name(NOW, pid), *lines, changed=NOW + pid)
    budget = ReadBudget(100_000)
    found = RecentLines(data_dir).read(10, select_if(lambda line: False), budget)
    assert ([], False) == (found.arrivals, found.is_all)
    assert 100_000 <= budget.bytes_read < 100_000 + 2 * 256 * 1024


def test_removed_segment_is_skipped(segment: Path) -> None:
    """Retention may remove it between the listing and the read."""
    poller = Poller(segment.parent)
    other = make_segment(segment.parent, make_name(time.time(), 2), make_line("x"), suffix=OPEN)
    assert 2 == len(poller.again())
    lines = poller.lines
    other.unlink()
    append(segment, "second")
    found = lines.read(9, not_blank, ReadBudget(), None)
    assert {"first", "second"} == {message_of(one.line) for one in found.arrivals}
    poller.cursor = found.cursor
    assert [] == poller.again()


def test_only_the_newest_segments_are_read(data_dir: Path) -> None:
    """And all open ones, however old; the others cost nothing."""
    for number in range(MAX_SEGMENTS + 50):
        make_segment(data_dir, make_name(NOW + number), make_line(f"{number}", NOW))
    make_segment(data_dir, make_name(NOW - 9, 2), make_line("open", NOW), suffix=OPEN)
    lines = RecentLines(data_dir)
    found = lines.read(1000, not_blank, ReadBudget())
    assert not found.is_all
    messages = {message_of(one.line) for one in found.arrivals}
    assert {"open", *(str(number) for number in range(50, MAX_SEGMENTS + 50))} == messages
    assert lines.read(1000, not_blank, ReadBudget(), found.cursor).is_all
    assert [make_name(NOW - 9, 2)] == list(found.cursor.offsets)


@pytest.mark.timeout(60)
def test_other_files_hide_no_segment(segment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, with any names, they are neither read nor waited for."""
    monkeypatch.setattr(recent, "MAX_SEGMENTS", 20)
    monkeypatch.setattr(recent, "MAX_FOLLOWED", 5)
    foreign.make_all(segment.parent)
    for number in range(3 * recent.MAX_SEGMENTS):
        (segment.parent / f"9{number}.ndjson").touch()
        (segment.parent / f"9{number}.ndjson.open").touch()
    poller = Poller(segment.parent)
    assert ["first"] == poller.again()
    append(segment, "second")
    assert ["second"] == poller.again()
    assert poller.cursor
    assert [segment.name.removesuffix(OPEN)] == list(poller.cursor.offsets)
    assert poller.read().is_all


def test_a_cursor_has_a_bounded_length(data_dir: Path) -> None:
    """Of too many segments, the open and the newest ones are followed, and none is shown twice."""
    now = time.time()
    old = make_segment(data_dir, make_name(now - 99, 2), make_line("old"), suffix=OPEN)
    for number in range(2 * MAX_FOLLOWED):
        make_segment(data_dir, make_name(now + number / 1000), make_line("x"))
    poller = Poller(data_dir, limit=1000)
    assert 2 * MAX_FOLLOWED + 1 == len(poller.again())
    assert poller.cursor
    assert MAX_FOLLOWED == len(poller.cursor.offsets)
    assert len(str(poller.cursor)) < 3500
    append(old, "newer")
    assert ["newer"] == poller.again()
    assert [] == poller.again()


def test_listing_is_shared(segment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is reused for a while, longer if it was slow, and as long as nothing changes."""
    listings: list[Path] = []
    scandir = os.scandir

    def count(path: Path) -> Any:
        listings.append(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", count)
    monkeypatch.setattr(recent, "LIST_SECONDS", 3600)
    lines = RecentLines(segment.parent)
    for _ in range(5):
        lines.read(1, not_blank, ReadBudget())
    assert 1 == len(listings)
    long_ago = time.time() - 60
    os.utime(segment.parent, (long_ago, long_ago))
    for _ in range(5):
        lines._list_again_at = 0
        lines.read(1, not_blank, ReadBudget())
    assert 2 == len(listings)
    monkeypatch.setattr(recent, "LIST_SECONDS", 0)
    monkeypatch.setattr(recent, "LIST_COST", 10**6)
    os.utime(segment.parent)
    lines._list_again_at = 0
    for _ in range(5):
        lines._list_again_at -= 1.0
        lines.read(1, not_blank, ReadBudget())
    assert 3 == len(listings)


def test_a_directory_that_is_missing_is_an_error(tmp_path: Path) -> None:
    """A directory created since is read."""
    lines = RecentLines(tmp_path / "data")
    with pytest.raises(FileNotFoundError):
        lines.read(1, not_blank, ReadBudget())
    make_segment(tmp_path / "data", make_name(NOW), make_line("x"))
    assert 1 == len(lines.read(1, not_blank, ReadBudget()).arrivals)


def test_forged_cursor_reads_nothing_else(segment: Path) -> None:
    """Unknown names are skipped, and offsets beyond the end have no lines."""
    lines = RecentLines(segment.parent)
    name = SegmentName.of_open_file(segment)
    for cursor in (
        PageCursor(0, {name: END, SegmentName(make_name(NOW)): 5}),
        PageCursor(10**18 - 1, {name: 10**12}),
    ):
        assert [] == lines.read(9, not_blank, ReadBudget(), cursor).arrivals


@pytest.mark.parametrize("is_compressed", [False, True])
def test_a_line_is_found_by_its_end(data_dir: Path, is_compressed: bool) -> None:
    """Any other offset finds no line."""
    made = [make_line(name, NOW) for name in ("a", "bb", "ccc")]
    path = make_segment(data_dir, make_name(NOW), *made)
    if is_compressed:
        compress(path)
    lines, name = RecentLines(data_dir), make_name(NOW)
    end = 0
    for line in made:
        end += len(line)
        assert line == (lines.read_line(name, end, ReadBudget()) or b"") + b"\n"
        for offset in (end - 1, end + 1, 0):
            assert lines.read_line(name, offset, ReadBudget()) is None
    for other in ("../x", make_name(NOW, 9), name + "/", ""):
        assert lines.read_line(other, end, ReadBudget()) is None


def test_concurrent_changes_lose_and_double_no_line(data_dir: Path) -> None:
    """Segments are created, grow, and are sealed and compressed in any order."""
    chance = random.Random(7)
    data_dir.mkdir()
    opened: list[Path] = []
    written: list[str] = []
    seen: list[str] = []
    poller, processes = Poller(data_dir, limit=10**6), [RecentLines(data_dir) for _ in range(3)]
    for step in range(400):
        match chance.randrange(6):
            case 0:
                name = make_name(time.time(), step + 1)
                opened.append(make_segment(data_dir, name, suffix=OPEN))
            case 1 | 2 | 3 if opened:
                written.append(f"m{step}")
                append(chance.choice(opened), written[-1], at=time.time())
            case 4 if opened:
                path = opened.pop(chance.randrange(len(opened)))
                path = path.rename(path.with_name(path.name.removesuffix(".open")))
                if chance.random() < 0.5:
                    compress(path)
            case _:
                seen += poller.again(lines=chance.choice(processes))
    seen += poller.again()
    assert sorted(written) == sorted(seen)
