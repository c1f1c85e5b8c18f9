"""`astralog forward` as a command, with the real engine."""

import contextlib
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.support.certificate import can_make_certificate, make_certificate
from tests.support.clickhouse import (
    COMMITTED_FAULTS,
    DISCARD,
    FAULTS,
    LIES,
    QUERY_FAULTS,
    UNANSWERED_FAULTS,
    ClickHouse,
    Difference,
    Forward,
    Place,
    compare,
    damage_cursor,
    make_line,
    stored_lines,
    wait_for_rows,
    write_segment,
)
from tests.support.service import TIMEOUT_SECONDS, wait_for

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

NOTHING = Difference([], [], [], [])

#: A deadline that ends unanswered requests soon, and that the engine meets unless it is very busy.
SHORT_DEADLINE_SECONDS = 4

#: Seconds for several deadlines and the pauses between them, on a busy machine.
PATIENCE_SECONDS = 4 * TIMEOUT_SECONDS


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouse]:
    """Return an engine that this file's tests share."""
    with ClickHouse(tmp_path_factory.mktemp("clickhouse")) as clickhouse:
        yield clickhouse


@pytest.fixture
def clickhouse(engine: ClickHouse) -> ClickHouse:
    """Return the engine without faults, with empty tables that remember no token."""
    engine.clear_faults()
    engine.query("DROP TABLE IF EXISTS logs")
    engine.query("DROP TABLE IF EXISTS logs_dead_letter")
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
    """Return a forward for these, not started."""
    return Forward(tmp_path, clickhouse.url, data_dir, forward_chunk_bytes=2000)


def assert_delivered(clickhouse: ClickHouse, *data_dirs: Path) -> None:
    """Check that each line of each node is in one table, once, with all its fields."""
    stored: dict[Place, bytes] = {}
    for number, data_dir in enumerate(data_dirs, 1):
        stored.update(stored_lines(f"node-{number}", sorted(data_dir.glob("*.ndjson"))))
    assert stored
    assert NOTHING == compare(clickhouse, stored)


def write_segments(data_dir: Path, count: int, lines: int = 50, first: int = 0) -> None:
    for number in range(first, first + count):
        write_segment(data_dir, map(make_line, range(lines)), number)


def nest(depth: int) -> Any:
    """Return a deeply nested object."""
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
    {"\u2028": "\u2029", "emoji 😀": "👩‍👩‍👧", 'quote"\\\n\t\0': "\0\x1f\x7f"},
    {str(number): number for number in range(2000)},
    {"timestamp": "2024-05-31", "project_id": "p", "line": 1, "node": "n"},
]


def test_every_field_arrives_as_it_was_sent(
    forward: Forward, data_dir: Path, clickhouse: ClickHouse
) -> None:
    """Any log is in one of the tables, unchanged."""
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
    dead = {int(row["line"]): row["error"] for row in clickhouse.rows("logs_dead_letter")}
    assert {number for number, (_, fits) in enumerate(TIMES, 1) if not fits} == dead.keys()
    assert all(error.startswith("timestamp: ") for error in dead.values())


def test_metadata_can_be_queried_by_its_paths(
    forward: Forward, data_dir: Path, clickhouse: ClickHouse
) -> None:
    """The JSON column has the paths, and the time of arrival is that of the segment."""
    write_segment(data_dir, [make_line(1, metadata={"user": {"id": 7}, "ip": "1.1.1.1"})], 62500)
    assert forward.run_once() == 0
    [row] = clickhouse.rows(columns="meta.user.id AS id, meta.ip AS ip, toString(received) AS at")
    assert row == {"id": 7, "ip": "1.1.1.1", "at": "2026-11-23 06:25:00"}


