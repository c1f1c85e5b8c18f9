"""What one file of the journal holds, in memory: where in it each key stands."""

import contextlib
import os
import zlib
from binascii import unhexlify
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from astralog.store.keys.journal_files import STEP_BYTES, path_of
from astralog.store.keys.records import (
    BEGINNING,
    KEY_START,
    Entry,
    Sealed,
    decode,
    is_whole,
)

#: Digits of a key that choose its bucket: 4,096 buckets, of 30 keys each where there are 125,000.
_BUCKET_DIGITS = 3

#: Further digits of it that its bucket holds, and the bytes of these and of an offset.
_HELD_DIGITS = 16
_HELD_BYTES = _HELD_DIGITS // 2
_OFFSET_BYTES = 4
_RECORD_BYTES = _HELD_BYTES + _OFFSET_BYTES

#: The most bytes of a line: more than a record ever has.
_LINE_BYTES = 512

#: How a line with a key begins, and where in it its parts stand.
_KEYED = b"keyed "
_KIND = slice(len(_KEYED))
_TIME = slice(len(_KEYED), len(_KEYED) + 10)
_TOKEN = slice(_TIME.stop + 1, _TIME.stop + 9)
_BUCKET = slice(KEY_START, KEY_START + _BUCKET_DIGITS)
_HELD = slice(_BUCKET.stop, _BUCKET.stop + _HELD_DIGITS)
_CHECKED, _CHECK = slice(-9), slice(-8, None)


class Generation:
    """The keys of one file of the journal; a key takes some 16 bytes.

    One thread at a time may change it, while others look keys up.
    """

    def __init__(self, directory: Path, number: int) -> None:
        self.number = number
        self.path = path_of(directory, number)
        self._inode = 0
        self.end = 0  # of what is indexed
        self.keys_of: Counter[bytes] = Counter()  # by token
        self.sealed: dict[str, int] = {}  # the bytes of sealed segments
        self.first_time = 0.0
        self.last_time = 0.0
        self.damaged_lines = 0
        self._buckets: defaultdict[bytes, bytearray] = defaultdict(bytearray)

    def __len__(self) -> int:
        return self.keys_of.total()

    def is_in_place(self) -> bool:
        """Return whether the file that is indexed is still there, and all of it; raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(self.path)
            return status.st_ino == self._inode and status.st_size >= self.end
        return False

    def read(self) -> Iterator[None]:
        """Index what the file holds beyond what is known of it, in small steps; raises OSError."""
        with contextlib.suppress(FileNotFoundError), self.path.open("rb", buffering=0) as file:
            self._inode = os.fstat(file.fileno()).st_ino
            while self.read_step(lambda offset: os.pread(file.fileno(), STEP_BYTES, offset)):
                yield

    def read_step(self, read: Callable[[int], bytes]) -> bool:
        """Index what `read` returns for an offset; return whether there may be more."""
        before = self.end
        data = read(before)
        if data:
            self.index(data)
        return len(data) == STEP_BYTES and self.end > before

    def index(self, data: bytes) -> None:
        """Take up what follows `end`; a last line that is not whole yet waits for the next call."""
        found = data
        # A hole ends the record before it, whose line break it took along.
        data = _without_unfinished_line(data.replace(b"\0", b"\n"))
        self.damaged_lines += b"\0" in found[: len(data)]
        keyed = self._index_keys(data.split(b"\n"))
        self.end += len(data)
        if keyed:
            self.keys_of.update([line[_TOKEN] for line in keyed])
            self.first_time = self.first_time or float(keyed[0][_TIME])
            self.last_time = max(self.last_time, float(keyed[-1][_TIME]))

    def _index_keys(self, lines: Sequence[bytes]) -> list[bytes]:
        """Index the keys in lines, take note of what else there is, and return those with keys.

        All in one loop: a million keys take a second so, and half as much more with calls.
        """
        offset, keyed = self.end, []
        buckets, crc32 = self._buckets, zlib.crc32
        for line in lines:
            try:
                if line[_KIND] == _KEYED and int(line[_CHECK], 16) == crc32(line[_CHECKED]):
                    record = unhexlify(line[_HELD]) + offset.to_bytes(_OFFSET_BYTES, "little")
                    buckets[line[_BUCKET]] += record
                    keyed.append(line)
                else:
                    self._note(line)
            except ValueError:
                self.damaged_lines += 1
            offset += len(line) + 1
        return keyed

    def _note(self, line: bytes) -> None:
        record = decode(line)
        if isinstance(record, Sealed):
            self.sealed[record.segment] = record.size
        elif line and line != BEGINNING:  # damaged, or of another layout
            self.damaged_lines += 1

    def offsets_of(self, digest: bytes) -> list[int]:
        """Return where a key stands, oldest first."""
        bucket = self._buckets.get(digest[:_BUCKET_DIGITS])
        offsets: list[int] = []
        if bucket is None:
            return offsets
        held = unhexlify(digest[_BUCKET_DIGITS : _BUCKET_DIGITS + _HELD_DIGITS])
        position = bucket.find(held)
        while position >= 0:
            if position % _RECORD_BYTES == 0:
                start = position + _HELD_BYTES
                offsets.append(int.from_bytes(bucket[start : start + _OFFSET_BYTES], "little"))
            position = bucket.find(held, position + 1)
        return offsets

    def entry_at(self, offset: int) -> Entry | None:
        """Read an entry; None where the file is gone, or has no entry there. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(self.path, os.O_RDONLY)
            try:
                data = os.pread(fd, _LINE_BYTES, offset)
            finally:
                os.close(fd)
            record = decode(data.partition(b"\n")[0])
            return record if isinstance(record, Entry) else None
        return None


def _without_unfinished_line(data: bytes) -> bytes:
    """Return what is indexed of some bytes: all, or all before a line that may still grow."""
    head, newline, last = data.rpartition(b"\n")
    if not last or is_whole(last) or len(last) >= _LINE_BYTES:
        return data
    return head if newline else b""
