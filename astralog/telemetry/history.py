"""The samples of the last hour, in memory that all workers share and that outlives each of them.

Every ten seconds, whichever worker is first takes a sample of all. A record has a place by its
number, which is the time's, so that a new one takes the place of the one from an hour before. Its
checksum tells whether it is whole.
"""

import fcntl
import logging
import os
import struct
import time
import zlib
from collections.abc import Callable

import gevent

from astralog.telemetry.samples import Sample, decode, encode

log = logging.getLogger(__name__)

SAMPLE_SECONDS = 10
HISTORY_SECONDS = 3600

#: Samples that are kept: as many as there are intervals, and one before.
SAMPLES = HISTORY_SECONDS // SAMPLE_SECONDS + 1

#: The most that a record takes.
RECORD_BYTES = 4096

#: What all take, for whoever has other uses for the rest of the file.
HISTORY_BYTES = SAMPLES * RECORD_BYTES

_HEADER = struct.Struct("<QII")  # the record's number, bytes of the sample, checksum


class History:
    """The last hour; `take` returns the sample of this moment, and may raise."""

    def __init__(self, take: Callable[[], Sample]) -> None:
        self._take = take
        self._fd: int | None = None
        self._samples: list[Sample | None] = [None] * SAMPLES
        self._read_at = -1  # the number up to which these were read
        self._has_failed = False

    def start(self, fd: int | None) -> None:
        """Share the history through the file, whose first bytes are the history's, from now on."""
        self._fd = fd
        if fd is not None:
            gevent.spawn(self._sample_regularly)

    def _sample_regularly(self) -> None:
        while True:
            self.sample_once()
            gevent.sleep(SAMPLE_SECONDS - time.monotonic() % SAMPLE_SECONDS)

    def sample_once(self) -> None:
        """Take the sample that is due, unless another worker does or did.

        Of failures in a row, one is logged.
        """
        try:
            if self._fd is not None:
                self._sample(self._fd, _number())
        except Exception:
            if not self._has_failed:
                log.exception("the history has a gap")
            self._has_failed = True
        else:
            self._has_failed = False

    def _sample(self, fd: int, number: int) -> None:
        if _read(fd, number) or not _lock(fd):
            return
        try:
            if not _read(fd, number):  # as another worker did meanwhile
                _write(fd, number, encode(self._take()))
        finally:
            fcntl.lockf(fd, fcntl.LOCK_UN, 1, 0)

    def samples(self) -> list[Sample | None]:
        """Return the samples of the last hour, oldest first, None for each that is missing.

        It is kept until the next one is due.
        """
        number = _number()
        if number != self._read_at:
            numbers = range(number - SAMPLES + 1, number + 1)
            records = [_read(self._fd, one) if self._fd is not None else b"" for one in numbers]
            self._samples = [decode(data) if data else None for data in records]
            # The last one is taken at about this time.
            self._read_at = number if self._samples[-1] else -1
        return self._samples


def _lock(fd: int) -> bool:
    """Return whether no other worker takes a sample; the kernel frees a dead one's lock."""
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
    except (BlockingIOError, PermissionError):  # POSIX leaves open which of the two it is
        return False
    return True


def _write(fd: int, number: int, data: bytes) -> None:
    if _HEADER.size + len(data) > RECORD_BYTES:
        raise ValueError(f"a sample takes {len(data)} bytes")
    header = _HEADER.pack(number, len(data), _checksum(number, data))
    os.pwrite(fd, header + data, _offset(number))


def _read(fd: int, number: int) -> bytes:
    """Return the encoded sample, nothing where there is none, or half of one."""
    record = os.pread(fd, RECORD_BYTES, _offset(number))
    if len(record) < _HEADER.size:
        return b""
    known, size, checksum = _HEADER.unpack_from(record)
    data = record[_HEADER.size : _HEADER.size + size]
    return data if known == number and checksum == _checksum(number, data) else b""


def _number() -> int:
    """Return the number of the sample that is due, by a clock that all processes share."""
    return int(time.monotonic() // SAMPLE_SECONDS)


def _offset(number: int) -> int:
    return number % SAMPLES * RECORD_BYTES


def _checksum(number: int, data: bytes) -> int:
    return zlib.crc32(data, number & 0xFFFFFFFF)
