import errno
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from astralog.store import compression, files
from astralog.store.compression import DRAFT_NAME, Damaged, compress_segment
from astralog.store.names import Form, SegmentName
from tests.support.fake_system import BreakOs

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


NAME = SegmentName("20261123T062500.123456Z-4711")
LINES = b'{"message":"abc"}\n' * 50_000
PLAIN, COMPRESSED = NAME.file(Form.PLAIN), NAME.file(Form.COMPRESSED)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Return a sealed segment of more than one block, last changed a while ago."""
    path = tmp_path / PLAIN
    path.write_bytes(LINES)
    os.utime(path, ns=(1, 123_456_789_000_000_001))
    return path


def contents(path: Path) -> dict[str, bytes]:
    """Return the content of a directory, compressed files decompressed."""
    return {
        file.name: zstd.decompress(file.read_bytes())
        if file.suffix == ".zst"
        else file.read_bytes()
        for file in path.iterdir()
    }


def test_compressed_form_replaces_the_plain_one(plain: Path) -> None:
    """It has the same lines and times, and a frame with size and checksum."""
    saving = compress_segment(plain.parent, NAME)
    assert contents(plain.parent) == {COMPRESSED: LINES}
    path = plain.with_name(COMPRESSED)
    status = path.stat()
    assert saving == (len(LINES), status.st_size)
    assert 0o640 == stat.S_IMODE(status.st_mode)
    assert 123_456_789_000_000_001 == status.st_mtime_ns
    head = path.read_bytes()[:18]
    assert len(LINES) == zstd.get_frame_info(head).decompressed_size
    assert head[4] & 0x04, "no checksum flag (RFC 8878, 3.1.1.1.1)"


def test_removed_segment_is_skipped(tmp_path: Path) -> None:
    """Retention may have removed it since the listing."""
    assert compress_segment(tmp_path, NAME) is None
    assert not list(tmp_path.iterdir())


class Calls:
    """The calls of the functions that make names and bytes durable, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[str] = []
        self._directory: dict[str, set[str]] = {}
        for module, name in ((os, "fsync"), (os, "unlink"), (files, "rename_new")):
            self._watch(monkeypatch, module, name)

    def _watch(self, monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> None:
        function = getattr(module, name)

        def call(target: Any, *args: Any) -> Any:
            path = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else target
            result = function(target, *args)
            self.made.append(f"{name} {Path(path).name}")
            return result

        monkeypatch.setattr(module, name, call)


def test_nothing_is_renamed_before_it_is_synced_nor_removed_before_the_name_is(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With this order, a power cut at any moment leaves one of the two complete."""
    calls = Calls(monkeypatch)
    compress_segment(plain.parent, NAME)
    assert calls.made == [
        f"fsync {PLAIN}",
        f"fsync {DRAFT_NAME}",
        f"rename_new {DRAFT_NAME}",
        f"fsync {plain.parent.name}",
        f"unlink {PLAIN}",
    ]


def test_a_second_form_left_by_a_crash_is_synced_and_the_plain_one_removed(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may never have been synced, for example after a restored backup."""
    plain.with_name(COMPRESSED).write_bytes(zstd.compress(LINES))
    calls = Calls(monkeypatch)
    assert compress_segment(plain.parent, NAME)
    assert contents(plain.parent) == {COMPRESSED: LINES}
    synced = [f"fsync {PLAIN}", f"fsync {COMPRESSED}", f"fsync {plain.parent.name}"]
    assert calls.made == [*synced, f"unlink {PLAIN}"]


@pytest.mark.parametrize("damage", ["cut", "garbled", "empty", "no zstd"])
def test_damaged_second_form_is_removed(plain: Path, damage: str) -> None:
    """The next attempt creates it again."""
    packed = zstd.compress(
        os.urandom(1000) + LINES, options={zstd.CompressionParameter.checksum_flag: 1}
    )
    damaged = {
        "cut": packed[:-1],
        "garbled": packed[:500] + b"xx" + packed[502:],
        "empty": b"",
        "no zstd": b"what is that?",
    }
    plain.with_name(COMPRESSED).write_bytes(damaged[damage])
    with pytest.raises(Damaged):
        compress_segment(plain.parent, NAME)
    assert contents(plain.parent) == {PLAIN: LINES}
    assert compress_segment(plain.parent, NAME)
    assert contents(plain.parent) == {COMPRESSED: LINES}


def test_damaged_second_form_stays_if_the_plain_one_is_unreadable(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be the only copy."""
    plain.with_name(COMPRESSED).write_bytes(zstd.compress(LINES)[:-1])

    def fail(source: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(compression, "_blocks", fail)
    with pytest.raises(OSError, match="Input/output error"):
        compress_segment(plain.parent, NAME)
    assert {PLAIN, COMPRESSED} == {path.name for path in plain.parent.iterdir()}


@pytest.mark.parametrize("other", [LINES[:-1], LINES + b"{}\n", LINES.replace(b"abc", b"abd", 1)])
def test_a_second_form_with_other_lines_is_kept_beside_the_plain_one(
    plain: Path, other: bytes
) -> None:
    """A file without a known copy is never removed."""
    plain.with_name(COMPRESSED).write_bytes(zstd.compress(other))
    with pytest.raises(FileExistsError):
        compress_segment(plain.parent, NAME)
    assert contents(plain.parent) == {PLAIN: LINES, COMPRESSED: other}


def test_a_name_that_is_taken_meanwhile_is_not_replaced(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other file stays, and so does the plain one."""
    write = compression._write

    def write_and_take_name(*args: Any) -> int:
        plain.with_name(COMPRESSED).write_bytes(b"somebody's")
        return write(*args)

    monkeypatch.setattr(compression, "_write", write_and_take_name)
    with pytest.raises(FileExistsError):
        compress_segment(plain.parent, NAME)
    assert b"somebody's" == plain.with_name(COMPRESSED).read_bytes()
    assert LINES == plain.read_bytes()


@pytest.mark.parametrize("damage", [b"", b"x"])
def test_file_that_does_not_decompress_is_discarded(
    plain: Path, damage: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failing disk or memory is detected before the plain file is removed."""
    fsync = os.fsync

    def spoil(fd: int) -> None:
        fsync(fd)
        if os.readlink(f"/proc/self/fd/{fd}").endswith(DRAFT_NAME):
            size = os.fstat(fd).st_size
            os.pwrite(fd, damage or b"\0", size - 20)
            os.ftruncate(fd, size if damage else size - 1)

    monkeypatch.setattr(os, "fsync", spoil)
    with pytest.raises(Damaged):
        compress_segment(plain.parent, NAME)
    assert contents(plain.parent) == {PLAIN: LINES}


@pytest.mark.parametrize(
    ("function", "number", "module"),
    [
        ("fsync", errno.EIO, os),
        ("lexists", errno.EIO, os.path),
        ("rename_new", errno.EIO, files),
        ("sync_directory", errno.EIO, files),
    ],
)
def test_a_failure_leaves_the_lines_whole_and_no_draft(
    plain: Path, break_os: BreakOs, function: str, number: int, module: Any
) -> None:
    """The next attempt succeeds."""
    break_os(function, number, times=1, module=module)
    with pytest.raises(OSError, match=os.strerror(number)):
        compress_segment(plain.parent, NAME)
    assert LINES == contents(plain.parent)[PLAIN]
    assert not plain.with_name(DRAFT_NAME).exists()
    assert compress_segment(plain.parent, NAME)
    assert contents(plain.parent) == {COMPRESSED: LINES}


def test_draft_of_a_crash_is_overwritten(plain: Path) -> None:
    """However long it is, none of it is in the compressed file."""
    plain.with_name(DRAFT_NAME).write_bytes(b"half a frame" * 100_000)
    compress_segment(plain.parent, NAME)
    assert contents(plain.parent) == {COMPRESSED: LINES}


def test_a_segment_that_is_removed_meanwhile_does_not_come_back(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise it would be delivered a second time, and never removed."""
    write = compression._write

    def write_and_remove(*args: Any) -> int:
        size = write(*args)
        assert files.remove_sealed(plain.parent, NAME)
        return size

    monkeypatch.setattr(compression, "_write", write_and_remove)
    assert compress_segment(plain.parent, NAME) is None
    assert not list(plain.parent.iterdir())


def test_removal_waits_for_the_rename(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A removal between the last check and the rename waits, and removes both forms."""
    rename = files.rename_new
    removals = []
    with ThreadPoolExecutor(1) as thread:

        def rename_late(*args: Any) -> None:
            removal = thread.submit(files.remove_sealed, plain.parent, NAME)
            with pytest.raises(TimeoutError):
                removal.result(0.2)
            rename(*args)
            removals.append(removal)

        monkeypatch.setattr(files, "rename_new", rename_late)
        compress_segment(plain.parent, NAME)
        assert removals[0].result(10)
    assert not list(plain.parent.iterdir())


@pytest.mark.slow
def test_a_large_segment_takes_no_more_memory_than_a_small_one(tmp_path: Path) -> None:
    """Memory holds one block, and the compressor's window."""
    path = tmp_path / PLAIN
    path.write_bytes(os.urandom(1024 * 1024) * 64)
    code = (
        "import resource, sys; from pathlib import Path;"
        "from astralog.store.compression import compress_segment;"
        "base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        f"assert compress_segment(Path({os.fspath(tmp_path)!r}), {NAME!r});"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base)"
    )
    grown_kib = int(subprocess.run([sys.executable, "-c", code], check=True, stdout=-1).stdout)
    assert grown_kib < 16 * 1024
