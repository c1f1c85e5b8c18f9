"""Token buckets that all workers share: how many bytes each token may send per second.

A bucket is one number, the moment at which it will be full again by CLOCK_MONOTONIC, which all
processes share and no change of the wall clock moves (the generic cell rate algorithm). A bucket
that nobody used for a while is thus the same as a new one, so nothing has to be refilled, and a
dead worker leaves nothing to repair.

The master makes the memory and its workers inherit it, so that a reload keeps the buckets. A batch
pays 3 µs for its bucket (measured), and nothing if its token has no rate.
"""

import fcntl
import mmap
import os
import struct
import time
import weakref

from astralog.errors import Rejection, rate_limited
from astralog.memory_file import make_memory_file
from astralog.tokens_file import Token

#: The seconds of its rate that a token may send at once.
BURST_SECONDS = 10.0

#: Buckets in the memory, and the neighbours among which a token's bucket may be. A token that finds
#: none of its own takes over the one that is full or closest to it.
BUCKETS = 4096
NEIGHBOURS = 16

#: Attempts to lock the memory, of a microsecond each. A process that holds the lock longer was
#: suspended within its few instructions: not to wait for it can lose the charge of one batch.
LOCK_ATTEMPTS = 100

_BUCKET = struct.Struct("=d32s")  # when the bucket is full, and the token's digest


class Rates:
    """The buckets of all tokens with a rate."""

    def __init__(self) -> None:
        """Make the memory; raises OSError."""
        self._fd = make_memory_file("astralog-rates")
        weakref.finalize(self, os.close, self._fd)
        size = BUCKETS * _BUCKET.size
        os.posix_fallocate(self._fd, 0, size)  # now: a lack of memory would later be a SIGBUS
        self._memory = mmap.mmap(self._fd, size)
        self._places: dict[bytes, int] = {}  # where a token's bucket was last, by its digest

    def check(self, token: Token) -> None:
        """Raise Rejection `rate_limited` if the token's bucket is empty."""
        if token.rate is None:
            return
        now = time.monotonic()
        missing = self._find(token, now)[1] - now - BURST_SECONDS
        if missing >= 0:
            raise Rejection(*rate_limited(token.rate), retry_after=int(missing) + 1)

    def charge(self, token: Token, size: int) -> None:
        """Take `size` bytes from the token's bucket, which may be overdrawn."""
        if token.rate is None:
            return
        is_locked = self._lock()
        now = time.monotonic()
        offset, full_at = self._find(token, now)
        full_at = max(full_at, now) + size / token.rate
        _BUCKET.pack_into(self._memory, offset, full_at, token.digest)
        if is_locked:
            fcntl.lockf(self._fd, fcntl.LOCK_UN)

    def _find(self, token: Token, now: float) -> tuple[int, float]:
        """Return the offset of the token's bucket and when it is full; a new one is full now."""
        digest = token.digest
        offset = self._places.get(digest, 0)
        full_at, owner = _BUCKET.unpack_from(self._memory, offset)
        if owner != digest:
            offset, full_at = self._search(digest, now)
            if len(self._places) >= BUCKETS:  # of tokens that are gone, most of them
                self._places.clear()
            self._places[digest] = offset
        return offset, full_at

    def _search(self, digest: bytes, now: float) -> tuple[int, float]:
        """Return the same, by a search of all places that the bucket may have."""
        start = int.from_bytes(digest[:4])
        fullest = (float("inf"), 0)
        for place in range(start, start + NEIGHBOURS):
            offset = place % BUCKETS * _BUCKET.size
            full_at, owner = _BUCKET.unpack_from(self._memory, offset)
            if owner == digest:
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
