"""The loop delivers everything that is sealed, once, through any failures and restarts."""

import dataclasses
import errno
import io
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

from astralog.forward import forwarder as forwarders
from astralog.forward.forwarder import DirectoryReplaced, Forwarder
from astralog.settings import Settings
from astralog.store import deliveries, sealed
from tests.support.clickhouse import make_line, write_segment
from tests.unit.forward.fakes import FakeServer, stored


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Return settings with small chunks."""
    (tmp_path / "data").mkdir()
    return Settings(data_dir=tmp_path / "data", node="n", forward_chunk_bytes=400)


@pytest.fixture
def server() -> FakeServer:
    """Return a server that works."""
    return FakeServer()


def start(settings: Settings, server: FakeServer) -> Forwarder:
    """Start a forwarder that writes to no terminal."""
    return Forwarder(settings, server, io.StringIO())


def write(directory: Path, number: int, lines: int = 10) -> Path:
    """Write a segment of some lines."""
    return write_segment(directory, map(make_line, range(lines)), number)


def test_all_that_is_sealed_is_delivered(settings: Settings, server: FakeServer) -> None:
    """One run delivers everything in order, and says so in its status."""
    for number in range(3):
        write(settings.data_dir, number)
    forwarder = start(settings, server)
    assert forwarder.run_once()
    forwarder.close()
    assert server.lines() == stored(settings.data_dir)
    assert list(server.logs) == sorted(server.logs)
    status = deliveries.read_status(settings.data_dir)
    assert status
    assert (status.delivered_segments, status.delivered_logs, status.waiting_segments) == (3, 30, 0)


def test_the_next_start_goes_on(settings: Settings, server: FakeServer) -> None:
    """What is delivered is not sent again, and what was begun is asked for."""
    write(settings.data_dir, 1)
    forwarder = start(settings, server)
    forwarder._look()
    assert forwarder.deliver_chunk()
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


def test_an_idle_forwarder_waits_and_looks(settings: Settings, server: FakeServer) -> None:
    """Without work it waits for its next look, holds no connection, and finds what is new."""
    forwarder = start(settings, server)
    assert 0 < forwarder.tick() <= forwarders.LOOK_SECONDS
    assert server.calls == []
    write(settings.data_dir, 1)
    forwarder._look_at = forwarder._attempt_at = 0.0
    while len(server.logs) < 10:
        forwarder.tick()
    assert server.is_connected
    assert forwarder.tick() > 0
    assert not server.is_connected
    forwarder.close()


def test_once_gives_up(
    settings: Settings, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is to end does so without a server, too."""
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    monkeypatch.setattr(time, "monotonic", lambda: 1e6 * len(pauses))
    write(settings.data_dir, 1)
    server.faults = ["before"] * 100
    forwarder = start(settings, server)
    assert not forwarder.run_once()
    forwarder.close()
    assert len(pauses) == forwarders.ONCE_ATTEMPTS
    assert len(server.calls) == forwarders.ONCE_ATTEMPTS
    status = deliveries.read_status(settings.data_dir)
    assert status
    assert status.failing_since > 0


def test_a_missing_directory_is_waited_for(settings: Settings, server: FakeServer) -> None:
    """A disk that is away for a while is a failure like any other."""
    forwarder = start(settings, server)
    away = settings.data_dir.rename(settings.data_dir.with_name("away"))
    assert forwarder.tick() > 0
    away.rename(settings.data_dir)
    write(settings.data_dir, 1)
    forwarder._look_at = forwarder._attempt_at = 0.0
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
    """The others are delivered, one line names it, and it is delivered once it can be read."""
    bad, good = write(settings.data_dir, 1), write(settings.data_dir, 2)
    content = bad.read_bytes()
    if damage == "unreadable":

        def fail(directory: Path, name: str, offset: int) -> Any:
            if name == bad.stem:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return sealed.open_sealed(directory, name, offset)

        monkeypatch.setattr("astralog.forward.chunks.open_sealed", fail)
    else:
        bad.unlink()
        bad.with_name(bad.name + ".zst").write_bytes(b"no zstd")
    forwarder = start(settings, server)
    for _ in range(20):
        forwarder._look_at = forwarder._attempt_at = 0.0
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


def test_another_directory_ends_it(settings: Settings, server: FakeServer) -> None:
    """Another directory under the same name has another cursor, and may have another forward."""
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
    """What is delivered but not noted is asked for, and not sent again."""
    write(settings.data_dir, 1)
    forwarder = start(settings, server)
    forwarder._look()
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
    """As old as the setting says, and not before they are delivered."""
    settings = dataclasses.replace(settings, forward_keep_seconds=3600)
    path = write(settings.data_dir, 1)
    os.utime(path, (0, 0))
    forwarder = start(settings, server)
    forwarder._look()
    assert path.exists()
    while forwarder.deliver_chunk():
        pass
    forwarder._remove_at = 0.0
    forwarder._look()
    forwarder.close()
    assert not path.exists()


@pytest.mark.parametrize("seed", range(60))
def test_any_failures_and_restarts(
    settings: Settings, server: FakeServer, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Failures, kills, lost cursors and late segments neither lose nor double a line."""
    monkeypatch.setattr(os, "fdatasync", lambda fd: None)  # no power is cut here
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    source = random.Random(seed)
    server.remembers_tokens = source.random() < 0.5
    numbers = list(range(8))
    source.shuffle(numbers)
    for _ in range(20):
        if numbers and source.random() < 0.6:
            write(settings.data_dir, numbers.pop(), source.randrange(1, 20))
        if source.random() < 0.2:
            (settings.data_dir / deliveries.CURSOR_NAME).unlink(missing_ok=True)
        chunk_bytes = source.choice((200, 400, 10_000))
        forwarder = start(dataclasses.replace(settings, forward_chunk_bytes=chunk_bytes), server)
        server.faults = source.choices(["", "before", "after"], [4, 1, 1], k=6)
        for _ in range(source.randrange(8)):
            forwarder.tick()
            forwarder._look_at = forwarder._attempt_at = 0.0
        forwarder._cursor.close()  # and no more: it is killed
        forwarder._drop_reader()
    server.faults = []
    forwarder = start(settings, server)
    assert forwarder.run_once()
    forwarder.close()
    assert server.lines() == stored(settings.data_dir)
