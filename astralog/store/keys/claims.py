"""Keys; claims, which one request of all processes at a time has on a key; and their locks."""

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import NamedTuple, Protocol

from gevent.monkey import get_original
from xxhash import xxh3_128

from astralog.errors import Cause
from astralog.store.files import FILE_MODE, is_in_place, lock_byte, unlock_byte

LOCK_NAME = "keys.lock"

#: Bytes of a key's digest, and how many of them name the byte of `keys.lock` that stands for it.
DIGEST_BYTES = 16
_OFFSET_BYTES = 7


class Key(NamedTuple):
    """A client's key and the body sent with it, as digests of 128 bits.

    `token` is the token's name. `digest` is the start of the SHA-256 of the token's own SHA-256 in
    hex, a colon and the key. `body` is the XXH3 of the decompressed body and its context, which
    detects a key that is reused for another body by mistake: measured at 185 KB, it takes 5 µs, a
    CRC-32 44, a SHA-256 138 and a BLAKE2 254.
    """

    token: str
    digest: bytes
    body: bytes


def make_key(token: bytes, name: str, key: str, body: bytes, context: str) -> Key:
    """Return the digests of a key and its body.

    `token` is the SHA-256 of the token and `name` its name; `context` is everything except the
    body that determines what is stored.
    """
    digest = hashlib.sha256(f"{token.hex()}:{key}".encode()).digest()[:DIGEST_BYTES]
    content = xxh3_128(f"{context}\n".encode())
    content.update(body)
    return Key(name, digest, content.digest())


class Outcome(Enum):
    """The outcome of a batch with a key, as decided when its commit group is stored."""

    NEW = "no earlier try stored it: it is stored or rejected with its commit group"
    REPLAYED = "an earlier try stored it"
    REJECTED = "it is not stored, for the cause in its claim"


#: Protects the number of holders of every claim: requests, drains and maintenance change it.
_mutex = get_original("threading", "Lock")()


class Claim:
    """The exclusive right to store a key's batch, until all holders have released it.

    The request is the first holder. The queue is one until no thread can write the batch any more,
    and so is each segment from which its rejected lines are not truncated yet.
    """

    __slots__ = ("_holders", "_unlock", "cause", "epoch", "key", "outcome")

    def __init__(self, key: Key, epoch: int, unlock: Callable[[Key], None]) -> None:
        self.key = key
        self.epoch = epoch  # of the file of locks
        self.outcome = Outcome.NEW
        self.cause: Cause | None = None  # of a rejection
        self._unlock = unlock
        self._holders = 1

    @property
    def is_replayed(self) -> bool:
        return self.outcome is Outcome.REPLAYED

    def reject(self, cause: Cause) -> None:
        self.outcome = Outcome.REJECTED
        self.cause = cause

    def add_holder(self) -> None:
        with _mutex:
            self._holders += 1

    def release(self) -> None:
        """Remove a holder; the last one unlocks the key."""
        with _mutex:
            self._holders -= 1
            is_last = not self._holders
        if is_last:
            self._unlock(self.key)


class KeyedBatch(Protocol):
    """A batch of a commit group, which may have a key."""

    lines: bytes
    claim: Claim | None


class KeyLocks:
    """The locks of this process on bytes of `keys.lock`, one byte per key.

    The kernel releases them when the process has ended, so not before its last write. On a local
    file system they need no disk access. Every method raises OSError.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / LOCK_NAME
        self._fd = -1
        #: How often the file was opened: locks of an earlier epoch are gone.
        self.epoch = 0

    def open(self) -> None:
        """Open or create the file, unless it is open and in place."""
        if self._fd >= 0 and is_in_place(self._fd, self._path):
            return
        self.close()
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT, FILE_MODE)
        self.epoch += 1

    def lock(self, digest: bytes) -> bool:
        """Lock a key; return False if another process holds the lock."""
        try:
            lock_byte(self._checked_fd(), _offset(digest))
        except BlockingIOError:
            return False
        return True

    def unlock(self, digest: bytes) -> None:
        """Unlock a key; closing the file has unlocked those of earlier epochs."""
        with contextlib.suppress(OSError):
            unlock_byte(self._checked_fd(), _offset(digest))

    def _checked_fd(self) -> int:
        if self._fd < 0:  # the file was deleted and cannot be opened yet
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._fd

    def close(self) -> None:
        """Close the file, which unlocks all keys."""
        fd, self._fd = self._fd, -1  # first: another thread may open a file of the same number
        if fd >= 0:
            os.close(fd)


def _offset(digest: bytes) -> int:
    return int.from_bytes(digest[:_OFFSET_BYTES], "big")
