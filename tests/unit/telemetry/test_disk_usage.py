import os
import threading
from pathlib import Path
from typing import Any

import pytest

from astralog.telemetry import disk_usage
from astralog.telemetry.disk_usage import DiskUsage, DiskUsageReader
from tests.conftest import Disk


def test_segments_are_counted_by_their_names(tmp_path: Path, disk: Disk) -> None:
    """Open and sealed segments are told apart, and nothing else is counted."""
    disk.free = 12345
    for name, size in {"1.ndjson": 10, "2.ndjson": 20, "3.ndjson.open": 5, "other": 40}.items():
        (tmp_path / name).write_bytes(b"x" * size)
    assert DiskUsage(1, 5, 2, 30, 12345, disk.total) == DiskUsageReader(tmp_path).take()


def test_a_stalled_disk_does_not_hold_up_a_scrape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is asked once, and its answer is taken when it comes."""
    monkeypatch.setattr(disk_usage, "TIMEOUT_SECONDS", 0.05)
    answering = threading.Event()
    asked: list[Path] = []
    scandir = os.scandir

    def stall(path: Path) -> Any:
        asked.append(path)
        assert answering.wait(10)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", stall)
    reader = DiskUsageReader(tmp_path)
    try:
        assert [None] * 3 == [reader.take() for _ in range(3)]
        assert 1 == len(asked)
    finally:
        answering.set()
    monkeypatch.setattr(disk_usage, "TIMEOUT_SECONDS", 10)
    assert isinstance(reader.take(), DiskUsage)


def test_a_failing_disk_has_no_usage(tmp_path: Path) -> None:
    """A directory that cannot be read is no error of the scrape."""
    assert DiskUsageReader(tmp_path / "missing").take() is None


def test_sealed_segments_are_looked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second look at 10,000 segments asks only for the sizes of new ones."""
    for number in range(10):
        (tmp_path / f"{number}.ndjson").write_bytes(b"x")
    reader = DiskUsageReader(tmp_path)
    reader.count()
    asked: list[str] = []

    def size(entry: os.DirEntry[str]) -> int:
        asked.append(entry.name)
        return 7

    monkeypatch.setattr(disk_usage, "_size", size)
    (tmp_path / "10.ndjson").write_bytes(b"x")
    (tmp_path / "0.ndjson").unlink()
    counted = reader.count()
    assert isinstance(counted, DiskUsage)
    assert (["10.ndjson"], 10, 16) == (asked, counted.sealed_segments, counted.sealed_bytes)