def test_segments_sealed_later_follow(
    forward: Forward, data_dir: Path, clickhouse: ClickHouse
) -> None:
    """A running forward delivers each segment once it is sealed, and no open one."""
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
    """A chunk ends at a line end, and becomes one part."""
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
    """The cursor outlives the process: delivered segments are not sent again."""
    write_segments(data_dir, 3)
    assert forward.run_once() == 0
    clickhouse.query("TRUNCATE TABLE logs")
    assert forward.run_once() == 0
    assert clickhouse.count() == 0
    write_segments(data_dir, 1, first=3)
    assert forward.run_once() == 0
    assert clickhouse.count() == 50


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_loses_and_doubles_no_line(
    forward: Forward, data_dir: Path, clickhouse: ClickHouse, fault: str
) -> None:
    """For any response to an insert, stored or not, its lines are there once."""
    write_segments(data_dir, 2)
    clickhouse.break_inserts(fault, times=2, seconds=2 * PATIENCE_SECONDS)
    has_short_deadline = fault in UNANSWERED_FAULTS
    if has_short_deadline:
        forward.set(clickhouse_timeout_seconds=SHORT_DEADLINE_SECONDS)
    episodes = 2 if fault in COMMITTED_FAULTS else 1  # what was stored is found at the first look
    with forward.start():
        wait_for_rows(clickhouse, 100, PATIENCE_SECONDS)
        wait_for(lambda: forward.log().count("delivering again") >= episodes, PATIENCE_SECONDS)
    assert_delivered(clickhouse, data_dir)
    if not has_short_deadline:  # which a busy engine may miss more often
        assert forward.log().count(" ERROR ") == episodes


def test_table_is_queried_after_the_deduplication_window(
    forward: Forward, data_dir: Path, clickhouse: ClickHouse
) -> None:
    """Once the server's window is over, a retry still doubles nothing."""
    clickhouse.query("ALTER TABLE logs MODIFY SETTING non_replicated_deduplication_window = 0")
    write_segments(data_dir, 1)
    clickhouse.break_inserts("cut", times=2)
    with forward.start():
        wait_for_rows(clickhouse, 50)
        wait_for(lambda: "delivering again" in forward.log())
    assert_delivered(clickhouse, data_dir)


def test_lines_hidden_by_the_table_are_not_doubled(
    forward: Forward, data_dir: Path, clickhouse: ClickHouse
) -> None:
    """A chunk always has the same token, which is remembered, also for some of its lines.

    Missing lines get another token only after the time that a replica may take.
    """
    write_segments(data_dir, 1)
    assert forward.run_once() == 0
    (data_dir / "forward.cursor").unlink()
    clickhouse.query("ALTER TABLE logs DELETE WHERE line % 2 SETTINGS mutations_sync = 1")
    with forward.start():
        wait_for(lambda: status_where(data_dir, lambda s: s["delivered_logs"] == 50))
        assert clickhouse.count() == 25
    forward.replica_seconds = 0.0
    assert forward.run_once() == 0
    assert "held 25 of the 50 lines" in forward.log()
    assert_delivered(clickhouse, data_dir)


@pytest.mark.parametrize("fault", QUERY_FAULTS)
def test_invalid_answer_resolves_no_doubt(
    forward: Forward, data_dir: Path, clickhouse: ClickHouse, fault: str
) -> None:
    """A page, half an answer or another query's answer does not count."""
    clickhouse.query("ALTER TABLE logs MODIFY SETTING non_replicated_deduplication_window = 0")
    write_segments(data_dir, 2)
    assert forward.run_once() == 0
    (data_dir / "forward.cursor").unlink()
    clickhouse.break_queries(fault, times=3)
    if fault in UNANSWERED_FAULTS:
        forward.set(clickhouse_timeout_seconds=SHORT_DEADLINE_SECONDS)
    with forward.start():
        wait_for(lambda: clickhouse.faults_left() == 0, PATIENCE_SECONDS)
        wait_for(lambda: "delivering again" in forward.log(), PATIENCE_SECONDS)
        cursor = data_dir / "forward.cursor"
        wait_for(lambda: cursor.read_bytes().count(b"done") == 2, PATIENCE_SECONDS)
    assert_delivered(clickhouse, data_dir)


@pytest.mark.parametrize("fault", LIES)
def test_an_insert_that_is_lost_is_sent_again(
    forward: Forward, data_dir: Path, clickhouse: ClickHouse, fault: str
) -> None:
    """Whatever its response is, the content of the tables decides."""
    forward.replica_seconds = 0.5
    write_segments(data_dir, 2)
    clickhouse.break_inserts(fault, times=2, after=1)
    assert forward.run_once() == 0
    assert_delivered(clickhouse, data_dir)
    assert "resent the others" in forward.log()


def test_a_table_that_keeps_nothing_makes_no_loop(
    forward: Forward, data_dir: Path, clickhouse: ClickHouse
) -> None:
    """Deleted or expired lines are sent twice and then counted."""
    columns = "node String, segment String, line UInt64, project_id String, timestamp String"
    columns += ", level String, service String, message String, metadata String"
    clickhouse.query("DROP TABLE logs")
    clickhouse.query(f"CREATE TABLE logs ({columns}) ENGINE = Null")
    forward.replica_seconds = 0.0
    write_segments(data_dir, 2)
    assert forward.run_once() == 0
    assert clickhouse.count() == 0
    assert 1 <= forward.log().count(" ERROR ") <= 2
    status = status_where(data_dir, lambda s: True)
    assert status
    assert (status["incomplete_segments"], status["waiting_segments"]) == (2, 0)


