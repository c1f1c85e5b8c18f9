"""Token buckets that all workers share: how many bytes each token may send per second.

A bucket is one number, the moment at which it will be full again by CLOCK_MONOTONIC, which all
processes share and no change of the wall clock moves (the generic cell rate algorithm). A bucket
that nobody used for a while is thus the same as a new one, so nothing has to be refilled, and a
dead worker leaves nothing to repair. A token without a rate has no bucket.

The master makes the memory and its workers inherit it, so that a reload keeps the buckets. A batch
pays 5 µs for its bucket (measured; two thirds of it for the lock): one of 500 logs takes about 1 ms
in all.
"""

import fcntl
import mmap
import os
import struct
import time
import weakref

from astralog.errors import Rejection, rate_limited
from astralog.memory_file import make_memory_file

#: Size of a burst, in seconds of the rate.
BURST_SECONDS = 10.0

#: Buckets in the memory, three times the tokens that can be limited at the same time; and the
#: number of neighbours among which a token's bucket may be. A token without a bucket there takes
#: over the fullest one.
BUCKETS = 32 * 1024
NEIGHBOURS = 16

#: Attempts to lock the memory, of a microsecond each. A process that holds the lock longer was
#: suspended within a few instructions; without waiting for it, the charge of one batch can be lost.
LOCK_ATTEMPTS = 100

#: Bytes of a token's digest that name its bucket.
OWNER_BYTES = 8

_BUCKET = struct.Struct(f"=d{OWNER_BYTES}s")  # when the bucket is full, and its owner


class Rates:
    """The buckets of all tokens with a rate."""

    def __init__(self) -> None:
        """Make the memory; raises OSError."""
        self._fd = make_memory_file("astralog-rates")
        weakref.finalize(self, os.close, self._fd)
        size = BUCKETS * _BUCKET.size
        os.posix_fallocate(self._fd, 0, size)  # now: a lack of memory would later be a SIGBUS
        self._memory = mmap.mmap(self._fd, size)

    def check(self, token: bytes, rate: float) -> None:
        """Raise Rejection `rate_limited` if a bucket is empty.

        It is that of the token with this digest; `rate` is in bytes per second.
        """
        now = time.monotonic()
        _check(rate, self._find(token, now)[1] - now)

    def charge(self, token: bytes, rate: float, size: int) -> None:
        """Take `size` bytes of a body from the token's bucket; one body may overdraw it.

        Raises Rejection as `check` does: bodies that arrived at the same time may have emptied it.
        """
        is_locked = self._lock()
        try:
            now = time.monotonic()
            offset, full_at = self._find(token, now)
            _check(rate, full_at - now)
            full_at = max(full_at, now) + size / rate
            _BUCKET.pack_into(self._memory, offset, full_at, token[:OWNER_BYTES])
        finally:
            self._unlock(is_locked)

    def refund(self, token: bytes, rate: float, size: int) -> None:
        """Return the bytes of a batch that could not be stored to the bucket."""
        is_locked = self._lock()
        now = time.monotonic()
        offset, full_at = self._find(token, now)
        _BUCKET.pack_into(self._memory, offset, full_at - size / rate, token[:OWNER_BYTES])
        self._unlock(is_locked)

    def _find(self, token: bytes, now: float) -> tuple[int, float]:
        """Return the offset of the token's bucket, and the time at which it is full."""
        wanted = token[:OWNER_BYTES]
        start = int.from_bytes(wanted)
        fullest = (float("inf"), 0)
        for place in range(start, start + NEIGHBOURS):
            offset = place % BUCKETS * _BUCKET.size
            full_at, owner = _BUCKET.unpack_from(self._memory, offset)
            if owner == wanted:
                return offset, full_at
            fullest = min(fullest, (full_at, offset))
        return fullest[1], now

    def _lock(self) -> bool:
        """Lock the memory against other processes; return False if that takes too long."""
        for _ in range(LOCK_ATTEMPTS):
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            return True
        return False

    def _unlock(self, is_locked: bool) -> None:
        if is_locked:
            fcntl.lockf(self._fd, fcntl.LOCK_UN)


def _check(rate: float, full_in: float) -> None:
    """Raise Rejection `rate_limited` if a bucket that is full in `full_in` seconds is empty now."""
    missing = full_in - BURST_SECONDS
    if missing >= 0:
        raise Rejection(*rate_limited(rate), retry_after=int(missing) + 1)
