import errno
import fcntl
import logging
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from astralog.store import files, recovery, retention
from astralog.store.recovery import BLOCK_BYTES
from tests.conftest import Disk, Fault

NAME = "20261123T062500.123456Z-4711"
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


def write_open(path: Path, content: bytes, name: str = NAME) -> Path:
    file = path / f"{name}.ndjson.open"
    file.write_bytes(content)
    return file


def contents(path: Path) -> dict[str, bytes]:
    """Return what lies in a directory."""
    return {file.name: file.read_bytes() for file in path.iterdir()}


# --- The directory itself


def test_a_directory_is_made_for_owner_and_group_only(tmp_path: Path) -> None:
    """The data directory is made with its parents, mode 0750 whatever the umask."""
    path = tmp_path / "a" / "b"
    mask = os.umask(0o077)
    try:
        files.make_directory(path)
    finally:
        os.umask(mask)
    assert 0o750 == stat.S_IMODE(path.stat().st_mode)


def test_a_new_directory_is_durable(tmp_path: Path, break_os: Callable[..., Fault]) -> None:
    """Each directory that got a new entry is synced, so that a power cut leaves the segments."""
    fsync = break_os("fsync", errno.EIO, times=0)
    files.make_directory(tmp_path / "a" / "b")
    synced = {call.split(" ")[0] for call in fsync.calls}
    assert {str(tmp_path), str(tmp_path / "a")} == synced


def test_a_directory_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    """An operator's own mode is kept."""
    tmp_path.chmod(0o770)
    files.make_directory(tmp_path)
    assert 0o770 == stat.S_IMODE(tmp_path.stat().st_mode)


def test_a_file_in_the_directorys_place_is_rejected(tmp_path: Path) -> None:
    """A data directory that cannot be made raises."""
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(OSError, match="File exists"):
        files.make_directory(path)


def test_free_bytes_are_those_that_the_service_may_use(tmp_path: Path, disk: Disk) -> None:
    """What only root may use does not count as free."""
    disk.free = 12345
    assert 12345 == files.free_bytes(tmp_path)


def test_free_bytes_of_a_real_disk_are_counted(tmp_path: Path) -> None:
    """The real system is asked in bytes."""
    assert 1024 * 1024 < files.free_bytes(tmp_path)
    with pytest.raises(FileNotFoundError):
        files.free_bytes(tmp_path / "missing")


def test_a_removed_or_replaced_file_is_not_the_same(tmp_path: Path) -> None:
    """A descriptor is compared with what lies at the path now."""
    path = write_open(tmp_path, LINE)
    with path.open() as file:
        assert files.is_same_file(file.fileno(), path)
        path.unlink()
        with pytest.raises(FileNotFoundError):
            files.is_same_file(file.fileno(), path)
        path.touch()
        assert not files.is_same_file(file.fileno(), path)


# --- Sealing


def test_a_sealed_segment_has_its_final_name(tmp_path: Path) -> None:
    """Sealing takes the suffix `.open` away and nothing else."""
    path = write_open(tmp_path, LINE)
    files.seal_file(path, len(LINE))
    assert {f"{NAME}.ndjson": LINE} == contents(tmp_path)
    assert tmp_path / f"{NAME}.ndjson" == files.sealed_path(path)


def test_an_empty_segment_is_removed(tmp_path: Path) -> None:
    """A segment without a line leaves no file."""
    files.seal_file(write_open(tmp_path, b""), 0)
    assert {} == contents(tmp_path)


def test_a_seal_is_synced_to_the_directory(tmp_path: Path, break_os: Callable[..., Fault]) -> None:
    """The new name is made durable, and a failure to do so is told."""
    fault = break_os("fsync", errno.EIO, times=1)
    with pytest.raises(OSError, match="Input/output error"):
        files.seal_file(write_open(tmp_path, LINE), len(LINE))
    assert [f"{tmp_path} ({tmp_path.stat().st_ino})"] == fault.calls


