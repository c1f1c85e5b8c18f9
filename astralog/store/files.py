"""The data directory: its segments' names, its syncs, and its free disk.

`<UTC start, microseconds>-<pid>.ndjson.open` is being written and held by `flock`;
`<...>.ndjson` is sealed and never changes. Lexical order is time order.
"""

import contextlib
import os
from pathlib import Path

OPEN_SUFFIX = ".ndjson.open"
SEALED_SUFFIX = ".ndjson"
DIRECTORY_MODE = 0o750


def make_directory(path: Path) -> None:
    """Make the data directory where it is missing, for the owner and the group only.

    It is durable when this returns, and so are the parents that were made for it.
    """
    if path.is_dir():
        return
    missing = [parent for parent in (path, *path.parents) if not parent.exists()]
    path.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
    path.chmod(DIRECTORY_MODE)
    for made in missing:
        sync_directory(made.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable; raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def free_bytes(path: Path) -> int:
    """Return how much may still be written to the file system of `path`; raises OSError."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def total_bytes(path: Path) -> int:
    """Return the size of the file system of `path`; raises OSError."""
    status = os.statvfs(path)
    return status.f_blocks * status.f_frsize


def is_same_file(fd: int, path: Path) -> bool:
    """Return whether the open file is still the one at `path`; raises OSError."""
    return os.path.samestat(os.fstat(fd), os.stat(path))


def drop_from_page_cache(fd: int, size: int) -> None:
    """Take the first `size` bytes of a synced file out of the page cache, where that works."""
    with contextlib.suppress(OSError):
        os.posix_fadvise(fd, 0, size, os.POSIX_FADV_DONTNEED)


def sealed_path(path: Path) -> Path:
    """Return the name that an open segment gets when it is sealed."""
    return path.with_name(path.name.removesuffix(OPEN_SUFFIX) + SEALED_SUFFIX)


def seal_file(path: Path, size: int) -> None:
    """Give a complete, synced segment its final name, or remove it where it is empty.

    Raises OSError.
    """
    if size:
        path.rename(sealed_path(path))
    else:
        path.unlink()
    sync_directory(path.parent)
