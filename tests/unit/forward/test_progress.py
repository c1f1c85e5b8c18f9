"""Forward's progress in a journal and on a terminal."""

import io
import logging
from pathlib import Path

import pytest

from astralog.forward.backlog import Backlog
from astralog.forward.clickhouse import Held
from astralog.forward.cursor import Cursor
from astralog.forward.delivery import Delivered, Outcome, Sent
from astralog.forward.progress import Progress
from astralog.store import forward_state
from tests.support.clickhouse import make_line, write_segment


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        """Return True."""
        return True


def make_progress(directory: Path, stream: io.StringIO) -> Progress:
    """Return the progress of a directory with one waiting segment."""
    write_segment(directory, [make_line(0)], 1)
    cursor = Cursor(directory, "n", "http://host/db/logs")
    cursor.open([])
    backlog = Backlog(directory, cursor)
    backlog.scan()
    return Progress(directory, backlog, stream)


def test_journal_has_one_line_per_minute(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Between two minutes nothing is logged."""
    caplog.set_level(logging.INFO, "astralog")
    progress = make_progress(tmp_path, io.StringIO())
    progress.count(Delivered(1000, 0))
    progress.show()
    assert caplog.messages == []
    progress._line_at -= 60
    progress.show()
    progress.show()
    [line] = caplog.messages
    assert line.startswith("1,000 logs delivered, 17 logs/s, 1 segments wait (0.0 MB), lag ")


def test_a_terminal_has_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The line overwrites itself, and its last state stays."""
    caplog.set_level(logging.INFO, "astralog")
    stream = Terminal()
    progress = make_progress(tmp_path, stream)
    progress.count(Delivered(2000, 3))
    progress.show(is_due=True)
    progress.show(is_due=True)
    progress.close()
    shown = stream.getvalue()
    assert shown.count("\n") == 1
    *_, last = shown.split("\r\x1b[K")
    assert last.startswith(
        "2,000 logs delivered, 3 of them dead letters, 0 logs/s, 1 segments wait"
    )
    assert caplog.messages == []


def test_wrong_segments_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One line per kind, and a count for the metrics; none for complete segments."""
    progress = make_progress(tmp_path, io.StringIO())
    segments = [
        Sent(f"segment-{number}", 10, False, 0.0, held=Held(rows, lines, 10), outcome=outcome)
        for number, (rows, lines, outcome) in enumerate(
            [
                (10, 10, Outcome.COMPLETE),
                (12, 10, Outcome.DOUBLED),
                (3, 3, Outcome.INCOMPLETE),
                (0, 0, Outcome.INCOMPLETE),
            ]
        )
    ]
    progress.count_segments(segments[:1])
    assert caplog.messages == []
    progress.count_segments(segments)
    doubled, incomplete = caplog.messages
    assert "The first is segment-1: 12 rows and 10 distinct lines, expected 10" in doubled
    assert incomplete.startswith("2 segments were sent")
    assert "The first is segment-2: 3 rows and 3 distinct lines, expected 10" in incomplete
    status = progress.status
    assert (status.delivered_segments, status.doubled_segments) == (5, 1)
    assert status.incomplete_segments == 2


def test_full_disk_does_not_stop_forward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A status that cannot be written is written later."""
    progress = make_progress(tmp_path, io.StringIO())

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("astralog.forward.progress.write_status", fail)
        progress.show(is_due=True)
    assert forward_state.read_status(tmp_path) is None
    progress.show(is_due=True)
    status = forward_state.read_status(tmp_path)
    assert status
    assert (status.waiting_segments, status.pid) == (1, progress.status.pid)
