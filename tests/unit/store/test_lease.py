import os
from pathlib import Path

import pytest

from astralog.store.files import Lease
from tests.support.fake_system import Disk


def held_below(path: Path) -> list[str]:
    """Return this process's open files below a directory."""
    held = [os.readlink(entry.path) for entry in os.scandir("/proc/self/fd") if entry.is_symlink()]
    return [name for name in held if name.startswith(os.fspath(path))]


@pytest.mark.parametrize("name", ["", "x.lock"])
def test_one_process_holds_a_lease(tmp_path: Path, name: str) -> None:
    """Another one gets it when the holder releases it, and has no file open before."""
    first = Lease.acquire(tmp_path, name)
    assert first
    first.check()
    before = held_below(tmp_path)
    assert Lease.acquire(tmp_path, name) is None
    assert held_below(tmp_path) == before
    first.close()
    second = Lease.acquire(tmp_path, name)
    assert second
    second.close()
    assert held_below(tmp_path) == []


@pytest.mark.parametrize("name", ["", "x.lock"])
def test_missing_directory_is_not_created(tmp_path: Path, name: str) -> None:
    """At the mount point of an unmounted disk no file is created."""
    with pytest.raises(FileNotFoundError):
        Lease.acquire(tmp_path / "data", name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "x.lock"])
def test_lease_of_a_replaced_directory_fails(tmp_path: Path, name: str) -> None:
    """The lock of the directory that was moved away protects nothing."""
    directory = tmp_path / "data"
    directory.mkdir()
    lease = Lease.acquire(directory, name)
    assert lease
    directory.rename(tmp_path / "away")
    directory.mkdir()
    (directory / "x.lock").touch()
    with pytest.raises(OSError, match="directory was replaced"):
        lease.check()
    lease.close()


@pytest.mark.parametrize("name", ["", "x.lock"])
def test_read_only_directory_is_not_leased(tmp_path: Path, disk: Disk, name: str) -> None:
    """No file of it stays open, so its disk can be unmounted."""
    disk.flags = os.ST_RDONLY
    with pytest.raises(OSError, match="Read-only file system"):
        Lease.acquire(tmp_path, name)
    assert held_below(tmp_path) == []
