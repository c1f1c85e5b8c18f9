"""The tables are queried for many segments at once, and only for those in doubt."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from astralog.forward import delivery as doubting
from astralog.forward.backlog import Backlog
from astralog.forward.chunks import Chunk
from astralog.forward.clickhouse import Unavailable
from astralog.forward.cursor import Cursor
from astralog.forward.delivery import Doubts
from tests.support.clickhouse import make_line, write_segment
from tests.unit.forward.fakes import FakeServer, make_chunk


class World:
    """A directory from which a process delivers."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.server = FakeServer()
        self.start()

    def start(self) -> None:
        """Start as a new process."""
        self.cursor = Cursor(self.directory, "n", "http://host/db/logs")
        self.cursor.open({path.stem for path in self.directory.glob("*.ndjson")})
        self.backlog = Backlog(self.directory, self.cursor)
        self.doubts = Doubts(self.server, self.cursor, self.backlog)

    def write(self, number: int) -> str:
        """Write an old segment with three lines."""
        return write_segment(self.directory, map(make_line, range(3)), number).stem

    def write_new(self, seconds: float = 0.0) -> str:
        """Write a segment that was started now, or will be in some seconds."""
        start = datetime.now(UTC) + timedelta(seconds=seconds)
        path = self.directory / f"{start:%Y%m%dT%H%M%S.%fZ}-1.ndjson"
        path.write_bytes(make_line(0) + b"\n")
        return path.stem

    def ask_about(self, name: str) -> None:
        """Query the tables for a segment after a poll of the directory."""
        self.backlog.scan()
        self.doubts.prune()
        self.doubts.ask_about(name)

    def store(self, name: str, *lines: int) -> None:
        """Store lines of a segment in the table."""
        self.server.logs.update((name, line) for line in lines)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Return an empty directory, and empty tables."""
    return World(tmp_path)


def chunks(name: str) -> list[Chunk]:
    """Return lines 1 and 2 of a segment as a chunk, and line 3 as another."""
    first = make_chunk(name, b"1", b"2")
    return [first, replace(first, offset=4, first_line=3, begin=2)]


def test_one_query_covers_many_segments(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest ones, up to a number of bytes; the answers are kept."""
    names = [world.write(number) for number in range(5)]
    size = sum(path.stat().st_size for path in world.directory.glob("*.ndjson")) // 5
    monkeypatch.setattr(doubting, "QUERY_BYTES", 3 * size)
    for name in names:
        world.ask_about(name)
        world.backlog.set_aside(name)
    assert world.server.calls == ["count", "count"]


def test_new_segment_is_not_queried(world: World) -> None:
    """A segment started after this process cannot have been delivered by another one."""
    name = world.write_new()
    world.ask_about(name)
    assert world.server.calls == []
    for chunk in chunks(name):
        assert not world.doubts.may_hold(chunk)
        assert not world.doubts.holds(chunk)
        assert "lines" not in vars(chunk), "counting them costs as much as reading them"


def test_segment_of_the_future_is_queried(world: World) -> None:
    """A clock that was ahead named it, and it may have been delivered then."""
    world.ask_about(world.write_new(seconds=3600))
    assert world.server.calls == ["count"]


@pytest.mark.parametrize("is_delivered", [True, False])
def test_segment_that_reappears_is_queried(world: World, is_delivered: bool) -> None:
    """Its facts are gone, although it was started after this process."""
    older, name = world.write_new(), world.write_new()
    world.ask_about(name)
    world.cursor.begin(name)
    if is_delivered:
        world.cursor.finish([name])
        world.backlog.remove(name)
    path = world.directory / f"{name}.ndjson"
    kept = path.rename(path.with_suffix(".kept"))
    world.backlog.scan()
    world.doubts.prune()
    kept.rename(path)
    world.ask_about(name)
    assert world.server.calls == ["count"]
    world.ask_about(older)
    assert world.server.calls == ["count"]  # about both


def test_answer_is_dropped_with_its_segment(world: World) -> None:
    """If the segment reappears, it may have been delivered in part."""
    name = world.write(1)
    world.ask_about(name)
    path = world.directory / f"{name}.ndjson"
    kept = path.rename(path.with_suffix(".kept"))
    world.backlog.scan()
    world.doubts.prune()
    kept.rename(path)
    world.ask_about(name)
    assert world.server.calls == ["count", "count"]


def test_segment_with_facts_is_queried_chunk_by_chunk(world: World) -> None:
    """An insert of an earlier process may still be running."""
    name = world.write(1)
    world.cursor.begin(name)
    world.start()
    world.ask_about(name)
    assert world.server.calls == []
    assert all(world.doubts.may_hold(chunk) for chunk in chunks(name))


@pytest.mark.parametrize(
    ("lines", "held", "asked"),
    [
        ((), [False, False], [False, False]),
        ((1,), [False, False], [True, False]),
        ((1, 2), [True, False], [True, False]),
        ((1, 2, 3), [True, True], [True, True]),
        ((1, 1, 2), [True, False], [True, False]),
        ((2,), [False, False], [True, False]),
        ((3,), [False, False], [True, True]),
        ((1, 3), [False, False], [True, True]),
    ],
)
def test_answer_decides_about_each_chunk(
    world: World, lines: tuple[int, ...], held: list[bool], asked: list[bool]
) -> None:
    """Chunks that are certainly stored are not sent, and missing ones are not queried again."""
    name = world.write(1)
    world.store(name, *lines)
    world.ask_about(name)
    assert held == [world.doubts.holds(chunk) for chunk in chunks(name)]
    assert asked == [world.doubts.may_hold(chunk) for chunk in chunks(name)]


def test_failure_leaves_the_doubt(world: World) -> None:
    """While the tables do not respond, nothing is known."""
    name = world.write(1)
    world.server.faults = ["before"]
    with pytest.raises(Unavailable):
        world.ask_about(name)
    world.ask_about(name)
    assert world.server.calls == ["count", "count"]
