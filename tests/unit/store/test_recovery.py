import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from astralog.store import segment
from astralog.store.segment import BLOCK_BYTES
from tests.support import foreign
from tests.support.fake_system import BreakOs
from tests.support.segment_files import NAME, contents, write_open

LINE = b'{"message":"a"}\n'

#: Hold the lock of the file named first until stdin ends.
HOLD_LOCK = """
import fcntl, sys
with open(sys.argv[1], "rb") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_by_another_process(path: Path) -> Iterator[None]:
    """Let another process hold the file's lock."""
    command = [sys.executable, "-S", "-c", HOLD_LOCK, str(path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert "held\n" == process.stdout.readline()
        yield


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        (LINE, LINE),
        (LINE * 3, LINE * 3),
        (LINE + b'{"mess', LINE),
        (LINE + b"x" * (3 * BLOCK_BYTES), LINE),
        (LINE + b"\0" * 100, LINE),
        (LINE + b"\0" * 100 + LINE, LINE),
        (LINE * 2 + b'{"me\0\0\0' + LINE, LINE * 2),
        (LINE + b"\0\n\0\n", LINE),
        (b"x" * (BLOCK_BYTES - 1) + b"\n", b"x" * (BLOCK_BYTES - 1) + b"\n"),
        (b"x" * BLOCK_BYTES + b"\n" + LINE, b"x" * BLOCK_BYTES + b"\n" + LINE),
        (b"x" * BLOCK_BYTES + b"\n\0" + LINE, b"x" * BLOCK_BYTES + b"\n"),
        (LINE + b"\0" * 2 * BLOCK_BYTES + LINE, LINE),
    ],
    ids=lambda content: f"{content[:20]!r}-{len(content)}",
)
def test_orphaned_segment_is_sealed_after_its_last_complete_line(
    tmp_path: Path, content: bytes, kept: bytes
) -> None:
    """A torn tail and everything after a hole are truncated; all lines before stay."""
    assert len(kept) == segment.recover_file(write_open(tmp_path, content))
    assert {f"{NAME}.ndjson": kept} == contents(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\0" * 10, b"\0\n" + LINE])
def test_segment_without_a_complete_line_is_removed(tmp_path: Path, content: bytes) -> None:
    """A file that is empty after truncation is removed."""
    assert 0 == segment.recover_file(write_open(tmp_path, content))
    assert {} == contents(tmp_path)


def test_segment_of_another_writer_is_not_recovered(tmp_path: Path) -> None:
    """Two services in one directory do not touch each other's open segments."""
    path = write_open(tmp_path, LINE + b"half a li")
    with held_by_another_process(path):
        with pytest.raises(BlockingIOError):
            segment.recover_file(path)
        assert {path.name: LINE + b"half a li"} == contents(tmp_path)
    segment.recover_file(path)
    assert {f"{NAME}.ndjson": LINE} == contents(tmp_path)


def test_segment_is_locked_while_it_is_recovered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes that start at once do not both truncate a file."""
    path = write_open(tmp_path, LINE + b"tail")
    held: list[bool] = []
    truncate = os.ftruncate

    def watch(fd: int, size: int) -> None:
        with path.open() as other:
            try:
                fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                held.append(True)
        truncate(fd, size)

    monkeypatch.setattr(os, "ftruncate", watch)
    segment.recover_file(path)
    assert [True] == held


def test_segment_sealed_by_another_process_is_not_recovered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is removed or renamed before it is locked is not touched."""
    path = write_open(tmp_path, LINE + b"tail")
    flock = fcntl.flock

    def flock_too_late(fd: int, operation: int) -> None:
        path.rename(tmp_path / "moved")
        flock(fd, operation)

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", flock_too_late)
        with pytest.raises(FileNotFoundError):
            segment.recover_file(path)
    assert {"moved": LINE + b"tail"} == contents(tmp_path)
    with pytest.raises(FileNotFoundError):
        segment.recover_file(path)
    assert {"moved": LINE + b"tail"} == contents(tmp_path)


def test_replaced_segment_is_not_recovered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new file of the same name belongs to another process."""
    path = write_open(tmp_path, LINE + b"tail")
    flock = fcntl.flock

    def flock_too_late(fd: int, operation: int) -> None:
        path.rename(tmp_path / "moved")
        path.write_bytes(b"new")
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock_too_late)
    with pytest.raises(FileNotFoundError):
        segment.recover_file(path)
    assert {"moved": LINE + b"tail", path.name: b"new"} == contents(tmp_path)


def test_a_recovered_segment_is_synced_before_it_has_its_name(
    tmp_path: Path, break_os: BreakOs
) -> None:
    """A file is not sealed if its sync fails."""
    path = write_open(tmp_path, LINE)
    break_os("fsync", errno.EIO, times=1)
    with pytest.raises(OSError, match="Input/output error"):
        segment.recover_file(path)
    assert {path.name: LINE} == contents(tmp_path)


def test_a_recovery_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The line has the kept and the truncated bytes."""
    segment.recover_file(write_open(tmp_path, LINE + b"torn"))
    assert [f"recovered {NAME}.ndjson.open: kept {len(LINE)} bytes, truncated 4"] == caplog.messages


def test_other_files_are_not_recovered(tmp_path: Path) -> None:
    """The target of a link is not truncated, and a pipe is not an empty segment."""
    before = foreign.make_all(tmp_path)
    for path in tmp_path.glob("20240101T*.open"):
        with pytest.raises(FileNotFoundError):
            segment.recover_file(path)
    assert before == foreign.seen(tmp_path)
