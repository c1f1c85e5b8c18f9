"""Small file systems that are mounted for a row, turned read-only under the service, and mended."""

import contextlib
import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from tests.support.service import wait_for

MIB = 1024 * 1024
DISK_BYTES = 64 * MIB

#: Flags of mount(2).
MS_RDONLY = 1
MS_REMOUNT = 32


@contextlib.contextmanager
def small_disk(path: Path, inodes: int = 0) -> Iterator[None]:
    """Mount a small file system in memory, optionally with `inodes`, while the block runs."""
    path.mkdir(exist_ok=True)
    options = f"size={DISK_BYTES},nr_inodes={inodes},mode=0755"  # 0 is no limit
    _run("mount", "-t", "tmpfs", "-o", options, "astralog-faults", path)
    try:
        yield
    finally:
        _run("umount", "--lazy", path)


@contextlib.contextmanager
def ext4_disk(path: Path) -> Iterator[None]:
    """Mount a small ext4, which turns read-only at an error, while the block runs.

    Its image is next to `path`; its loop device is removed with its last mount.
    """
    path.mkdir(exist_ok=True)
    with _image(path).open("wb") as file:
        file.truncate(DISK_BYTES)
    _run("mkfs.ext4", "-q", _image(path))
    mount_ext4(path)
    try:
        yield
    finally:
        if path.is_mount():
            _run("umount", "--lazy", path)


def mount_ext4(path: Path) -> None:
    """Mount the ext4 of `ext4_disk`, which replays its journal."""
    _run("mount", "-o", "loop,errors=remount-ro", _image(path), path)


def fail_ext4(path: Path) -> None:
    """Make the ext4 abort its journal, as after an error that it cannot repair."""
    _run("mount", "-o", "remount,abort", path)


def unmount(path: Path) -> None:
    """Unmount a file system as soon as no file on it is open."""
    wait_for(lambda: _succeeds("umount", path))


def remount(path: Path, *, read_only: bool) -> None:
    """Remount a file system read-only or writable.

    Read-only is rejected while any file is open for writing, as for every administrator, so that it
    is tried until it comes between two segments.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    flags = MS_REMOUNT | (MS_RDONLY if read_only else 0)
    wait_for(lambda: any(libc.mount(None, bytes(path), None, flags, None) == 0 for _ in range(50)))


def can_mount() -> bool:
    """Return whether a small file system can be mounted here."""
    return _works(small_disk)


def can_mount_ext4() -> bool:
    """Return whether an ext4 in a file can be made and mounted here."""
    return shutil.which("mkfs.ext4") is not None and _works(ext4_disk)


@functools.cache
def _works(disk: Callable[[Path], AbstractContextManager[None]]) -> bool:
    if os.geteuid() != 0:
        return False
    with tempfile.TemporaryDirectory(prefix="astralog-mount-") as path:
        try:
            with disk(Path(path) / "disk"):
                return True
        except subprocess.CalledProcessError:  # a container, for example, may not mount
            return False


def _image(path: Path) -> Path:
    return path.with_name(path.name + ".img")


def _succeeds(*command: str | Path) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True)
