"""The loop delivers every sealed segment once, through any failures and restarts."""

import dataclasses
import errno
import io
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings as properties

from astralog.forward import chunks
from astralog.forward import cursor as nodes
from astralog.forward import delivery as verifiers
from astralog.forward import forwarder as forwarders
from astralog.forward.chunks import ChunkReader
from astralog.forward.forwarder import DirectoryReplaced, Forwarder
from astralog.settings import Settings
from astralog.store import forward_state
from astralog.store.names import SegmentName
from astralog.store.reader import SegmentReader
from tests.support.clickhouse import make_line, write_segment
from tests.unit.forward.fakes import FakeServer, stored


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Return settings with small chunks."""
    (tmp_path / "data").mkdir()
    return Settings(data_dir=tmp_path / "data", node="n", forward_chunk_bytes=400)


@pytest.fixture
def server() -> FakeServer:
    """Return a server without faults."""
    return FakeServer()


@pytest.fixture(autouse=True)
def gathering(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let segments share a query, however long a slow disk takes to note them."""
    monkeypatch.setattr(verifiers, "GATHER_SECONDS", 3600.0)


def start(settings: Settings, server: FakeServer) -> Forwarder:
    """Start a forwarder without a terminal."""
    return Forwarder(settings, server, io.StringIO())


def write(directory: Path, number: int, lines: int = 10) -> Path:
    """Write a segment of some lines."""
    return write_segment(directory, map(make_line, range(lines)), number)


def test_all_sealed_segments_are_delivered(settings: Settings, server: FakeServer) -> None:
    """One run delivers everything in order, and reports it in its status."""
    for number in range(3):
        write(settings.data_dir, number)
    forwarder = start(settings, server)
    assert forwarder.run_once()
    forwarder.close()
    assert server.lines() == stored(settings.data_dir)
    assert list(server.logs) == sorted(server.logs)
    status = forward_state.read_status(settings.data_dir)
    assert status
    assert (status.delivered_segments, status.delivered_logs, status.waiting_segments) == (3, 30, 0)


def test_next_start_continues(settings: Settings, server: FakeServer) -> None:
    """Delivered segments are not sent again, and unfinished ones are queried."""
    write(settings.data_dir, 1)
    forwarder = start(settings, server)
    while not server.logs:
        forwarder.tick()
    forwarder.close()
    before = server.lines()
    assert 0 < len(before) < 10
    server.remembers_tokens = False
    server.calls.clear()
    forwarder = start(settings, server)
    assert forwarder.run_once()
    forwarder.close()
    assert server.calls[0] == "held"
    assert server.lines() == stored(settings.data_dir)


def test_idle_forwarder_polls(settings: Settings, server: FakeServer) -> None:
    """Without work it waits for its next poll, keeps no connection, and finds new segments."""
    forwarder = start(settings, server)
    assert 0 < forwarder.tick() <= forwarders.SCAN_SECONDS
    assert server.calls == []
    write(settings.data_dir, 1)
    forwarder._scan_at = forwarder._attempt_at = 0.0
    while len(server.logs) < 10:
        forwarder.tick()
    assert server.is_connected
    while forwarder.tick() == 0:
        pass
    assert not server.is_connected
    forwarder.close()