def test_doubled_rows_are_counted(forward: Forward, data_dir: Path, clickhouse: ClickHouse) -> None:
    """For example after a restore of the table: they are reported, and nothing is sent."""
    write_segments(data_dir, 2)
    assert forward.run_once() == 0
    columns = "node, segment, line, project_id, timestamp, level, service, message, metadata"
    clickhouse.query(f"INSERT INTO logs ({columns}) SELECT {columns} FROM logs LIMIT 7")
    (data_dir / "forward.cursor").unlink()
    assert forward.run_once() == 0
    assert clickhouse.count() == 107
    status = status_where(data_dir, lambda s: True)
    assert status
    assert (status["doubled_segments"], status["incomplete_segments"]) == (1, 0)


def test_a_server_that_drips_from_the_first_byte(
    forward: Forward, data_dir: Path, clickhouse: ClickHouse
) -> None:
    """The total time for connecting is bounded, too."""
    write_segments(data_dir, 1)
    is_over = threading.Event()

    def drip(server: socket.socket) -> None:
        connections = []
        while not is_over.wait(0.1):
            with contextlib.suppress(BlockingIOError):
                connections.append(server.accept()[0])
            for connection in connections:
                with contextlib.suppress(OSError):
                    connection.send(b"H")
        for connection in connections:
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        thread = threading.Thread(target=drip, args=[server])
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/astralog"
        forward.set(clickhouse_url=url, clickhouse_timeout_seconds=1)
        try:
            assert forward.run_once(PATIENCE_SECONDS) == 1
        finally:
            is_over.set()
            thread.join()
    assert "no complete answer within 1 s" in forward.log()


def test_the_node_of_the_first_delivery_stays(
    forward: Forward, data_dir: Path, clickhouse: ClickHouse
) -> None:
    """A recreated container has another host name, and delivers nothing twice."""
    write_segments(data_dir, 1)
    assert forward.run_once() == 0
    forward.set(node=None)
    (data_dir / "forward.cursor").unlink()
    write_segments(data_dir, 1, first=1)
    assert forward.run_once() == 0
    assert "as node node-1" in forward.log()
    assert_delivered(clickhouse, data_dir)
    forward.set(node="node-2")
    assert forward.run_once() == 1
    [line] = forward.log().splitlines()
    assert "ASTRALOG_NODE is node-2, but ClickHouse has the logs of" in line
    assert "unset ASTRALOG_NODE or set it to node-1" in line
    assert_delivered(clickhouse, data_dir)


def test_unknown_node_name_stops_forward(
    forward: Forward, data_dir: Path, clickhouse: ClickHouse
) -> None:
    """With a damaged file and a lost cursor, nothing is sent under any name."""
    write_segments(data_dir, 1)
    assert forward.run_once() == 0
    (data_dir / "forward.cursor").unlink()
    (data_dir / "node").write_bytes(b"")
    assert forward.run_once() == 1
    [line] = forward.log().splitlines()
    assert "node is damaged" in line
    (data_dir / "node").unlink()
    assert forward.run_once() == 0
    assert_delivered(clickhouse, data_dir)


def test_segments_that_come_later_but_are_old(
    forward: Forward, data_dir: Path, clickhouse: ClickHouse, tmp_path: Path
) -> None:
    """For example after a move to another disk, with a table that has forgotten its tokens."""
    clickhouse.query("ALTER TABLE logs MODIFY SETTING non_replicated_deduplication_window = 0")
    write_segments(data_dir, 20)
    assert forward.run_once() == 0
    new_dir = tmp_path / "new"
    new_dir.mkdir()
    forward.set(data_dir=new_dir)
    with forward.start():
        wait_for(lambda: status_where(new_dir, lambda s: s["pid"] > 0))
        for path in data_dir.glob("*.ndjson"):
            path.rename(new_dir / path.name)
        wait_for(lambda: status_where(new_dir, lambda s: s["delivered_segments"] == 20))
    assert_delivered(clickhouse, new_dir)


