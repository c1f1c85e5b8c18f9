"""The service's view of forward: delivered segments, and the lag."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from astralog.store import forward_state
from astralog.store.forward_state import DeliveredSegments, ForwardStatus

NAMES = [f"20261123T06250{number}.000000Z-1" for number in range(3)]


def write_cursor(directory: Path, *facts: str) -> Path:
    """Write a cursor with these facts after its header."""
    path = directory / forward_state.CURSOR_NAME
    head = forward_state.encode_fact("cursor 1 5/6 node http://host/db/logs")
    path.write_bytes(head + b"".join(map(forward_state.encode_fact, facts)))
    return path


def delivered(directory: Path, names: Iterable[str] = NAMES) -> set[str]:
    """Return the delivered ones of these segments, as a first reader sees them."""
    segments = DeliveredSegments(directory)
    return {name for name in names if name in segments}


def test_only_finished_segments_are_delivered(tmp_path: Path) -> None:
    """A segment that is started or unknown is not delivered."""
    write_cursor(tmp_path, f"done {NAMES[0]}", f"at {NAMES[1]} 10 1")
    assert {NAMES[0]} == delivered(tmp_path)


def test_nothing_is_delivered_without_a_cursor(tmp_path: Path) -> None:
    """If forward never ran, retention must not assume that it did."""
    assert set() == delivered(tmp_path)
    write_cursor(tmp_path)
    assert set() == delivered(tmp_path)


@pytest.mark.parametrize("keep", [-1, -5, 10])
def test_a_damaged_line_delivers_nothing(tmp_path: Path, keep: int) -> None:
    """A truncated or changed line is not a fact."""
    path = write_cursor(tmp_path, f"done {NAMES[0]}")
    path.write_bytes(path.read_bytes()[:keep])
    assert set() == delivered(tmp_path)
    path = write_cursor(tmp_path, f"done {NAMES[0]}")
    path.write_bytes(path.read_bytes().replace(NAMES[0].encode(), NAMES[1].encode()))
    assert set() == delivered(tmp_path)


def test_new_facts_are_read_as_they_come(tmp_path: Path) -> None:
    """Appended facts are added, half a line once it is complete, and a new file from its start."""
    path = write_cursor(tmp_path, f"done {NAMES[0]}")
    segments = DeliveredSegments(tmp_path)
    assert NAMES[0] in segments
    line = forward_state.encode_fact(f"done {NAMES[1]}")
    with path.open("ab", buffering=0) as file:
        file.write(line[:20])
        assert NAMES[1] not in segments
        file.write(line[20:])
        assert NAMES[1] in segments
    path.rename(tmp_path / "old")
    assert NAMES[0] not in segments
    write_cursor(tmp_path, f"done {NAMES[2]}")
    assert [False, False, True] == [name in segments for name in NAMES]


def test_facts_are_read_as_they_were_written(tmp_path: Path) -> None:
    """Each line is one fact; a torn or garbled line is counted as damaged."""
    path = write_cursor(tmp_path, f"at {NAMES[0]} 10 1", f"done {NAMES[0]}")
    facts = [f"at {NAMES[0]} 10 1", f"done {NAMES[0]}"]
    assert facts == list(forward_state.read_facts(tmp_path))[1:]
    path.write_bytes(path.read_bytes()[:-3])
    assert [facts[0], None] == list(forward_state.read_facts(tmp_path))[1:]
    path.write_bytes(b"\xff\xfe 00000000\nno check\n\n")
    assert [None, None, None] == list(forward_state.read_facts(tmp_path))


def test_status_is_read_as_written(tmp_path: Path) -> None:
    """Whole numbers stay whole."""
    status = ForwardStatus(pid=7, updated_at=1.5, waiting_segments=3, oldest_at=100.0)
    forward_state.write_status(tmp_path, status)
    assert status == forward_state.read_status(tmp_path)
    assert [tmp_path / forward_state.STATUS_NAME] == list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [None, "", "pid 1\n", "pid x\n", "no status at all\n", "\0"])
def test_missing_or_damaged_status_is_none(tmp_path: Path, content: str | None) -> None:
    """If forward never ran, or a disk lost the file, there is no status."""
    if content is not None:
        (tmp_path / forward_state.STATUS_NAME).write_text(content)
    assert forward_state.read_status(tmp_path) is None


def test_the_lag_is_the_age_of_the_oldest() -> None:
    """If all is delivered there is no lag, nor if a clock is behind."""
    assert ForwardStatus(oldest_at=100.0).lag_seconds(107.5) == 7.5
    assert ForwardStatus(oldest_at=100.0).lag_seconds(90.0) == 0.0
    assert ForwardStatus().lag_seconds(107.5) == 0.0