def test_once_ends_without_a_server(
    settings: Settings, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run with `--once` also ends without a server."""
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    monkeypatch.setattr(time, "monotonic", lambda: 1e6 * len(pauses))
    write(settings.data_dir, 1)
    server.faults = ["before"] * 100
    forwarder = start(settings, server)
    assert not forwarder.run_once()
    forwarder.close()
    assert len(pauses) == forwarders.ONCE_ATTEMPTS
    assert server.calls == ["count"] * forwarders.ONCE_ATTEMPTS
    status = forward_state.read_status(settings.data_dir)
    assert status
    assert status.failing_since > 0


def test_missing_directory_is_retried(settings: Settings, server: FakeServer) -> None:
    """A disk that is temporarily missing is a failure like any other."""
    forwarder = start(settings, server)
    away = settings.data_dir.rename(settings.data_dir.with_name("away"))
    assert forwarder.tick() > 0
    away.rename(settings.data_dir)
    write(settings.data_dir, 1)
    forwarder._scan_at = forwarder._attempt_at = 0.0
    while len(server.logs) < 10:
        forwarder.tick()
    forwarder.close()


@pytest.mark.parametrize("damage", ["unreadable", "garbled"])
def test_a_segment_that_cannot_be_read(
    settings: Settings,
    server: FakeServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    damage: str,
) -> None:
    """The others are delivered; one line names it, and it is delivered once it is readable."""
    bad, good = write(settings.data_dir, 1), write(settings.data_dir, 2)
    content = bad.read_bytes()
    if damage == "unreadable":

        def fail(directory: Path, name: str, forms: Any) -> Any:
            if name == bad.stem:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return SegmentReader(directory, SegmentName(name), forms)

        monkeypatch.setattr(chunks, "SegmentReader", fail)
    else:
        bad.unlink()
        bad.with_name(bad.name + ".zst").write_bytes(b"no zstd")
    forwarder = start(settings, server)
    for _ in range(20):
        forwarder._scan_at = forwarder._attempt_at = 0.0
        forwarder.tick()
    assert {segment for segment, _ in server.logs} == {good.stem}
    assert sum(f"cannot read {bad.stem}" in message for message in caplog.messages) == 1
    assert forwarder._backlog.waiting_segments == 1
    forwarder._backlog._unreadable.clear()
    assert not forwarder.run_once()
    forwarder.close()
    monkeypatch.undo()
    bad.with_name(bad.name + ".zst").unlink(missing_ok=True)
    bad.write_bytes(content)
    forwarder = start(settings, server)
    assert forwarder.run_once()
    forwarder.close()
    assert server.lines() == stored(settings.data_dir)


def test_replaced_directory_ends_forward(settings: Settings, server: FakeServer) -> None:
    """A new directory at the same path has another cursor, and may have another forward."""
    forwarder = start(settings, server)
    settings.data_dir.rename(settings.data_dir.with_name("away"))
    settings.data_dir.mkdir()
    with pytest.raises(DirectoryReplaced):
        forwarder.run()
    assert [] == [path for path in settings.data_dir.iterdir() if "status" not in path.name]
    forwarder.close()


def test_a_cursor_that_cannot_be_written(
    settings: Settings, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Delivered segments without a record are queried, and not sent again."""
    write(settings.data_dir, 1)
    forwarder = start(settings, server)
    forwarder._scan()
    server.remembers_tokens = False
    write_bytes = os.write
    failed: list[bytes] = []

    def fail_once(fd: int, data: bytes) -> int:
        if server.logs and not failed:
            failed.append(data)
            raise OSError(28, "No space left on device")
        return write_bytes(fd, data)

    monkeypatch.setattr(os, "write", fail_once)
    while len(server.logs) < 10:
        forwarder.tick()
        forwarder._attempt_at = 0.0
    forwarder.close()
    assert failed[0].startswith(b"at ")
    assert server.lines() == stored(settings.data_dir)


def test_delivered_segments_are_removed(settings: Settings, server: FakeServer) -> None:
    """At the age of the setting, and not before they are delivered."""
    settings = dataclasses.replace(settings, forward_keep_seconds=3600)
    path = write(settings.data_dir, 1)
    os.utime(path, (0, 0))
    forwarder = start(settings, server)
    forwarder._scan()
    assert path.exists()
    while forwarder.tick() == 0:
        pass
    forwarder._remove_at = 0.0
    forwarder._scan()
    forwarder.close()
    assert not path.exists()


class FailOnce:
    """Make one call of a function fail."""

    def __init__(self, function: Callable[..., Any], skip: float) -> None:
        self._function = function
        self._skip = skip
        self.calls = 0

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.calls += 1
        if self.calls == self._skip + 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._function(*args, **options)


def run_until_delivered(forwarder: Forwarder, *, is_read_again: bool = False) -> None:
    """Run a forwarder without pauses until no segment waits; `is_read_again` if one failed."""
    for _ in range(200):
        forwarder._scan_at = forwarder._attempt_at = 0.0
        if is_read_again:
            forwarder._backlog._unreadable.clear()
        forwarder.tick()
        if not forwarder._backlog.waiting_segments:
            break
    assert not forwarder._backlog.waiting_segments
    forwarder.close()


@pytest.mark.parametrize("function", ["write", "fdatasync", "fsync", "open", "rename"])
def test_any_call_may_fail(
    settings: Settings, server: FakeServer, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    """Each call on forward's own files in turn: no line is lost or sent twice."""
    server.remembers_tokens = False
    calls, skip = 1.0, 0
    while skip < calls:
        for path in settings.data_dir.iterdir():
            path.unlink()
        server.logs.clear()
        for number in range(3):
            write(settings.data_dir, number)
        with monkeypatch.context() as patch:
            fail = FailOnce(getattr(os, function), skip)
            patch.setattr(os, function, fail)
            run_until_delivered(start(settings, server), is_read_again=function == "open")
        assert server.lines() == stored(settings.data_dir), f"call {skip} failed"
        done = [fact for fact in forward_state.read_facts(settings.data_dir) if "done" in str(fact)]
        assert len(done) == 3
        calls, skip = fail.calls, skip + 1
    assert skip > 3


def test_cursor_records_a_segment_before_its_chunk_is_read(
    settings: Settings, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the next process can distinguish unfinished segments from unsent ones."""
    paths = [write(settings.data_dir, number) for number in range(3)]
    opened: list[str] = []

    def open_reader(directory: Path, name: str, offset: int, size: int) -> ChunkReader:
        assert any(
            str(fact).startswith(f"at {name} ") for fact in forward_state.read_facts(directory)
        )
        opened.append(name)
        return ChunkReader(directory, name, offset, size)

    monkeypatch.setattr(forwarders, "ChunkReader", open_reader)
    run_until_delivered(start(settings, server))
    assert opened == [path.stem for path in paths]


@pytest.fixture
def no_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the wait for replicas."""
    monkeypatch.setattr(verifiers, "REPLICA_SECONDS", 0.0)


def status_of(settings: Settings) -> forward_state.ForwardStatus:
    """Return forward's last published status."""
    status = forward_state.read_status(settings.data_dir)
    assert status
    return status


@pytest.mark.usefixtures("no_replicas")
def test_lost_insert_is_detected(
    settings: Settings, server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The response has all signs of ClickHouse, but the table has no row."""
    for number in range(3):
        write(settings.data_dir, number)
    server.faults = ["", "", "lie"]  # a question, and the second chunk of many
    run_until_delivered(start(settings, server))
    assert server.lines() == stored(settings.data_dir)
    assert server.calls.count("insert again") == 1
    assert sum("resent the others" in message for message in caplog.messages) == 1
    status = status_of(settings)
    assert (status.incomplete_segments, status.doubled_segments) == (0, 0)


@pytest.mark.usefixtures("no_replicas")
@pytest.mark.parametrize("is_restarted", [True, False])
def test_deleted_lines_are_sent_again_once(
    settings: Settings, server: FakeServer, is_restarted: bool
) -> None:
    """A table with a TTL causes no loop, and delays no other segment."""
    old, young = write(settings.data_dir, 1), write(settings.data_dir, 2)
    server.hidden = {(old.stem, line) for line in range(1, 11)}
    forwarder = start(settings, server)
    for number in range(200):
        if is_restarted and number % 10 == 9:
            forwarder.close()
            forwarder = start(settings, server)
        forwarder._scan_at = forwarder._attempt_at = 0.0
        forwarder.tick()
        if not forwarder._backlog.waiting_segments:
            break
    forwarder.close()
    assert server.lines()[young.stem, 1] == 1
    assert server.calls.count("insert again") == stored_chunks(server, old.stem)
    assert forwarder._cursor.delivered == {old.stem, young.stem}
    if not is_restarted:
        assert status_of(settings).incomplete_segments == 1


def stored_chunks(server: FakeServer, name: str) -> int:
    """Return the number of sent chunks of a segment."""
    return len({token for token in server._tokens if token[:2] == ("insert", name)})


def test_segment_that_waits_for_replicas_delays_no_other(
    settings: Settings, server: FakeServer
) -> None:
    """It is queried again later, and not sent again meanwhile."""
    lagging, other = write(settings.data_dir, 1), write(settings.data_dir, 2)
    server.hidden = {(lagging.stem, 3)}
    forwarder = start(settings, server)
    while forwarder._backlog.waiting_segments != 1 or other.stem in forwarder._backlog:
        forwarder.tick()
    assert other.stem in forwarder._cursor.delivered
    assert forwarder._backlog.oldest_at > 0
    server.hidden.clear()
    for sent in forwarder._verifier._sent.values():
        sent.ask_at = 0.0
    run_until_delivered(forwarder)
    assert "insert again" not in server.calls
    assert server.lines() == stored(settings.data_dir)


def test_doubled_lines_are_counted(settings: Settings, server: FakeServer) -> None:
    """They cause no loop either."""
    path = write(settings.data_dir, 1)
    server.logs[path.stem, 1] = 2
    run_until_delivered(start(settings, server))
    assert status_of(settings).doubled_segments == 1
    assert server.lines() == stored(settings.data_dir) + Counter([(path.stem, 1)])


@pytest.mark.usefixtures("no_replicas")
def test_removed_segment_cannot_be_sent_again(
    settings: Settings, server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Its missing lines are counted."""
    path = write(settings.data_dir, 1)
    forwarder = start(settings, server)
    server.faults = ["", "lie"]
    while not forwarder._verifier:
        forwarder.tick()
    path.unlink()
    run_until_delivered(forwarder)
    assert any("was removed before it was delivered" in message for message in caplog.messages)
    assert status_of(settings).incomplete_segments == 1


@pytest.mark.usefixtures("no_replicas")
def test_segment_that_cannot_be_read_is_sent_again_later(
    settings: Settings, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk error does not drop it."""
    path = write(settings.data_dir, 1)
    forwarder = start(settings, server)
    server.faults = ["", "lie"]
    while not forwarder._verifier:
        forwarder.tick()

    def fail(*args: Any) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(chunks, "SegmentReader", fail)
        for _ in range(5):
            forwarder.tick()
    assert path.stem in forwarder._backlog
    assert not forwarder._verifier
    forwarder._backlog._unreadable.clear()
    run_until_delivered(forwarder)
    assert server.lines() == stored(settings.data_dir)


def test_segment_that_disappears_and_reappears(settings: Settings, server: FakeServer) -> None:
    """Its lines keep their numbers, and stored ones are not sent again."""
    server.remembers_tokens = False
    path = write_new(settings)
    forwarder = start(settings, server)
    time.sleep(0.01)
    path = path.rename(write_new(settings))  # of now, which is new
    while not server.logs:
        forwarder.tick()
    kept = path.rename(path.with_suffix(".kept"))
    forwarder._scan_at = 0.0
    forwarder.tick()
    kept.rename(path)
    run_until_delivered(forwarder)
    assert server.lines() == stored(settings.data_dir)


def write_new(settings: Settings) -> Path:
    """Write a segment that was started now."""
    path = settings.data_dir / f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-1.ndjson"
    path.write_bytes(b"".join(make_line(number) + b"\n" for number in range(10)))
    return path


def test_new_segment_costs_one_query(settings: Settings, server: FakeServer) -> None:
    """It is verified after it was sent; before, it cannot have been delivered."""
    forwarder = start(settings, server)
    time.sleep(0.001)
    write_new(settings)
    run_until_delivered(forwarder)
    assert server.calls[:2] == ["insert", "insert"]
    assert server.calls[-1] == "count"
    assert server.calls.count("count") == 1


def test_earlier_segments_are_queried_together(settings: Settings, server: FakeServer) -> None:
    """The stored lines of a moved or restored directory are not sent again."""
    server.remembers_tokens = False
    for number in range(20):
        write(settings.data_dir, number)
    run_until_delivered(start(settings, server))
    (settings.data_dir / forward_state.CURSOR_NAME).unlink()
    server.calls.clear()
    run_until_delivered(start(settings, server))
    assert server.calls == ["count", "count"]
    assert server.lines() == stored(settings.data_dir)


@pytest.mark.usefixtures("no_replicas")
@pytest.mark.parametrize("fault", ["fewer", "miscount"])
def test_answers_with_too_few_rows_cause_no_loop(
    settings: Settings, server: FakeServer, fault: str
) -> None:
    """After some of them, the content of the table decides."""
    write(settings.data_dir, 1, lines=2)
    server.hidden = {(path.stem, 1) for path in settings.data_dir.iterdir()}
    server.faults = ["", *[fault, ""] * 20]
    run_until_delivered(start(settings, server))
    assert server.calls.count("insert") == forwarders.MISCOUNTS
    assert status_of(settings).incomplete_segments == 1


def test_a_stop_in_a_finalizer_is_not_lost(settings: Settings, server: FakeServer) -> None:
    """Python drops an exception that a finalizer of a file or response raises."""
    stop = forwarders.Stop()

    class Response(io.IOBase):
        def close(self) -> None:
            if not self.closed:
                super().close()
                stop(signal.SIGTERM, None)

    forwarder = Forwarder(settings, server, io.StringIO(), stop)
    forwarder.tick()
    Response()
    with pytest.raises(SystemExit) as raised:
        forwarder.tick()
    assert raised.value.code == 0
    forwarder.close()


def test_node_is_fixed_before_the_first_insert(
    settings: Settings, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not before there is a segment to deliver."""
    forwarder = start(settings, server)
    forwarder.tick()
    assert forward_state.read_node(settings.data_dir) is None
    write(settings.data_dir, 1)
    server.faults = ["before"]
    run_until_delivered(forwarder)
    assert forward_state.read_node(settings.data_dir) == "n"
    with monkeypatch.context() as patch:
        patch.setattr(forwarders, "save_node", FailOnce(nodes.save_node, 0))
        (settings.data_dir / forward_state.NODE_NAME).unlink()
        write(settings.data_dir, 2)
        run_until_delivered(start(settings, server))
    assert forward_state.read_node(settings.data_dir) == "n"


@pytest.mark.parametrize("seed", range(min(60, properties().max_examples * 3 // 10)))
def test_any_failures_and_restarts(
    settings: Settings, server: FakeServer, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Failures, kills, lost cursors and late segments neither lose nor double a line."""
    monkeypatch.setattr(os, "fdatasync", lambda fd: None)  # no power is cut here
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    source = random.Random(seed)
    monkeypatch.setattr(verifiers, "REPLICA_SECONDS", 0.0)
    server.remembers_tokens = source.random() < 0.5
    numbers = list(range(8))
    source.shuffle(numbers)
    for _ in range(20):
        if numbers and source.random() < 0.6:
            write(settings.data_dir, numbers.pop(), source.randrange(1, 20))
        if source.random() < 0.2:
            (settings.data_dir / forward_state.CURSOR_NAME).unlink(missing_ok=True)
        chunk_bytes = source.choice((200, 400, 10_000))
        forwarder = start(dataclasses.replace(settings, forward_chunk_bytes=chunk_bytes), server)
        faults = ["", "before", "after", "lie", "fewer", "miscount"]
        server.faults = source.choices(faults, [8, 2, 2, 1, 1, 1], k=6)
        for _ in range(source.randrange(8)):
            forwarder.tick()
            forwarder._scan_at = forwarder._attempt_at = 0.0
        forwarder._cursor.close()  # and no more: it is killed
        forwarder._drop_reader()
    server.faults = []
    forwarder = start(settings, server)
    assert forwarder.run_once()
    forwarder.close()
    assert server.lines() == stored(settings.data_dir)