@pytest.mark.parametrize("change", ["deleted", "restored"])
def test_a_cursor_that_changes_meanwhile(
    forward: Forward, data_dir: Path, clickhouse: ClickHouse, change: str
) -> None:
    """Delivered segments stay delivered, for retention too."""
    clickhouse.query("ALTER TABLE logs MODIFY SETTING non_replicated_deduplication_window = 0")
    path = data_dir / "forward.cursor"
    with forward.start():
        wait_for(path.exists)
        old = path.read_bytes()
        write_segments(data_dir, 2)
        wait_for(lambda: path.read_bytes().count(b"done") == 2)
        path.unlink()
        if change == "restored":
            path.write_bytes(old)
        write_segments(data_dir, 1, first=2)
        wait_for(lambda: path.exists() and path.read_bytes().count(b"done") == 3)
    assert forward.run_once() == 0
    assert_delivered(clickhouse, data_dir)


@pytest.mark.parametrize("damage", ["lost", "torn", "garbled", "copied", "other table", "empty"])
def test_table_is_queried_after_a_damaged_cursor(
    forward: Forward, data_dir: Path, clickhouse: ClickHouse, damage: str
) -> None:
    """A lost, damaged or foreign cursor only leads to queries."""
    clickhouse.query("ALTER TABLE logs MODIFY SETTING non_replicated_deduplication_window = 0")
    write_segments(data_dir, 3)
    assert forward.run_once() == 0
    damage_cursor(data_dir / "forward.cursor", damage)
    write_segments(data_dir, 1, first=3)
    assert forward.run_once() == 0
    assert_delivered(clickhouse, data_dir)
    assert len((data_dir / "forward.cursor").read_bytes().split(b"done")) == 5


def test_doubt_outlives_a_kill(forward: Forward, data_dir: Path, clickhouse: ClickHouse) -> None:
    """Segments in doubt after a lost cursor are still in doubt after another start."""
    clickhouse.query("ALTER TABLE logs MODIFY SETTING non_replicated_deduplication_window = 0")
    write_segments(data_dir, 5)
    assert forward.run_once() == 0
    (data_dir / "forward.cursor").unlink()
    for _ in range(3):
        with forward.start():
            wait_for((data_dir / "forward.cursor").exists)
    assert forward.run_once() == 0
    assert_delivered(clickhouse, data_dir)


def test_a_second_forward_ends(forward: Forward, data_dir: Path, clickhouse: ClickHouse) -> None:
    """One process delivers from a directory; another one reports this, and ends with status 1."""
    second = Forward(data_dir.parent, clickhouse.url, data_dir, log_name="second.log")
    with forward.start():
        wait_for(lambda: "delivering from" in forward.log())
        assert second.run_once() == 1
        assert "another forward delivers from here" in second.log()
        write_segments(data_dir, 1)
        wait_for_rows(clickhouse, 50)
    assert second.run_once() == 0


def test_two_nodes_share_a_table(
    forward: Forward, data_dir: Path, clickhouse: ClickHouse, tmp_path: Path
) -> None:
    """Segments of the same name on two nodes are two segments."""
    other_dir = tmp_path / "other"
    other_dir.mkdir()
    write_segments(data_dir, 2)
    write_segments(other_dir, 2, lines=30)
    other = Forward(tmp_path, clickhouse.url, other_dir, node="node-2", log_name="other.log")
    with forward.start(), other.start():
        wait_for_rows(clickhouse, 160)
    assert_delivered(clickhouse, data_dir, other_dir)


def test_a_segment_is_compressed_in_the_midst_of_its_delivery(
    forward: Forward, data_dir: Path, clickhouse: ClickHouse
) -> None:
    """Delivery continues at its position, with either form of the segment."""
    write_segments(data_dir, 2)
    stored = dict(stored_lines("node-1", data_dir.glob("*.ndjson")))
    clickhouse.break_inserts("full", times=1000, after=2)
    with forward.start():
        wait_for(lambda: "NOT_ENOUGH_SPACE" in forward.log())
    clickhouse.break_inserts("full", times=0)
    assert 0 < clickhouse.count() < 50
    first, second = sorted(data_dir.glob("*.ndjson"))
    compress(first)
    compress(second, keep=True)
    assert forward.run_once() == 0
    assert NOTHING == compare(clickhouse, stored)


def compress(path: Path, keep: bool = False) -> None:
    """Compress a sealed segment as the service does."""
    draft = path.with_suffix(".draft")
    draft.write_bytes(zstd.compress(path.read_bytes()))
    draft.rename(path.with_name(path.name + ".zst"))
    if not keep:
        path.unlink()


