"""The slots of the workers' counts, after the history in the shared memory file.

The master makes it and its workers inherit it. Each worker claims a slot with a lock that the
kernel releases when the worker dies, however it dies, and continues the counts of the last
owner. So nothing is moved at a death, and the sum over all slots is right at any moment.

A slot has two halves that are written in turn: an interrupted write leaves the other half whole.
"""

import fcntl
import itertools
import os
from collections.abc import Iterator, MutableMapping

from astralog.memory_file import make_memory_file, read_record, try_lock, unlock, write_record
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


def open_shared_file(environ: MutableMapping[str, str]) -> int:
    """Return the previous master's file at an upgrade, else a new one. Raises OSError."""
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
        writes = self._writes + 1
        if write_record(self._fd, _offset(self.number, writes), writes, data, HALF_BYTES):
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
    offsets = ((number, _offset(number, 0)) for number in itertools.count())
    return Slot(fd, next(number for number, at in offsets if try_lock(fd, at, fcntl.LOCK_EX)))


def _is_claimed(fd: int, number: int) -> bool:
    """Return whether another process has claimed the slot."""
    offset = _offset(number, 0)
    if not try_lock(fd, offset, fcntl.LOCK_SH):
        return True
    unlock(fd, offset)
    return False


def _read(fd: int, number: int) -> tuple[int, bytes]:
    """Return the number and the newest snapshot of a slot, or 0 and b"" if there is none.

    If one half is not whole, a writer is at work or was killed there. The other half is the newest
    if a second read finds it unchanged; else it may be older than the replaced one.
    """
    halves: list[tuple[int, bytes] | None] = []
    for _ in range(READ_ATTEMPTS):
        before = halves
        halves = [read_record(fd, _offset(number, half), HALF_BYTES) for half in range(2)]
        if None not in halves or halves == before:
            break
    return max(filter(None, halves), default=(0, b""))


def _offset(number: int, writes: int) -> int:
    return SLOTS_OFFSET + number * SLOT_BYTES + writes % 2 * HALF_BYTES
