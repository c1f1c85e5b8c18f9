"""The data directory: its segments' names, its syncs, and its free disk.

`<UTC start, microseconds>-<pid>.ndjson.open` is being written and held by `flock`;
`<...>.ndjson` is sealed and never changes, nor does `<...>.ndjson.zst`, which is the same segment
compressed. Lexical order is time order.
"""

import contextlib
import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from astralog.store import libc

log = logging.getLogger(__name__)

OPEN_SUFFIX = ".ndjson.open"
SEALED_SUFFIX = ".ndjson"
COMPRESSED_SUFFIX = ".ndjson.zst"

#: The forms of a sealed segment, of which both may be there while it is being compressed.
SEALED_FORMS = (SEALED_SUFFIX, COMPRESSED_SUFFIX)

DIRECTORY_MODE = 0o750

#: Names that are tried for a sealed segment.
SEAL_ATTEMPTS = 100

#: Of linux/fcntl.h and linux/fs.h.
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1

#: How a file system, a kernel or a C library says that it has no such rename.
_UNKNOWN_RENAME = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)

#: How NFS says that it locks no file that is open for reading alone.
_UNKNOWN_LOCK = (errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP)


class Space(NamedTuple):
    """The bytes of a file system, and those that may still be written to it."""

    total: int
    free: int
    is_read_only: bool


def make_directory(path: Path) -> None:
    """Make the data directory where it is missing, for the owner and the group only.

    Its name is durable when this returns, and so are those of its parents, whoever made them: a
    start that was cut off may have left them unsynced.
    """
    if not path.is_dir():
        path.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        path.chmod(DIRECTORY_MODE)
    directory = path.resolve()
    while not directory.is_mount():
        directory = directory.parent
        # One that may not be read was made by someone else, long before.
        with contextlib.suppress(PermissionError):
            sync_directory(directory)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable; raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def space(path: Path) -> Space:
    """Return how large and how full the file system of `path` is; raises OSError."""
    status = os.statvfs(path)
    return Space(
        total=status.f_blocks * status.f_frsize,
        free=status.f_bavail * status.f_frsize,
        is_read_only=bool(status.f_flag & os.ST_RDONLY),
    )


def is_same_file(fd: int, path: Path) -> bool:
    """Return whether the open file is still the one at `path`; raises OSError."""
    return os.path.samestat(os.fstat(fd), os.stat(path))


def drop_from_page_cache(fd: int, size: int) -> None:
    """Take the first `size` bytes of a synced file out of the page cache, where that works."""
    with contextlib.suppress(OSError):
        os.posix_fadvise(fd, 0, size, os.POSIX_FADV_DONTNEED)


def sealed_name(name: str) -> str | None:
    """Return a sealed segment's name without the suffix of its form, None for any other file's."""
    for suffix in SEALED_FORMS:
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return None


def is_sealed(path: Path) -> bool:
    """Return whether the segment with this open name is there sealed, in any form."""
    stem = path.name.removesuffix(OPEN_SUFFIX)
    return any(os.path.lexists(path.with_name(stem + suffix)) for suffix in SEALED_FORMS)


@contextlib.contextmanager
def removal_lock(fd: int) -> Iterator[None]:
    """Keep a sealed segment from being removed and from getting its compressed name meanwhile.

    `fd` is its plain file. Without the lock, what was removed could come back compressed. Where
    the file system has no such lock, it is none.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _UNKNOWN_LOCK:
            raise
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_UN)


def remove_sealed(directory: Path, stem: str) -> bool:
    """Remove a sealed segment in all its forms; return whether it was there. Raises OSError."""
    plain = directory / (stem + SEALED_SUFFIX)
    with contextlib.ExitStack() as stack:
        # What may not be read is not compressed either.
        with contextlib.suppress(FileNotFoundError, PermissionError):
            stack.enter_context(removal_lock(stack.enter_context(plain.open("rb")).fileno()))
        return sum(_remove(directory / (stem + suffix)) for suffix in SEALED_FORMS) > 0


def _remove(path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
        return True
    return False


def seal_file(path: Path, size: int) -> None:
    """Give a complete, synced segment its final name, or remove it where it is empty.

    Where that name is taken, it gets another one. Raises OSError.
    """
    if size:
        _rename_to_free_name(path)
    else:
        path.unlink()
    sync_directory(path.parent)


def _rename_to_free_name(path: Path) -> None:
    stem = path.name.removesuffix(OPEN_SUFFIX)
    for number in range(SEAL_ATTEMPTS):
        name = f"{stem}-{number}" if number else stem
        if is_sealed(path.with_name(name + OPEN_SUFFIX)):
            continue
        target = path.with_name(name + SEALED_SUFFIX)
        with contextlib.suppress(FileExistsError):
            rename_new(path, target)
            if number:
                log.error("%s is there already; sealed as %s", stem + SEALED_SUFFIX, target.name)
            return
    raise FileExistsError(errno.EEXIST, f"{SEAL_ATTEMPTS} names for it are taken")


def rename_new(source: Path, target: Path) -> None:
    """Rename a file; raises FileExistsError where `target` is there, whoever made it.

    On a file system that cannot do both at once (NFS), a file that is made at that very moment
    would be replaced; no process of this service makes one of a name that was ever used.
    """
    arguments = (_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target))
    try:
        libc.call("renameat2", *arguments, _RENAME_NOREPLACE)
    except OSError as error:
        if error.errno not in _UNKNOWN_RENAME:
            raise
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        os.rename(source, target)