def test_delivered_segments_are_removed_by_age(
    forward: Forward, data_dir: Path, clickhouse: ClickHouse
) -> None:
    """With a retention time, delivered segments are removed after it, and no others."""
    write_segments(data_dir, 3)
    old, young, waiting = sorted(data_dir.glob("*.ndjson"))
    compress(old, keep=True)
    for path in (old, old.with_suffix(".ndjson.zst"), waiting):
        os.utime(path, (0, 0))
    waiting = waiting.rename(waiting.with_suffix(".ndjson.open"))
    assert forward.run_once() == 0
    assert old.exists()
    forward.set(forward_keep_seconds=3600)
    with forward.start():
        wait_for(lambda: [young, waiting] == sorted(data_dir.glob("*.ndjson*")))
    assert clickhouse.count() == 100
    cursor = (data_dir / "forward.cursor").read_text()
    assert f"done {young.stem} " in cursor


def test_a_segment_that_goes_undelivered_is_named(
    forward: Forward, data_dir: Path, clickhouse: ClickHouse
) -> None:
    """A segment removed by others is an error in the log, and delays nothing."""
    write_segments(data_dir, 3)
    clickhouse.break_inserts("full", times=2)
    with forward.start():
        wait_for(lambda: "NOT_ENOUGH_SPACE" in forward.log())
        second = sorted(data_dir.glob("*.ndjson"))[1]
        second.unlink()
        wait_for_rows(clickhouse, 100)
        wait_for(lambda: f"{second.stem} was removed before it was delivered" in forward.log())
    assert_delivered(clickhouse, data_dir)


def test_lines_rejected_by_an_altered_table_are_kept_raw(
    forward: Forward, data_dir: Path, clickhouse: ClickHouse
) -> None:
    """Each line that the table rejects is a dead letter with the reason, and no other."""
    clickhouse.query("ALTER TABLE logs ADD CONSTRAINT polite CHECK message NOT LIKE '%damn%'")
    bad = {3, 4, 17, 50}
    write_segment(data_dir, [make_line(n, message="damn" * (n in bad)) for n in range(1, 51)])
    assert forward.run_once() == 0
    assert_delivered(clickhouse, data_dir)
    dead = clickhouse.rows("logs_dead_letter")
    assert bad == {int(row["line"]) for row in dead}
    assert all("polite" in row["error"] for row in dead)


def test_a_line_that_is_no_log_is_kept_raw(
    forward: Forward, data_dir: Path, clickhouse: ClickHouse
) -> None:
    """Every line of a segment arrives, byte for byte."""
    garbage = [b"", b"{}", b"[1]", b'{"project_id":"p"', b"\0\0", b"tab\there", b"\\N", b"x" * 5000]
    write_segment(data_dir, [make_line(0), *garbage, make_line(1)])
    assert forward.run_once() == 0
    assert_delivered(clickhouse, data_dir)
    assert len(clickhouse.rows("logs_dead_letter")) == len(garbage)


def test_bytes_after_the_last_line_break_are_a_line(
    forward: Forward, data_dir: Path, clickhouse: ClickHouse
) -> None:
    """Half a line at the end of a segment, which the service never leaves, is not lost."""
    path = write_segment(data_dir, [make_line(0)])
    path.write_bytes(path.read_bytes() + b'{"project_id":"half')
    assert forward.run_once() == 0
    assert ['{"project_id":"half'] == [row["raw"] for row in clickhouse.rows("logs_dead_letter")]
    assert clickhouse.count() == 2


def test_no_server_at_all(forward: Forward, data_dir: Path, clickhouse: ClickHouse) -> None:
    """Without a server `--once` ends with status 1, and no line has the password."""
    write_segments(data_dir, 1)
    forward.set(clickhouse_url="http://someone:a-password@127.0.0.1:1/astralog")
    assert forward.run_once() == 1
    assert "Connection refused" in forward.log()
    assert forward.log().count(" ERROR ") == 1
    assert "a-password" not in forward.log()
    assert "a-password" not in (data_dir / "forward.cursor").read_text()


