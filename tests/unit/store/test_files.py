import errno
import fcntl
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from astralog.errors import Shortage
from astralog.store import files
from astralog.store.names import MAX_NUMBER
from tests.support import foreign
from tests.support.fake_system import BreakOs, Disk, Fault
from tests.support.segment_files import NAME, contents, write_open

LINE = b'{"message":"a"}\n'


def synced(fsync: Fault) -> list[str]:
    """Return the synced paths."""
    return [call.split(" ")[0] for call in fsync.calls]


# --- The directory itself


def test_a_directory_is_made_for_owner_and_group_only(tmp_path: Path) -> None:
    """The data directory and its parents are created with mode 0750, whatever the umask."""
    path = tmp_path / "a" / "b"
    mask = os.umask(0o077)
    try:
        files.make_directory(path)
    finally:
        os.umask(mask)
    assert 0o750 == stat.S_IMODE(path.stat().st_mode)


def test_a_new_directory_is_durable(tmp_path: Path, break_os: BreakOs) -> None:
    """Each directory with a new entry is synced, so that a power cut keeps the segments."""
    fsync = break_os("fsync", errno.EIO, times=0)
    files.make_directory(tmp_path / "a" / "b")
    assert [str(tmp_path / "a"), str(tmp_path)] == synced(fsync)[:2]


def test_unsynced_directory_is_made_durable(tmp_path: Path, break_os: BreakOs) -> None:
    """A directory that an operator or an interrupted start has just made is synced too."""
    path = tmp_path / "a" / "b"
    path.mkdir(parents=True)
    fsync = break_os("fsync", errno.EIO, times=0)
    files.make_directory(path)
    assert [str(tmp_path / "a"), str(tmp_path)] == synced(fsync)[:2]
    assert str(path) not in synced(fsync)
    assert Path(synced(fsync)[-1]).is_mount()


def test_the_parents_of_a_linked_directory_are_synced(tmp_path: Path, break_os: BreakOs) -> None:
    """The target of the link must be durable."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a" / "b")
    fsync = break_os("fsync", errno.EIO, times=0)
    files.make_directory(tmp_path / "link")
    assert str(tmp_path / "a") == synced(fsync)[0]


def test_a_parent_that_cannot_be_synced_stops_the_start(tmp_path: Path, break_os: BreakOs) -> None:
    """A directory that a power cut may remove must not hold logs."""
    break_os("fsync", errno.EIO, times=1)
    with pytest.raises(OSError, match="Input/output error"):
        files.make_directory(tmp_path)


def test_unreadable_parent_is_skipped(tmp_path: Path, break_os: BreakOs) -> None:
    """A service with only search permission on the parents can start."""
    break_os("open", errno.EACCES)
    files.make_directory(tmp_path)


def test_existing_directory_keeps_its_mode(tmp_path: Path) -> None:
    """An operator may have set it."""
    tmp_path.chmod(0o770)
    files.make_directory(tmp_path)
    assert 0o770 == stat.S_IMODE(tmp_path.stat().st_mode)


def test_a_file_in_the_directorys_place_is_rejected(tmp_path: Path) -> None:
    """A data directory that cannot be created raises."""
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(OSError, match="File exists"):
        files.make_directory(path)


def test_free_bytes_are_those_that_the_service_may_use(tmp_path: Path, disk: Disk) -> None:
    """Bytes reserved for root do not count as free."""
    disk.free = 12345
    assert (disk.total, 12345, None, None, False) == files.space(tmp_path)
    disk.flags = os.ST_RDONLY
    assert files.space(tmp_path).is_read_only


def test_the_space_of_a_real_disk_is_counted(tmp_path: Path) -> None:
    """The system's numbers are in bytes."""
    space = files.space(tmp_path)
    assert 1024 * 1024 < space.free < space.total
    assert not space.is_read_only
    with pytest.raises(FileNotFoundError):
        files.space(tmp_path / "missing")


@pytest.mark.parametrize(
    ("inodes", "free", "known"),
    [(64, 3, (64, 3)), (64, 0, (64, 0)), (0, 0, None), (2**64 - 1, 2**64 - 1, None), (9, -1, None)],
)
def test_inodes_are_known_if_the_file_system_limits_them(
    tmp_path: Path, disk: Disk, inodes: int, free: int, known: tuple[int, int] | None
) -> None:
    """Btrfs reports 0, and others -1; neither is a shortage."""
    disk.inodes, disk.free_inodes = inodes, free % 2**64
    space = files.space(tmp_path)
    assert (known or (None, None)) == (space.total_inodes, space.free_inodes)


