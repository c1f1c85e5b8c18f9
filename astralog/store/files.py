"""Files of the data directory: sync, rename, lock, remove, free disk, calls of the C library.

A writer holds its open segment by `flock`; a sealed segment never changes. Their names are in
`names`.
"""

import contextlib
import ctypes
import errno
import fcntl
import logging
import os
import signal
import stat
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self

from astralog.errors import Shortage
from astralog.store.names import MAX_NUMBER, SEALED_FORMS, Form, SegmentName

log = logging.getLogger(__name__)

DIRECTORY_MODE = 0o750
FILE_MODE = 0o640

#: Bytes of a setting for free disk per inode that is kept free, too.
BYTES_PER_INODE = 256 * 1024

#: File systems that do not know their inodes report this number or more (-1 as 64 bits).
UNKNOWN_INODES = 1 << 63

#: Of linux/fcntl.h and linux/fs.h.
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1

#: Errors of a file system, kernel or C library without this rename.
_UNKNOWN_RENAME = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)

#: Errors of NFS for locks of a file that is open read-only.
_UNKNOWN_LOCK = (errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP)


class Space(NamedTuple):
    """The bytes and inodes of a file system, and those that are free for this process.

    Inodes are None on a file system that allocates them on demand, such as btrfs.
    """

    total: int
    free: int
    total_inodes: int | None
    free_inodes: int | None
    is_read_only: bool

    def kept_inodes(self, kept_bytes: int) -> int:
        """Return the number of inodes to keep free in addition to `kept_bytes`."""
        return kept_inodes(kept_bytes, self.total, self.total_inodes or 0)

    def check(self, kept_bytes: int, size: int = 0, held_inodes: int = 0) -> None:
        """Raise Shortage if too few inodes are free, or too few bytes to write `size` more.

        The inodes of files that the caller has open for writing count as free.
        """
        if self.free - size < kept_bytes or not self.free:
            raise Shortage("bytes", self.free, kept_bytes)
        if self.free_inodes is not None and self.free_inodes * BYTES_PER_INODE <= kept_bytes:
            kept = self.kept_inodes(kept_bytes)
            if self.free_inodes + held_inodes < kept:
                raise Shortage("inodes", self.free_inodes, kept)


