"""The data directory: its segments' names, its syncs, and the care of what lies in it.

`<UTC start, microseconds>-<pid>.ndjson.open` is being written and held by `flock`;
`<...>.ndjson` is sealed and never changes. Lexical order is time order.
"""

import contextlib
import fcntl
import logging
import os
import time
from pathlib import Path

log = logging.getLogger(__name__)

OPEN_SUFFIX = ".ndjson.open"
SEALED_SUFFIX = ".ndjson"
DIRECTORY_MODE = 0o750

#: Bytes read at once in the search for the last complete line.
BLOCK_BYTES = 1024 * 1024


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


def is_same_file(fd: int, path: Path) -> bool:
    """Tell whether the open file is still the one at `path`; raises OSError."""
    return os.path.samestat(os.fstat(fd), os.stat(path))


def uncache(fd: int, size: int) -> None:
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


def recover(directory: Path) -> None:
    """Seal every open segment that no process holds, each cut after its last complete line."""
    for path in sorted(directory.glob("*" + OPEN_SUFFIX)):
        try:
            recover_file(path)
        except OSError as error:
            log.error("cannot recover %s: %s", path.name, error.strerror)


def recover_file(path: Path, limit: int | None = None) -> None:
    """Seal the segment at `path` unless a process holds it, cut after its last complete line.

    What lies beyond `limit` bytes is cut too. Raises OSError; a file gone in between is fine.
    """
    try:
        fd = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return
    try:
        if not _take(fd, path):
            return
        before = os.fstat(fd).st_size
        after = _end_of_lines(fd, before if limit is None else limit)
        if after < before:
            os.ftruncate(fd, after)
        os.fsync(fd)
        seal_file(path, after)
        log.warning("recovered %s: kept %d bytes, cut %d", path.name, after, before - after)
    finally:
        os.close(fd)


def _take(fd: int, path: Path) -> bool:
    """Lock the file, and tell whether it is ours and still at `path`."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return is_same_file(fd, path)
    except (BlockingIOError, FileNotFoundError):
        return False


def _end_of_lines(fd: int, limit: int) -> int:
    """Return the end of the last line that is complete and lies before any hole.

    A hole is where the system lost a page in a power cut: it reads as zeros, which no line has.
    """
    end = position = 0
    while position < limit:
        block = os.pread(fd, min(BLOCK_BYTES, limit - position), position)
        if not block:
            break
        hole = block.find(b"\0")
        last = block.rfind(b"\n", 0, hole if hole >= 0 else len(block))
        if last >= 0:
            end = position + last + 1
        if hole >= 0:
            break
        position += len(block)
    return end


def retain(directory: Path, total_bytes: int, age_seconds: float) -> None:
    """Remove the oldest sealed segments beyond a total size and an age; 0 keeps all.

    The total counts open segments too, which are never removed.
    """
    if not (total_bytes or age_seconds):
        return
    sealed = {path: _stat(path) for path in sorted(directory.glob("*" + SEALED_SUFFIX))}
    total = sum(stat.st_size for stat in sealed.values() if stat)
    total += sum(s.st_size for path in directory.glob("*" + OPEN_SUFFIX) if (s := _stat(path)))
    oldest_kept = time.time() - age_seconds
    for path, stat in sealed.items():
        if stat is None:
            continue
        too_much = total_bytes and total > total_bytes
        too_old = age_seconds and stat.st_mtime < oldest_kept
        if not (too_much or too_old):
            break
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            log.error("cannot remove %s: %s", path.name, error.strerror)
            break
        total -= stat.st_size
        log.info("removed %s: beyond the %s to keep", path.name, "size" if too_much else "age")


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:  # another process sealed or removed it
        return None
