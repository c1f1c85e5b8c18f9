"""Unnamed files in memory, for data that must neither wait for a disk nor fail if one is full.

Processes that inherit a file share records in it. A record that a killed process left half written
has a wrong checksum. Reads and writes are system calls, so that a lack of memory is an error and no
SIGBUS.
"""

import fcntl
import os
import struct
import zlib

#: The file is never executed; hardened systems require this flag (vm.memfd_noexec=2).
MFD_NOEXEC_SEAL = 0x8

_HEADER = struct.Struct("<QII")  # the record's number, bytes of its data, checksum


def make_memory_file(name: str) -> int:
    """Return the descriptor of a new, empty file in memory; raises OSError.

    It is on no mounted file system, so that a full /dev/shm or /tmp does not matter, and is removed
    when no process has it open. `name` is shown in /proc only.
    """
    try:
        return os.memfd_create(name, os.MFD_CLOEXEC | MFD_NOEXEC_SEAL)
    except OSError:  # Linux before 6.3 does not know the flag
        return os.memfd_create(name, os.MFD_CLOEXEC)


def write_record(fd: int, offset: int, number: int, data: bytes, max_bytes: int) -> bool:
    """Write a record of at most `max_bytes`; return whether it is whole.

    Raises OSError, for a larger record before anything is written.
    """
    record = _HEADER.pack(number, len(data), _checksum(number, data)) + data
    if len(record) > max_bytes:
        raise OSError(f"a record takes {len(record)} bytes of at most {max_bytes}")
    return os.pwrite(fd, record, offset) == len(record)


def read_record(fd: int, offset: int, max_bytes: int) -> tuple[int, bytes] | None:
    """Return a record's number and data, 0 and b"" if there is none, None if it is not whole."""
    header = os.pread(fd, _HEADER.size, offset)
    if len(header) < _HEADER.size:
        return 0, b""
    number, size, checksum = _HEADER.unpack(header)
    data = os.pread(fd, min(size, max_bytes), offset + _HEADER.size)
    is_whole = len(data) == size and checksum == _checksum(number, data)
    return (number, data) if is_whole else None


def _checksum(number: int, data: bytes) -> int:
    return zlib.crc32(data, number & 0xFFFFFFFF)


def try_lock(fd: int, offset: int, operation: int) -> bool:
    """Lock a byte by LOCK_EX or LOCK_SH until the process ends or `unlock`s it.

    Return whether no other process has locked it; raises OSError.
    """
    try:
        fcntl.lockf(fd, operation | fcntl.LOCK_NB, 1, offset)
    except (BlockingIOError, PermissionError):  # POSIX leaves open which of the two it is
        return False
    return True


def unlock(fd: int, offset: int) -> None:
    """Unlock a byte; raises OSError."""
    fcntl.lockf(fd, fcntl.LOCK_UN, 1, offset)