def kept_inodes(kept_bytes: int, total_bytes: int, total_inodes: int) -> int:
    """Return the number of inodes to keep free in addition to `kept_bytes`.

    That is one per BYTES_PER_INODE, at least one, and at most the share of all inodes that
    `kept_bytes` is of all bytes.
    """
    share = kept_bytes * total_inodes // max(total_bytes, 1)
    return max(min(kept_bytes // BYTES_PER_INODE, share), 1) if kept_bytes else 0


def make_directory(path: Path) -> None:
    """Create the data directory if it is missing, for the owner and the group only.

    Its name and those of its parents are durable afterwards, also if they existed: an interrupted
    start may have left them unsynced.
    """
    if not path.is_dir():
        path.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        path.chmod(DIRECTORY_MODE)
    directory = path.resolve()
    while not directory.is_mount():
        directory = directory.parent
        # An unreadable parent was created by someone else, long before.
        with contextlib.suppress(PermissionError):
            sync_directory(directory)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable; raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def replace_file(path: Path, content: bytes, *, is_synced: bool) -> None:
    """Replace a file as a whole, durably if `is_synced`; raises OSError."""
    draft = path.with_name(path.name + ".new")
    fd = os.open(draft, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, FILE_MODE)
    with open(fd, "wb") as file:
        file.write(content)
        if is_synced:
            file.flush()
            os.fsync(fd)
    draft.rename(path)
    if is_synced:
        sync_directory(path.parent)


def space(path: Path) -> Space:
    """Return the size and the free space of the file system of `path`; raises OSError."""
    status = os.statvfs(path)
    block = status.f_frsize
    inodes, free_inodes = status.f_files, status.f_favail
    has_inodes = 0 < inodes < UNKNOWN_INODES > free_inodes
    return Space(
        status.f_blocks * block,
        status.f_bavail * block,
        inodes if has_inodes else None,
        free_inodes if has_inodes else None,
        status.f_flag & os.ST_RDONLY != 0,
    )


def is_in_place(fd: int, path: Path) -> bool:
    """Return whether the open file is still at `path`, not replaced or removed; raises OSError."""
    return has_status(path, os.fstat(fd))


def has_status(path: Path, status: os.stat_result) -> bool:
    """Return whether the file with a status is still at `path`; raises OSError."""
    try:
        return os.path.samestat(status, os.stat(path))
    except FileNotFoundError:
        return False


def drop_from_page_cache(fd: int, size: int) -> None:
    """Drop the first `size` bytes of a synced file from the page cache, if that is supported."""
    with contextlib.suppress(OSError):
        os.posix_fadvise(fd, 0, size, os.POSIX_FADV_DONTNEED)


def regular_files(directory: Path | str) -> Iterator[str]:
    """Yield the names of a directory's regular files; raises OSError.

    Other entries, such as a link to a segment, are no segments, whatever their names.
    """
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_file(follow_symlinks=False):
                yield entry.name


def status_of(path: Path | str) -> os.stat_result:
    """Return the status of a regular file; raises OSError, FileNotFoundError for any other file."""
    status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode):
        raise FileNotFoundError(errno.ENOENT, "not a regular file", os.fspath(path))
    return status


def find_status(path: Path | str) -> os.stat_result | None:
    """Return the status of a regular file, None if there is none; raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        return status_of(path)
    return None


def open_regular(path: Path, flags: int) -> int:
    """Open a regular file without blocking; raises OSError as `status_of` does."""
    status_of(path)
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def is_taken(directory: Path, segment: SegmentName) -> bool:
    """Return whether a file with the name of the sealed segment exists, in any form."""
    return any(os.path.lexists(segment.path(directory, form)) for form in SEALED_FORMS)


@contextlib.contextmanager
def removal_lock(fd: int) -> Iterator[None]:
    """Prevent the removal and compression of a sealed segment; `fd` is its plain file.

    Without the lock, a removed segment could come back compressed. File systems without this lock
    have no such protection.
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


def remove_sealed(directory: Path, name: str) -> int:
    """Remove all forms of a sealed segment; return their number. Raises OSError."""
    segment = SegmentName(name)
    with contextlib.ExitStack() as stack:
        # An unreadable file is not compressed either.
        with contextlib.suppress(FileNotFoundError, PermissionError):
            fd = open_regular(segment.path(directory, Form.PLAIN), os.O_RDONLY)
            stack.callback(os.close, fd)
            stack.enter_context(removal_lock(fd))
        return sum(_remove(segment.path(directory, form)) for form in SEALED_FORMS)


def _remove(path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        status_of(path)
        path.unlink()
        return True
    return False


def seal_file(path: Path, size: int) -> None:
    """Rename a complete, synced segment to its final name, or remove it if it is empty.

    If that name is taken, it gets another one. Raises OSError.
    """
    if size:
        _rename_to_free_name(path)
    else:
        path.unlink()
    sync_directory(path.parent)


def _rename_to_free_name(path: Path) -> None:
    segment = SegmentName.of_open_file(path)
    for name in (segment, *map(segment.numbered, range(1, MAX_NUMBER + 1))):
        if is_taken(path.parent, name):
            continue
        with contextlib.suppress(FileExistsError):
            rename_new(path, name.path(path.parent, Form.PLAIN))
            if name != segment:
                first, other = segment.file(Form.PLAIN), name.file(Form.PLAIN)
                log.error("%s exists already; sealed as %s", first, other)
            return
    raise FileExistsError(errno.EEXIST, f"{MAX_NUMBER + 1} names for it are taken")


def rename_new(source: Path, target: Path) -> None:
    """Rename a file; raises FileExistsError if `target` exists.

    On a file system without an atomic check (NFS), a file created at that very moment would be
    replaced; no process of this service creates one with a name that was used before.
    """
    arguments = (_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target))
    try:
        call_libc("renameat2", *arguments, _RENAME_NOREPLACE)
    except OSError as error:
        if error.errno not in _UNKNOWN_RENAME:
            raise
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        os.rename(source, target)


# --- Locks on bytes of a file, which belong to an open file and not to a process (fcntl(2),
# --- F_OFD_SETLK). They go with its last descriptor, and are independent of `flock`.

#: struct flock of fcntl(2): type, whence, start, length, process.
_LOCK = struct.Struct("hhqqi0q")


def lock_byte(fd: int, offset: int) -> None:
    """Lock one byte; raises OSError, BlockingIOError if another open file has locked it."""
    _set_lock(fd, fcntl.F_WRLCK, offset)


def unlock_byte(fd: int, offset: int) -> None:
    _set_lock(fd, fcntl.F_UNLCK, offset)


def _set_lock(fd: int, kind: int, offset: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _LOCK.pack(kind, os.SEEK_SET, offset, 1, 0))


# --- One process per directory


class Lease:
    """The exclusive `flock` of the one process that is the housekeeper, the compressor or forward.

    It is on the directory itself or on a lock file in it. `close` releases it, or the kernel when
    the process ends, so that another process can take over.
    """

    def __init__(self, path: Path, fd: int) -> None:
        self._path = path
        self._fd = fd

    @classmethod
    def acquire(cls, directory: Path, lock_name: str = "") -> Self | None:
        """Lock a directory, or a lock file in it, which is created if it is missing.

        Return None if another process holds the lock. Raises OSError as `check` does, and if there
        is no such directory.
        """
        flags = os.O_CREAT | os.O_RDWR if lock_name else os.O_RDONLY | os.O_DIRECTORY
        path = directory / lock_name
        lease = cls(path, os.open(path, flags, FILE_MODE))
        try:
            lease.check()
            fcntl.flock(lease._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lease.close()
            return None
        except BaseException:
            lease.close()
            raise
        return lease

    def check(self) -> None:
        """Raise OSError if the directory was replaced or is read-only.

        The holder closes the lease then, so that the disk can be unmounted.
        """
        if not os.path.samestat(os.fstat(self._fd), os.stat(self._path)):
            raise OSError(errno.ESTALE, "the directory was replaced")
        if space(self._path).is_read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def close(self) -> None:
        os.close(self._fd)


# --- Calls of the C library that Python does not offer

_LIBC = ctypes.CDLL(None, use_errno=True)


def call_libc(name: str, *args: int | bytes) -> int:
    """Return the result of a function; raises OSError, ENOSYS if the library lacks the function."""
    function = getattr(_LIBC, name, None)
    result = -1
    number = errno.ENOSYS
    if function is not None:
        result = int(function(*args))
        number = ctypes.get_errno()
    if result < 0:
        raise OSError(number, os.strerror(number))
    return result


#: From linux/prctl.h.
_SET_PARENT_DEATH_SIGNAL = 1


def end_with_parent(parent: int) -> None:
    """Make the kernel kill this process when its parent dies; exit if it has died already."""
    call_libc("prctl", _SET_PARENT_DEATH_SIGNAL, int(signal.SIGKILL))
    if os.getppid() != parent:
        sys.exit(0)