@pytest.mark.parametrize(
    ("kept_bytes", "total_bytes", "total_inodes", "kept"),
    [
        (0, 1 << 40, 1 << 26, 0),
        (256 << 20, 1 << 40, 1 << 26, 1024),  # one for each 256 KiB
        (1 << 30, 1 << 40, 1 << 26, 4096),
        (4_000_000, 58_000_000, 64, 4),  # no larger share than of the bytes
        (1_000_000, 300_000_000, 12, 1),  # but one at least
        (1, 1 << 40, 1 << 26, 1),
        (1 << 30, 0, 0, 1),
    ],
)
def test_inodes_are_kept_free_as_bytes_are(
    kept_bytes: int, total_bytes: int, total_inodes: int, kept: int
) -> None:
    """In proportion to the setting, on large and on tiny file systems."""
    assert kept == files.kept_inodes(kept_bytes, total_bytes, total_inodes)


@pytest.mark.parametrize(
    ("free", "free_inodes", "short"),
    [
        (1 << 30, 1024, None),
        (1 << 30, 1023, "1023 inodes of the disk are free, ASTRALOG_MIN_FREE_BYTES keeps 1024"),
        (1 << 30, 0, "0 inodes of the disk are free, ASTRALOG_MIN_FREE_BYTES keeps 1024"),
        (1, 0, "1 bytes of the disk are free, ASTRALOG_MIN_FREE_BYTES keeps 268435456"),
    ],
)
def test_shortage_names_the_resource(
    tmp_path: Path, disk: Disk, free: int, free_inodes: int, short: str | None
) -> None:
    """If both are short, bytes."""
    disk.free, disk.inodes, disk.free_inodes = free, 1 << 40, free_inodes
    if short is None:
        files.space(tmp_path).check(256 << 20)
    else:
        with pytest.raises(Shortage, match=short):
            files.space(tmp_path).check(256 << 20)


def test_a_removed_or_replaced_file_is_not_in_place(tmp_path: Path) -> None:
    """A descriptor is compared with the current file at the path."""
    path = write_open(tmp_path, LINE)
    with path.open() as file:
        assert files.is_in_place(file.fileno(), path)
        path.unlink()
        assert not files.is_in_place(file.fileno(), path)
        path.touch()
        assert not files.is_in_place(file.fileno(), path)


# --- Sealing


def test_a_sealed_segment_has_its_final_name(tmp_path: Path) -> None:
    """Sealing removes the suffix `.open` and nothing else."""
    path = write_open(tmp_path, LINE)
    assert not files.is_taken(tmp_path, NAME)
    files.seal_file(path, len(LINE))
    assert {f"{NAME}.ndjson": LINE} == contents(tmp_path)
    assert files.is_taken(tmp_path, NAME)


def test_an_empty_segment_is_removed(tmp_path: Path) -> None:
    """A segment without a line leaves no file."""
    files.seal_file(write_open(tmp_path, b""), 0)
    assert {} == contents(tmp_path)


def test_a_seal_is_synced_to_the_directory(tmp_path: Path, break_os: BreakOs) -> None:
    """The new name is made durable, and a failure is raised."""
    fault = break_os("fsync", errno.EIO, times=1)
    with pytest.raises(OSError, match="Input/output error"):
        files.seal_file(write_open(tmp_path, LINE), len(LINE))
    assert [f"{tmp_path} ({tmp_path.stat().st_ino})"] == fault.calls


#: What a rename that knows no RENAME_NOREPLACE says: a file system (NFS), an old C library.
UNKNOWN = [None, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP]


@pytest.fixture(params=UNKNOWN, ids=lambda number: errno.errorcode.get(number, "known"))
def rename(request: pytest.FixtureRequest, break_os: BreakOs) -> None:
    """Let the system support a rename that replaces nothing, or not."""
    if request.param is not None:
        break_os("call_libc", request.param, module=files)


