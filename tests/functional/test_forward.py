"""`astralog forward` as a user runs it, into the real engine."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.clickhouse import (
    ClickHouse,
    Difference,
    Forward,
    compare,
    make_line,
    stored_lines,
    wait_for_rows,
    write_segment,
)
from tests.support.service import wait_for

NOTHING = Difference([], [], [], [])


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouse]:
    """Return an engine that this file's tests share."""
    with ClickHouse(tmp_path_factory.mktemp("clickhouse")) as clickhouse:
        yield clickhouse


@pytest.fixture
def clickhouse(engine: ClickHouse) -> ClickHouse:
    """Return the engine with empty tables that remember no token."""
    engine.query("DROP TABLE IF EXISTS logs")
    engine.query("DROP TABLE IF EXISTS logs_unfit")
    engine.create_tables()
    return engine


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Return an empty data directory."""
    path = tmp_path / "data"
    path.mkdir()
    return path


@pytest.fixture
def forward(tmp_path: Path, data_dir: Path, clickhouse: ClickHouse) -> Forward:
    """Return a forward for these, which is not started."""
    return Forward(tmp_path, clickhouse.url, data_dir, forward_chunk_bytes=2000)


def assert_delivered(clickhouse: ClickHouse, *data_dirs: Path) -> None:
    """Check that each line of each node is in one table, once, with every field as it was."""
    stored = {}
    for number, data_dir in enumerate(data_dirs, 1):
        stored.update(stored_lines(f"node-{number}", sorted(data_dir.glob("*.ndjson"))))
    assert stored
    assert NOTHING == compare(clickhouse, stored)


def write_segments(data_dir: Path, count: int, lines: int = 50, first: int = 0) -> None:
    for number in range(first, first + count):
        write_segment(data_dir, map(make_line, range(lines)), number)


def nest(depth: int) -> Any:
    """Return an object that is nested so deep."""
    value: Any = {"end": 1}
    for _ in range(depth):
        value = {"in": value}
    return value


TIMES = [
    ("0001-01-01T00:00:00Z", False),
    ("1677-09-21T00:12:44Z", False),
    ("1899-12-31T23:59:59.999999999Z", False),
    ("1900-01-01T00:00:00Z", True),
    ("1969-12-31T23:59:59.999999999Z", True),
    ("2024-05-31T15:30:45.123456789Z", True),
    ("2024-05-31T15:30:45.1234567890Z", False),
    ("2024-05-31T15:30:45.1Z", True),
    ("2199-12-31T23:59:59Z", True),
    ("2262-04-11T23:47:15.999999999Z", True),
    ("2262-04-11T23:47:16Z", False),
    ("2263-01-01T00:00:00Z", False),
    ("9999-12-31T23:59:59Z", False),
]

METADATA: list[dict[str, Any]] = [
    {},
    {"a.b": 1, "a": {"b": 2}, "a%2Eb": 3},
    {"": {"": 0}},
    {"null": None, "empty": {}, "list": [], "nulls": [None]},
    nest(300),
    {"mixed": [1, "x", 2.5, None, {"y": []}, [True]]},
    {"big": 2**64, "small": -(2**63), "huge": 10**40, "float": 1e300, "one": 1.0},
    {"lossy": [9007199254740993, 2.5], "minus": -0.0},
    {"date": "2024-01-01", "time": "2024-01-01 00:00:00", "number": "17"},
    {"\u2028": "\u2029", "emoji 😀": "👩‍👩‍👧", "quote\"\\\n\t\0": "\0\x1f\x7f"},
    {str(number): number for number in range(2000)},
    {"timestamp": "2024-05-31", "project_id": "p", "line": 1, "node": "n"},
]


def test_every_field_arrives_as_it_was_sent(
    forward: Forward, data_dir: Path, clickhouse: ClickHouse
) -> None:
    """Whatever a log may hold is in one of the tables, as it was."""
    lines = [make_line(n, timestamp=text) for n, (text, _) in enumerate(TIMES)]
    lines += [make_line(n, metadata=value) for n, value in enumerate(METADATA, len(lines))]
    texts = ["", "x" * 2**20, "😀\u2028\u2029\x7f", "tab\tnew\nline\\n\0", '","timestamp":"2024']
    for text in texts:
        lines.append(make_line(len(lines), message=text))
        lines.append(make_line(len(lines), project_id=text or "p", service=text or "s", level="l"))
    without = json.loads(make_line(0))
    del without["metadata"]
    lines.append(json.dumps(without, separators=(",", ":")).encode())
    write_segment(data_dir, lines)
    assert forward.run_once() == 0
    assert_delivered(clickhouse, data_dir)
    unfit = {int(row["line"]): row["error"] for row in clickhouse.rows("logs_unfit")}
    assert {number for number, (_, fits) in enumerate(TIMES, 1) if not fits} == unfit.keys()
    assert all(error.startswith("timestamp: ") for error in unfit.values())


def test_metadata_can_be_queried_by_its_paths(
    forward: Forward, data_dir: Path, clickhouse: ClickHouse
) -> None:
    """The JSON column has the paths, and the time of arrival is that of the segment."""
    write_segment(data_dir, [make_line(1, metadata={"user": {"id": 7}, "ip": "1.1.1.1"})], 62500)
    assert forward.run_once() == 0
    [row] = clickhouse.rows(columns="meta.user.id AS id, meta.ip AS ip, toString(received) AS at")
    assert row == {"id": 7, "ip": "1.1.1.1", "at": "2026-11-23 06:25:00"}


def test_what_is_sealed_later_follows(
    forward: Forward, data_dir: Path, clickhouse: ClickHouse
) -> None:
    """A running forward takes up each segment once it is sealed, and none that is open."""
    (data_dir / "20261123T235959.000000Z-1.ndjson.open").write_bytes(make_line(0) + b"\n")
    write_segments(data_dir, 1)
    with forward.start():
        wait_for_rows(clickhouse, 50)
        write_segments(data_dir, 2, first=1)
        wait_for_rows(clickhouse, 150)
        assert forward.stop() == 0
    assert_delivered(clickhouse, data_dir)


def test_an_insert_is_one_chunk_and_one_part(
    forward: Forward, data_dir: Path, clickhouse: ClickHouse
) -> None:
    """A chunk ends at the end of a line, and becomes one part as a whole."""
    clickhouse.query("SYSTEM STOP MERGES logs")
    write_segments(data_dir, 1, lines=100)
    [path] = data_dir.glob("*.ndjson")
    assert forward.run_once() == 0
    parts = clickhouse.rows("system.parts WHERE active AND table = 'logs'", "rows")
    assert len(parts) == path.stat().st_size // 2000 + 1
    assert sum(int(part["rows"]) for part in parts) == 100


def test_a_second_run_sends_nothing(
    forward: Forward, data_dir: Path, clickhouse: ClickHouse
) -> None:
    """The cursor outlives the process: what was delivered is not sent again."""
    write_segments(data_dir, 3)
    assert forward.run_once() == 0
    clickhouse.query("TRUNCATE TABLE logs")
    assert forward.run_once() == 0
    assert clickhouse.count() == 0
    write_segments(data_dir, 1, first=3)
    assert forward.run_once() == 0
    assert clickhouse.count() == 50
