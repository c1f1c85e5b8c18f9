"""The files of the journal: `keys-<number>.journal`, of which all processes append to the newest.

Each record begins with a line break, so that a torn one before it costs it nothing. Nothing is ever
changed in place or cut off: another process may append at any time.
"""

import contextlib
import errno
import os
import re
from collections.abc import Sequence
from pathlib import Path

from astralog.store import files
from astralog.store.keys.records import BEGINNING, Entry, Sealed, decode, encode

FILE_MODE = 0o640

#: Bytes that are read at once in the search for a segment.
BLOCK_BYTES = 1024 * 1024

#: Bytes that are read at once to be indexed, which takes about a millisecond.
STEP_BYTES = 128 * 1024

_NAME = re.compile(r"keys-(\d{8})\.journal")


def path_of(directory: Path, number: int) -> Path:
    """Return the file of a number."""
    return directory / f"keys-{number:08d}.journal"


def list_numbers(directory: Path) -> list[int]:
    """Return the numbers of the journal's files, oldest first; raises OSError."""
    names = filter(None, map(_NAME.fullmatch, os.listdir(directory)))
    return sorted(int(match[1]) for match in names)


class JournalFile:
    """The newest file of the journal, for appending; raises OSError throughout."""

    def __init__(self, directory: Path, number: int) -> None:
        """Open the file, or make it where it is missing; its name is durable after this."""
        self.number = number
        self.path = os.fspath(path_of(directory, number))
        self._next_path = os.fspath(path_of(directory, number + 1))
        self.is_new = False
        flags = os.O_RDWR | os.O_APPEND
        try:
            self._fd = os.open(self.path, flags | os.O_CREAT | os.O_EXCL, FILE_MODE)
            self.is_new = True
        except FileExistsError:
            self._fd = os.open(self.path, flags)
        try:
            if self.is_new:
                os.fchmod(self._fd, FILE_MODE)
                self._write([BEGINNING])
            self.inode = os.fstat(self._fd).st_ino
            files.sync_directory(directory)
        except BaseException:
            self.close()
            if self.is_new:
                with contextlib.suppress(OSError):
                    os.unlink(self.path)
            raise
        self.is_dirty = False

    def is_newest(self) -> bool:
        """Return whether the file is in its place, and none comes after it."""
        try:
            is_in_place = os.stat(self.path).st_ino == self.inode
        except FileNotFoundError:
            is_in_place = False
        return is_in_place and not os.access(self._next_path, os.F_OK)

    def read(self, offset: int) -> bytes:
        """Return what follows an offset, at most STEP_BYTES."""
        return os.pread(self._fd, STEP_BYTES, offset)

    def append(self, records: Sequence[Entry | Sealed]) -> None:
        """Append records, each whole; after an error, some may be there."""
        self.is_dirty = True
        self._write([encode(record) for record in records])

    def _write(self, lines: Sequence[bytes]) -> None:
        """Write all in one call, between whose bytes nobody else's come."""
        data = b"".join(b"\n" + line for line in lines)
        for _ in range(2):  # the second call says why the first one was short, or goes through
            if os.write(self._fd, data) == len(data):
                return
        raise OSError(errno.EIO, "short write")

    def sync(self) -> None:
        """Make what was appended durable; after an error, never again with this file."""
        os.fdatasync(self._fd)
        self.is_dirty = False

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):
            os.close(self._fd)


def note_sealed(directory: Path, segment: str, size: int) -> None:
    """Append durably that a segment has so many bytes for ever; raises OSError.

    Where there is no journal, there is nothing to note it for.
    """
    record = [Sealed(segment, size)]
    numbers = list_numbers(directory)
    while numbers:
        newest = numbers[-1]
        try:
            _append(directory, newest, record)
        except OSError:
            newest += 1
            _append(directory, newest, record)
        # A reader may have gone on to a newer file before it was there.
        numbers = [number for number in list_numbers(directory) if number > newest]


def _append(directory: Path, number: int, records: Sequence[Entry | Sealed]) -> None:
    with contextlib.closing(JournalFile(directory, number)) as file:
        file.append(records)
        file.sync()


def ranges_in(directory: Path, segment: str) -> list[tuple[int, int]]:
    """Return where in a segment batches with keys are to lie; raises OSError.

    What is not known for want of a file was forgotten, or deleted by somebody.
    """
    ranges = []
    for number in list_numbers(directory):
        with contextlib.suppress(FileNotFoundError):
            for line in _lines_with(path_of(directory, number), b" %b " % segment.encode()):
                record = decode(line)
                if isinstance(record, Entry) and record.segment == segment:
                    ranges.append((record.start, record.end))
    return ranges


def _lines_with(path: Path, text: bytes) -> list[bytes]:
    """Return the lines that hold a text; those without it are not even cut."""
    found = []
    with path.open("rb") as file:
        rest = b""
        while block := file.read(BLOCK_BYTES):
            data = rest + block
            head, _, rest = data.rpartition(b"\n")
            if text in head:
                found += [line for line in head.split(b"\n") if text in line]
        if text in rest:
            found.append(rest)
    return found
