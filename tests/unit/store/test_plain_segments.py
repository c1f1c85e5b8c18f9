from collections.abc import Iterator
from pathlib import Path

import pytest

from astralog.store.compression import PlainSegments
from astralog.store.directory import (
    SCAN_SECONDS,
    UNWATCHED_SCAN_SECONDS,
    ChangesLost,
    DirectoryWatch,
)
from astralog.store.names import SegmentName
from tests.support.fake_system import Clock

NAMES = [SegmentName(f"20261123T06250{number}.000000Z-1") for number in range(5)]


def seal(directory: Path, name: str, suffix: str = ".ndjson") -> None:
    (directory / (name + suffix)).touch()


def taken(plain: PlainSegments) -> list[str]:
    """Remove and return all segments, oldest first."""
    names, plain.names = plain.names, []
    return list(names)


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[PlainSegments]:
    made = PlainSegments(tmp_path)
    yield made
    made.close()


def test_existing_segments_are_found(tmp_path: Path, plain: PlainSegments) -> None:
    """Only sealed, plain segments of the service."""
    for name in (NAMES[2], NAMES[0]):
        seal(tmp_path, name)
    seal(tmp_path, NAMES[1], ".ndjson.zst")
    seal(tmp_path, NAMES[3], ".ndjson.open")
    seal(tmp_path, "export")
    plain.poll()
    assert [NAMES[0], NAMES[2]] == taken(plain)


def test_later_segments_are_found_by_the_watch(tmp_path: Path, plain: PlainSegments) -> None:
    """A segment is returned once, however often it changed."""
    plain.poll()
    seal(tmp_path, NAMES[1], ".ndjson.open")
    (tmp_path / f"{NAMES[1]}.ndjson.open").rename(tmp_path / f"{NAMES[1]}.ndjson")
    plain.poll()
    seal(tmp_path, NAMES[0])
    plain.poll()
    assert [NAMES[0], NAMES[1]] == taken(plain)
    plain.poll()
    assert [] == taken(plain)


def test_without_a_watch_the_directory_is_listed_each_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """For example if the system has no watch left; the log has the interval of the scans."""
    clock = Clock(monkeypatch)

    def fail(self: DirectoryWatch, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DirectoryWatch, "__init__", fail)
    plain = PlainSegments(tmp_path)
    assert "every 60 seconds" in caplog.text
    plain.poll()
    seal(tmp_path, NAMES[0])
    plain.poll()
    assert [] == taken(plain)
    clock.now += UNWATCHED_SCAN_SECONDS
    plain.poll()
    assert [NAMES[0]] == taken(plain)
    plain.close()


def test_with_a_watch_the_directory_is_listed_each_hour(
    tmp_path: Path, plain: PlainSegments, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a safeguard, and at once if changes were lost."""
    clock = Clock(monkeypatch)
    plain.poll()
    seal(tmp_path, NAMES[0])
    monkeypatch.setattr(DirectoryWatch, "changes", lambda self: set())
    plain.poll()
    assert [] == taken(plain)
    clock.now += SCAN_SECONDS
    plain.poll()
    assert [NAMES[0]] == taken(plain)

    def lose(self: DirectoryWatch) -> set[str]:
        raise ChangesLost

    monkeypatch.setattr(DirectoryWatch, "changes", lose)
    plain.poll()
    assert [NAMES[0]] == taken(plain)