# --- Recovery


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
def test_a_segment_of_a_dead_process_is_sealed_after_its_last_whole_line(
    tmp_path: Path, content: bytes, kept: bytes
) -> None:
    """A torn tail and whatever follows a hole are cut; every line before stays."""
    write_open(tmp_path, content)
    recovery.recover(tmp_path)
    assert {f"{NAME}.ndjson": kept} == contents(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\0" * 10, b"\0\n" + LINE])
def test_a_segment_without_a_whole_line_is_removed(tmp_path: Path, content: bytes) -> None:
    """What is empty after the cut leaves no file."""
    write_open(tmp_path, content)
    recovery.recover(tmp_path)
    assert {} == contents(tmp_path)


def test_every_open_segment_is_recovered(tmp_path: Path) -> None:
    """All open segments are sealed; sealed ones and other files are left as they are."""
    for name in "abc":
        write_open(tmp_path, LINE, name)
    others = {"old.ndjson": b"torn", "token": b"x", "notes.open": b"x", "a.ndjson.open.bak": b"x"}
    for name, content in others.items():
        (tmp_path / name).write_bytes(content)
    recovery.recover(tmp_path)
    assert others | {f"{name}.ndjson": LINE for name in "abc"} == contents(tmp_path)


def test_a_segment_that_another_process_writes_is_left_alone(tmp_path: Path) -> None:
    """Of two services in one directory, neither touches what the other holds."""
    path = write_open(tmp_path, LINE + b"half a li")
    with held_by_another_process(path):
        recovery.recover(tmp_path)
        recovery.recover_file(path, limit=1)
        assert {path.name: LINE + b"half a li"} == contents(tmp_path)
    recovery.recover(tmp_path)
    assert {f"{NAME}.ndjson": LINE} == contents(tmp_path)


def test_a_recovered_segment_is_held_while_it_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes that start at once do not both cut a file."""
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
    recovery.recover(tmp_path)
    assert [True] == held


def test_a_segment_that_another_process_sealed_meanwhile_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is gone or renamed by the time it is locked is none of ours."""
    path = write_open(tmp_path, LINE + b"tail")
    flock = fcntl.flock

    def flock_too_late(fd: int, operation: int) -> None:
        path.rename(tmp_path / "moved")
        flock(fd, operation)

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", flock_too_late)
        recovery.recover_file(path)
    assert {"moved": LINE + b"tail"} == contents(tmp_path)
    recovery.recover_file(path)
    assert {"moved": LINE + b"tail"} == contents(tmp_path)


@pytest.mark.parametrize(
    ("limit", "kept"),
    [(None, LINE * 3), (1000, LINE * 3), (len(LINE) * 2, LINE * 2), (len(LINE) * 2 - 1, LINE)],
)
def test_what_lies_beyond_the_limit_is_cut(tmp_path: Path, limit: int | None, kept: bytes) -> None:
    """A segment is cut back to what was accepted, though more lines are whole."""
    recovery.recover_file(write_open(tmp_path, LINE * 3), limit=limit)
    assert {f"{NAME}.ndjson": kept} == contents(tmp_path)


def test_nothing_is_kept_of_a_segment_of_which_nothing_was_accepted(tmp_path: Path) -> None:
    """A limit of 0 removes the file."""
    recovery.recover_file(write_open(tmp_path, LINE), limit=0)
    assert {} == contents(tmp_path)


def test_one_segment_that_cannot_be_recovered_does_not_stop_the_others(
    tmp_path: Path, break_os: Callable[..., Fault], caplog: pytest.LogCaptureFixture
) -> None:
    """A failure is logged, the file stays open for the next start, and recovery goes on."""
    first = write_open(tmp_path, LINE + b"torn", "a")
    write_open(tmp_path, LINE + b"torn", "b")
    break_os("ftruncate", errno.EIO, times=1)
    recovery.recover(tmp_path)
    assert {"a.ndjson.open": LINE + b"torn", "b.ndjson": LINE} == contents(tmp_path)
    assert f"cannot recover {first.name}: Input/output error" in caplog.messages
    recovery.recover(tmp_path)
    assert {"a.ndjson": LINE, "b.ndjson": LINE} == contents(tmp_path)


def test_a_recovered_segment_is_synced_before_it_has_its_name(
    tmp_path: Path, break_os: Callable[..., Fault]
) -> None:
    """A file whose sync fails is not sealed."""
    path = write_open(tmp_path, LINE)
    break_os("fsync", errno.EIO, times=1)
    with pytest.raises(OSError, match="Input/output error"):
        recovery.recover_file(path)
    assert {path.name: LINE} == contents(tmp_path)


def test_a_recovery_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log says what was kept and what was cut."""
    recovery.recover_file(write_open(tmp_path, LINE + b"torn"))
    assert [f"recovered {NAME}.ndjson.open: kept {len(LINE)} bytes, cut 4"] == caplog.messages


# --- Retention


def write_sealed(path: Path, name: str, size: int, age: float = 0) -> None:
    file = path / f"{name}.ndjson"
    file.write_bytes(b"x" * size)
    seconds = file.stat().st_mtime - age
    os.utime(file, (seconds, seconds))


def names(path: Path) -> list[str]:
    return sorted(file.name.partition(".")[0] for file in path.iterdir())


@pytest.mark.parametrize(
    ("total_bytes", "kept"),
    [
        (0, "abc"),
        (600, "abc"),
        (599, "bc"),
        (500, "bc"),
        (499, "c"),
        (300, "c"),
        (299, ""),
        (1, ""),
    ],
)
def test_the_oldest_segments_beyond_the_total_are_removed(
    tmp_path: Path, total_bytes: int, kept: str
) -> None:
    """Only as many of the oldest sealed segments go as the total asks for; 0 keeps all."""
    for name, size in (("a", 100), ("b", 200), ("c", 300)):
        write_sealed(tmp_path, name, size)
    retention.retain(tmp_path, total_bytes, 0)
    assert list(kept) == names(tmp_path)


@pytest.mark.parametrize(
    ("age_seconds", "kept"), [(0, "abc"), (350, "abc"), (250, "bc"), (150, "c"), (50, "")]
)
def test_segments_beyond_the_age_are_removed(tmp_path: Path, age_seconds: float, kept: str) -> None:
    """Sealed segments go at the age that is set; 0 keeps all."""
    for name, age in (("a", 300), ("b", 200), ("c", 100)):
        write_sealed(tmp_path, name, 10, age)
    retention.retain(tmp_path, 0, age_seconds)
    assert list(kept) == names(tmp_path)


def test_open_segments_count_but_are_never_removed(tmp_path: Path) -> None:
    """What is being written counts towards the total, and stays."""
    write_sealed(tmp_path, "b", 100)
    path = write_open(tmp_path, b"x" * 1000, "a")
    os.utime(path, (0, 0))
    retention.retain(tmp_path, 1100, 0)
    assert ["a", "b"] == names(tmp_path)
    retention.retain(tmp_path, 1099, 0)
    assert ["a"] == names(tmp_path)
    retention.retain(tmp_path, 1, 1)
    assert ["a"] == names(tmp_path)


def test_other_files_are_neither_counted_nor_removed(tmp_path: Path) -> None:
    """Retention looks at segments only."""
    (tmp_path / "token").write_bytes(b"x" * 1000)
    write_sealed(tmp_path, "a", 100)
    retention.retain(tmp_path, 100, 0)
    assert ["a", "token"] == names(tmp_path)


def test_what_another_process_removed_meanwhile_is_passed_over(
    tmp_path: Path, break_os: Callable[..., Fault]
) -> None:
    """Of two that remove the same files, neither stops at one that is gone."""
    (tmp_path / "a.ndjson").symlink_to(tmp_path / "gone")  # listed, but not there to be looked at
    for name in "bcd":
        write_sealed(tmp_path, name, 100)
    unlinks = break_os("unlink", errno.ENOENT, times=1)
    retention.retain(tmp_path, 100, 0)
    assert [str(tmp_path / f"{name}.ndjson") for name in "bc"] == unlinks.calls
    assert ["a", "b", "d"] == names(tmp_path)


def test_a_file_that_cannot_be_removed_keeps_all_later_ones(
    tmp_path: Path, break_os: Callable[..., Fault], caplog: pytest.LogCaptureFixture
) -> None:
    """No newer logs go while older ones stay."""
    for name in "abc":
        write_sealed(tmp_path, name, 100)
    break_os("unlink", errno.EROFS, times=1)
    retention.retain(tmp_path, 100, 0)
    assert list("abc") == names(tmp_path)
    assert ["cannot remove a.ndjson: Read-only file system"] == caplog.messages


def test_a_removal_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log says what was removed and why."""
    caplog.set_level(logging.INFO)
    write_sealed(tmp_path, "a", 100)
    write_sealed(tmp_path, "b", 100, age=50)
    retention.retain(tmp_path, 100, 0)
    retention.retain(tmp_path, 0, 40)
    expected = [f"removed {name}: beyond the {why} to keep" for name, why in
                (("a.ndjson", "size"), ("b.ndjson", "age"))]  # fmt: skip
    assert expected == caplog.messages
