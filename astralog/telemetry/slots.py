"""The slots of the workers' counts, after the history in the shared memory file.

The master makes it and its workers inherit it. Each worker claims a slot with a lock that the
kernel releases when the worker dies, however it dies, and continues the counts of the last
owner. So nothing is moved at a death, and the sum over all slots is right at any moment.

A slot has two halves that are written in turn: an interrupted write leaves the other half whole.
Reads and writes are system calls, so that a lack of memory is an error and no SIGBUS.
"""

import fcntl
import itertools
import os
import struct
import zlib
from collections.abc import Iterator, MutableMapping

from astralog.memory_file import make_memory_file
from astralog.telemetry.counters import EMPTY, Snapshot, decode_snapshot, encode_snapshot, merge
from astralog.telemetry.history import HISTORY_BYTES

#: The file's name, as /proc shows it; a new layout takes a new number.
NAME = "astralog-metrics-4"

#: The variable in which a master passes the file's descriptor to the next one at an upgrade.
VARIABLE = "_ASTRALOG_METRICS_FD"

#: The largest encoded snapshot, a hundred times the usual one; unwritten pages take no memory.
HALF_BYTES = 512 * 1024
SLOT_BYTES = 2 * HALF_BYTES

#: Offset of the first slot, after the history.
SLOTS_OFFSET = HISTORY_BYTES

#: Attempts to read a slot that is written to meanwhile.
READ_ATTEMPTS = 10

_HEADER = struct.Struct("<QII")  # number of the write, bytes of the snapshot, checksum


class SnapshotTooLarge(OSError):
    """A snapshot does not fit into its slot."""


def open_shared_file(environ: MutableMapping[str, str]) -> int:
    """Return the file of the previous master at an upgrade, else a new one.

    Raises OSError.
    """
    passed = environ.pop(VARIABLE, "")
    if passed.isdecimal() and _is_shared_file(passed):
        os.set_inheritable(int(passed), False)
        return int(passed)
    return make_memory_file(NAME)


def _is_shared_file(fd: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith(f"/memfd:{NAME} ")
    except OSError:
        return False


def pass_on(fd: int, environ: MutableMapping[str, str]) -> None:
    """Pass the file to the program that this process will execute with this environment."""
    os.set_inheritable(fd, True)
    environ[VARIABLE] = str(fd)


class Slot:
    """One worker's part of the shared file."""

    def __init__(self, fd: int, number: int) -> None:
        """Continue the counts of the last owner; the caller has claimed the slot."""
        self._fd = fd
        self.number = number
        self._writes, data = _read(fd, number)
        self._before = decode_snapshot(data).without_gauges().bounded() if data else EMPTY
        self._published = b""
        self.publish(EMPTY)

    def publish(self, snapshot: Snapshot) -> None:
        """Publish this worker's counts; if it raises OSError, the published ones stay."""
        data = encode_snapshot(merge([self._before, snapshot]))
        if data == self._published:
            return
        if _HEADER.size + len(data) > HALF_BYTES:
            raise SnapshotTooLarge(f"metrics take {len(data)} bytes of at most {HALF_BYTES}")
        writes = self._writes + 1
        record = _HEADER.pack(writes, len(data), _checksum(writes, data)) + data
        written = os.pwrite(self._fd, record, _offset(self.number, writes))
        if written == len(record):
            self._writes, self._published = writes, data

    def merge_all(self) -> Snapshot:
        """Return the published values of all workers, those of dead workers without gauges."""
        return merge(self._read_all())

    def _read_all(self) -> Iterator[Snapshot]:
        for number in range(-(-(os.fstat(self._fd).st_size - SLOTS_OFFSET) // SLOT_BYTES)):
            _, data = _read(self._fd, number)
            if data:
                snapshot = decode_snapshot(data)
                is_alive = number == self.number or _is_claimed(self._fd, number)
                yield snapshot if is_alive else snapshot.without_gauges()


def claim(fd: int) -> Slot:
    """Claim the first slot without a living owner, until this process ends; raises OSError."""
    free = (number for number in itertools.count() if _try_lock(fd, number, fcntl.LOCK_EX))
    return Slot(fd, next(free))


def _is_claimed(fd: int, number: int) -> bool:
    """Return whether another process has claimed the slot."""
    if not _try_lock(fd, number, fcntl.LOCK_SH):
        return True
    fcntl.lockf(fd, fcntl.LOCK_UN, 1, _offset(number, 0))
    return False


def _try_lock(fd: int, number: int, operation: int) -> bool:
    """Lock the slot, and return whether no other process has; raises OSError."""
    try:
        fcntl.lockf(fd, operation | fcntl.LOCK_NB, 1, _offset(number, 0))
    except (BlockingIOError, PermissionError):  # POSIX leaves open which of the two it is
        return False
    return True


def _read(fd: int, number: int) -> tuple[int, bytes]:
    """Return the number and the newest snapshot of a slot, or 0 and b"" if there is none.

    If one half is not whole, a writer is at work or was killed there. The other half is the newest
    if a second read finds it unchanged; else it may be older than the replaced one.
    """
    halves: list[tuple[int, bytes] | None] = []
    for _ in range(READ_ATTEMPTS):
        before, halves = halves, [_read_half(fd, _offset(number, half)) for half in range(2)]
        if None not in halves or halves == before:
            break
    return max(filter(None, halves), default=(0, b""))


def _read_half(fd: int, offset: int) -> tuple[int, bytes] | None:
    """Return the number and the snapshot of a half, None if it is not whole."""
    header = os.pread(fd, _HEADER.size, offset)
    if len(header) < _HEADER.size:
        return 0, b""
    writes, size, checksum = _HEADER.unpack(header)
    data = os.pread(fd, min(size, HALF_BYTES), offset + _HEADER.size)
    is_whole = len(data) == size and checksum == _checksum(writes, data)
    return (writes, data) if is_whole else None


def _offset(number: int, writes: int) -> int:
    return SLOTS_OFFSET + number * SLOT_BYTES + writes % 2 * HALF_BYTES


def _checksum(writes: int, data: bytes) -> int:
    return zlib.crc32(data, writes & 0xFFFFFFFF)