def test_over_tls(forward: Forward, data_dir: Path, tmp_path: Path) -> None:
    """It delivers over TLS with a trusted certificate, and not with another."""
    if not can_make_certificate():
        pytest.skip("NOT TESTED: TLS to ClickHouse; openssl is not installed")
    cert, key = make_certificate(tmp_path)
    write_segments(data_dir, 1)
    with ClickHouse(tmp_path / "tls", cert, key) as clickhouse:
        forward.set(clickhouse_url=clickhouse.url)
        with forward.start():
            wait_for(lambda: "CERTIFICATE_VERIFY_FAILED" in forward.log())
        assert clickhouse.count() == 0
        forward.set(clickhouse_url=f"{clickhouse.url}?ca_cert={cert}")
        assert forward.run_once() == 0
        assert_delivered(clickhouse, data_dir)


def test_status_has_the_lag(forward: Forward, data_dir: Path, clickhouse: ClickHouse) -> None:
    """Backlog, lag and delivered segments are there for the service's metrics."""
    write_segments(data_dir, 2)
    clickhouse.break_inserts("full", times=3)
    with forward.start():
        waiting = wait_for(lambda: status_where(data_dir, lambda s: s["failing_since"] > 0))
        wait_for_rows(clickhouse, 100)
        idle = wait_for(lambda: status_where(data_dir, lambda s: s["delivered_segments"] == 2))
    size = sum(path.stat().st_size for path in data_dir.glob("*.ndjson"))
    assert (waiting["waiting_segments"], waiting["waiting_bytes"]) == (2, size)
    assert datetime.fromtimestamp(waiting["oldest_at"], UTC) == datetime(2026, 11, 23, tzinfo=UTC)
    assert (idle["waiting_segments"], idle["waiting_bytes"], idle["oldest_at"]) == (0, 0, 0)
    assert (idle["delivered_logs"], idle["dead_letter_logs"], idle["failing_since"]) == (100, 0, 0)


def status_where(
    data_dir: Path, condition: Callable[[dict[str, float]], bool]
) -> dict[str, float] | None:
    """Return the status once it meets a condition."""
    path = data_dir / "forward.status"
    if not path.exists():
        return None
    words = dict(line.split(" ") for line in path.read_text().splitlines())
    status = {name: float(value) for name, value in words.items()}
    return status if condition(status) else None


def test_a_terminal_has_a_line_that_renews_itself(
    forward: Forward, data_dir: Path, clickhouse: ClickHouse
) -> None:
    """One line shows the progress; a line of the log does not break it."""
    write_segments(data_dir, 2)
    terminal, other_end = os.openpty()
    forward.start("--once", stderr=other_end)
    os.close(other_end)
    try:
        shown = read_terminal(terminal)
    finally:
        os.close(terminal)
    assert forward.wait() == 0
    *_, last = shown.rstrip().split("\r\x1b[K")
    assert re.fullmatch(
        r"100 logs delivered, [0-9,]+ logs/s, 0 segments wait \(0\.0 MB\), lag 0 s", last
    )


def read_terminal(fd: int) -> str:
    """Return the output until the other end is closed."""
    shown = b""
    with contextlib.suppress(OSError):
        while data := os.read(fd, 4096):
            shown += data
    return shown.decode()


def test_missing_settings_are_named(
    forward: Forward, data_dir: Path, clickhouse: ClickHouse
) -> None:
    """A missing setting or directory ends it with one line."""
    forward.set(data_dir=data_dir / "missing")
    assert forward.run_once() == 1
    assert "missing: No such file or directory" in forward.log()
    forward.set(clickhouse_url="")
    assert forward.run_once() == 1
    assert "ASTRALOG_CLICKHOUSE_URL: Needed" in forward.log()


@pytest.mark.parametrize("timestamp", ["2024-05-31T15:30:45Z", "0001-01-01T00:00:00Z"])
def test_memory_is_bounded_for_any_segment(
    forward: Forward, data_dir: Path, clickhouse: ClickHouse, timestamp: str
) -> None:
    """With chunks of the usual size, a large segment takes at most 150 MiB."""
    line = make_line(0, timestamp=timestamp, message="x" * 300)
    write_segment(data_dir, [line] * 200_000)
    forward.set(forward_chunk_bytes=16 * 1024 * 1024, clickhouse_timeout_seconds=60)
    clickhouse.break_inserts(DISCARD, times=100)
    peaks = [0.0]
    with forward.start("--once"):
        while forward.process.poll() is None:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                status = Path(f"/proc/{forward.process.pid}/status").read_text()
                peaks += [int(kib) / 1024 for kib in re.findall(r"VmHWM:\s+(\d+)", status)]
            time.sleep(0.02)
    assert forward.process.returncode == 0
    assert 30 < max(peaks) < 150