@pytest.mark.parametrize("suffix", [".ndjson", ".ndjson.zst"])
@pytest.mark.usefixtures("rename")
def test_a_seal_replaces_no_file(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """If a sealed segment of that name exists in any form, another name is used."""
    others = {f"{NAME}{suffix}": b"others", f"{NAME}-1.ndjson": b"too"}
    for name, content in others.items():
        (tmp_path / name).write_bytes(content)
    files.seal_file(write_open(tmp_path, LINE), len(LINE))
    assert others | {f"{NAME}-2.ndjson": LINE} == contents(tmp_path)
    assert [f"{NAME}.ndjson exists already; sealed as {NAME}-2.ndjson"] == caplog.messages


@pytest.mark.usefixtures("rename")
def test_a_rename_replaces_no_file(tmp_path: Path) -> None:
    """It fails if the new name exists, even as a dangling link, and works elsewhere."""
    source = tmp_path / "source"
    source.write_bytes(LINE)
    (tmp_path / "taken").write_bytes(b"others")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("taken", "link"):
        with pytest.raises(FileExistsError):
            files.rename_new(source, tmp_path / name)
    files.rename_new(source, tmp_path / "free")
    assert b"others" == (tmp_path / "taken").read_bytes()
    assert LINE == (tmp_path / "free").read_bytes()
    assert not source.exists()


def test_a_rename_that_fails_is_not_tried_another_way(tmp_path: Path, break_os: BreakOs) -> None:
    """An error of the disk is raised as it is."""
    source = write_open(tmp_path, LINE)
    break_os("call_libc", errno.EIO, module=files)
    with pytest.raises(OSError, match="Input/output error"):
        files.seal_file(source, len(LINE))
    assert {source.name: LINE} == contents(tmp_path)


def test_the_names_for_a_seal_are_bounded(tmp_path: Path) -> None:
    """If none of a segment's names is free, it stays open, and the caller gets the error."""
    path = write_open(tmp_path, LINE)
    for number in range(MAX_NUMBER + 1):
        (tmp_path / f"{NAME}{f'-{number}' if number else ''}.ndjson").touch()
    with pytest.raises(FileExistsError):
        files.seal_file(path, len(LINE))
    assert path.exists()


def test_a_function_that_the_library_lacks_is_an_error() -> None:
    """A function missing in an old C library fails like one missing in the kernel."""
    with pytest.raises(OSError, match="not implemented") as raised:
        files.call_libc("no_such_function_anywhere")
    assert errno.ENOSYS == raised.value.errno


def test_a_sealed_segment_is_removed_in_all_its_forms(tmp_path: Path) -> None:
    """No form of the removed segment is left, and others stay."""
    for name in (f"{NAME}.ndjson", f"{NAME}.ndjson.zst", "b.ndjson"):
        (tmp_path / name).write_bytes(b"x")
    assert files.remove_sealed(tmp_path, NAME)
    assert not files.remove_sealed(tmp_path, NAME)
    assert [tmp_path / "b.ndjson"] == list(tmp_path.iterdir())


def test_unreadable_segment_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user's file, as of a restored backup, needs no lock: it is not compressed either."""
    path = tmp_path / f"{NAME}.ndjson"
    path.write_bytes(b"x")

    def reject(*args: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "open", reject)
    assert files.remove_sealed(tmp_path, NAME)
    assert not path.exists()


def test_a_removal_waits_until_a_segment_has_its_compressed_name(tmp_path: Path) -> None:
    """It waits from the check of the plain file to the rename; both forms are then removed."""
    plain = tmp_path / f"{NAME}.ndjson"
    plain.write_bytes(b"x")
    with plain.open("rb") as source, ThreadPoolExecutor(1) as thread:
        with files.removal_lock(source.fileno()):
            removal = thread.submit(files.remove_sealed, tmp_path, NAME)
            with pytest.raises(TimeoutError):
                removal.result(0.2)
            plain.with_name(f"{NAME}.ndjson.zst").write_bytes(b"y")
        assert removal.result(10)
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_locks_is_no_reason_to_keep_a_segment(
    tmp_path: Path, break_os: BreakOs
) -> None:
    """NFS has none for files open for reading; any other error keeps it."""
    path = tmp_path / f"{NAME}.ndjson"
    path.write_bytes(b"x")
    fault = break_os("flock", errno.EIO, module=fcntl)
    with pytest.raises(OSError, match="Input/output error"):
        files.remove_sealed(tmp_path, NAME)
    fault._number = errno.EBADF
    assert files.remove_sealed(tmp_path, NAME)


# --- What is no segment


def test_files_that_are_no_segments_are_not_removed(tmp_path: Path) -> None:
    """A directory, link, pipe or device stays, even with a segment's name."""
    before = foreign.make_all(tmp_path)
    for number in range(1, len(foreign.KINDS) + 1):
        assert not files.remove_sealed(tmp_path, f"20240101T000000.000000Z-{number}")
    assert before == foreign.seen(tmp_path)


def test_only_the_forms_that_are_files_are_removed(tmp_path: Path) -> None:
    """Another entry with the name of the segment's other form stays."""
    (tmp_path / f"{NAME}.ndjson.zst").write_bytes(b"x")
    (tmp_path / f"{NAME}.ndjson").mkdir()
    assert files.remove_sealed(tmp_path, NAME) == 1
    assert [tmp_path / f"{NAME}.ndjson"] == list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", range(1, len(foreign.KINDS) + 1))
def test_only_regular_files_are_opened(tmp_path: Path, kind: int) -> None:
    """Opening a pipe would wait for a writer, and a link points elsewhere."""
    foreign.make_all(tmp_path)
    path = tmp_path / f"20240101T000000.000000Z-{kind}.ndjson"
    with pytest.raises(FileNotFoundError):
        files.open_regular(path, os.O_RDWR)


def test_only_regular_files_are_listed(tmp_path: Path) -> None:
    """With any names."""
    foreign.make_all(tmp_path)
    assert {*foreign.NAMES, "linked"} == set(files.regular_files(tmp_path))


def test_seal_replaces_no_directory(tmp_path: Path) -> None:
    """A directory with the name of the sealed segment stays, and another name is used."""
    (tmp_path / f"{NAME}.ndjson").mkdir()
    files.seal_file(write_open(tmp_path, LINE), len(LINE))
    assert (tmp_path / f"{NAME}.ndjson").is_dir()
    assert LINE == (tmp_path / f"{NAME}-1.ndjson").read_bytes()
