"""What forward shows tells where things stand, in a journal and on a terminal."""

import io
import logging
from pathlib import Path

import pytest

from astralog.forward.backlog import Backlog
from astralog.forward.cursor import Cursor
from astralog.forward.delivery import Delivered
from astralog.forward.progress import Progress
from astralog.store import deliveries
from tests.support.clickhouse import make_line, write_segment


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


def make_progress(directory: Path, stream: io.StringIO) -> Progress:
    """Return the progress of a directory with one segment that waits."""
    write_segment(directory, [make_line(0)], 1)
    cursor = Cursor(directory, "n", "http://host/db/logs")
    cursor.open([])
    backlog = Backlog(directory, cursor)
    backlog.look()
    return Progress(directory, backlog, stream)


def test_a_journal_has_a_line_when_it_is_due(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
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
    """The line is written over itself, and its last state stays."""
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


def test_a_full_disk_does_not_stop_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A status that cannot be written is written later."""
    progress = make_progress(tmp_path, io.StringIO())

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("astralog.forward.progress.write_status", fail)
        progress.show(is_due=True)
    assert deliveries.read_status(tmp_path) is None
    progress.show(is_due=True)
    status = deliveries.read_status(tmp_path)
    assert status
    assert (status.waiting_segments, status.pid) == (1, progress.status.pid)
