import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from astralog.store import directory
from astralog.store.directory import ChangesLost, DirectoryWatch
from tests.support.fake_system import BreakOs


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[DirectoryWatch]:
    made = DirectoryWatch(tmp_path)
    yield made
    made.close()


def all_changes(watch: DirectoryWatch) -> set[str]:
    names = set()
    while some := watch.changes():
        names |= some
    return names


def test_created_and_removed_names_are_reported(watch: DirectoryWatch, tmp_path: Path) -> None:
    """A file that is created, renamed, linked or removed is named; a written one is not."""
    assert set() == watch.changes()
    (tmp_path / "made").touch()
    (tmp_path / "moved").touch()
    (tmp_path / "moved").rename(tmp_path / "renamed")
    os.link(tmp_path / "made", tmp_path / "linked")
    assert {"made", "moved", "renamed", "linked"} == all_changes(watch)
    (tmp_path / "made").write_bytes(b"x")
    assert set() == watch.changes()
    (tmp_path / "linked").unlink()
    (tmp_path / "renamed").rename(tmp_path.parent / "gone")
    assert {"linked", "renamed"} == all_changes(watch)


def test_any_name_is_reported(watch: DirectoryWatch, tmp_path: Path) -> None:
    """Long names and names that are not UTF-8 are in Python's form."""
    names = {"x" * 255, os.fsdecode(b"\xff\xfe"), "a b", "ü"}
    for name in names:
        (tmp_path / name).touch()
    assert names == all_changes(watch)


def test_many_changes_come_in_parts(watch: DirectoryWatch, tmp_path: Path) -> None:
    """Each report is bounded, and none is missing in the end."""
    names = {f"{number:04}" for number in range(1000)}
    for name in names:
        (tmp_path / name).touch()
    first = watch.changes()
    assert 0 < len(first) < 1000
    assert names == first | all_changes(watch)


def test_changes_that_the_system_did_not_keep_are_an_error(tmp_path: Path) -> None:
    """The caller learns once that names are missing."""
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    watch = DirectoryWatch(tmp_path)
    names = [os.fsencode(tmp_path / name) for name in "ac"]
    Path(tmp_path / "a").touch()
    for number in range(limit // 2 + 1):
        os.rename(names[number % 2], names[1 - number % 2])  # two events
    with pytest.raises(ChangesLost):
        all_changes(watch)
    (tmp_path / "b").touch()
    assert {"b"} == all_changes(watch)
    watch.close()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOSYS])
def test_a_system_without_a_watch_is_an_error(
    tmp_path: Path, break_os: BreakOs, number: int
) -> None:
    """No watch is left, or the system has none."""
    break_os("call_libc", number, module=directory)
    with pytest.raises(OSError, match=os.strerror(number)):
        DirectoryWatch(tmp_path)


def test_only_a_directory_is_watched(tmp_path: Path) -> None:
    """A file or a missing path is an error, and leaves no descriptor."""
    (tmp_path / "file").touch()
    before = os.listdir("/proc/self/fd")
    for name in ("file", "missing"):
        with pytest.raises(OSError, match=r"Not a directory|No such file"):
            DirectoryWatch(tmp_path / name)
    assert len(before) == len(os.listdir("/proc/self/fd"))
