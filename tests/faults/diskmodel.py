"""A model of the disk after a power cut, which follows a trace of the shim.

POSIX promises the bytes of a file after its sync and the names of a directory after its own. All
else may be there, in part or not at all: bytes that were appended read as zeros where they are
lost, those that replace others read as they did before. A file that is mapped has any content.
"""

import random
from pathlib import Path
from typing import NamedTuple

PAGE_BYTES = 4096

#: The end of the name of SQLite's index of its log, which is mapped and never synced.
MAPPED_SUFFIX = "-shm"


class Operation(NamedTuple):
    """A line of the trace: its letter, its words, and the bytes that were written."""

    kind: str
    words: list[str]
    data: bytes


def read_trace(path: Path) -> list[Operation]:
    """Return the operations of a trace, in their order."""
    content = path.read_bytes()
    operations = []
    position = 0
    while position < len(content):
        end = content.index(b"\n", position)
        kind, *words = content[position:end].decode().split(" ")
        position = end + 1
        size = int(words[2]) if kind == "W" else 0
        operations.append(Operation(kind, words, content[position : position + size]))
        position += size
    return operations


class File:
    """One file: its durable bytes, and later changes."""

    def __init__(self, name: str | None) -> None:
        self.durable = b""
        self.names: list[str | None] = [None, name]  # the durable one, and those since
        self._pending: list[tuple[int, bytes | None]] = []

    def write(self, offset: int, data: bytes) -> None:
        self._pending.append((offset, data))

    def truncate(self, size: int) -> None:
        self._pending.append((size, None))

    def sync(self) -> None:
        content = bytearray(self.durable)
        for offset, data in self._pending:
            _apply(content, offset, data)
        self.durable = bytes(content)
        self._pending.clear()

    def sync_name(self) -> None:
        del self.names[:-1]

    def after_power_cut(self, chance: random.Random) -> bytes:
        """Return one of the contents that the disk may hold."""
        if (self.names[-1] or "").endswith(MAPPED_SUFFIX):
            return chance.randbytes(chance.choice((0, 1, 3, 8 * PAGE_BYTES)))
        content = bytearray(self.durable)
        fate = chance.choice(("nothing", "everything", "some", "torn", "holes", "holes"))
        for offset, data in self._pending:
            if fate == "nothing" or (fate == "some" and chance.random() < 0.5):
                continue
            if data is None or fate in ("everything", "some"):
                _apply(content, offset, data)
            elif fate == "torn":
                _apply(content, offset, data[: chance.randrange(len(data) + 1)])
                break
            else:
                _apply(content, offset, _with_holes(content, offset, data, chance))
        return bytes(content)


def _apply(content: bytearray, offset: int, data: bytes | None) -> None:
    """Write, or truncate to the offset if there is no data."""
    if data is None:
        del content[offset:]
        return
    content.extend(bytes(max(0, offset - len(content))))
    content[offset : offset + len(data)] = data


def _with_holes(content: bytearray, offset: int, data: bytes, chance: random.Random) -> bytes:
    """Return the data with some of its pages as they were in the content before, or as zeros."""
    pieces = []
    position = 0
    while position < len(data):
        end = min(len(data), position + PAGE_BYTES - (offset + position) % PAGE_BYTES)
        piece = data[position:end]
        if chance.random() >= 0.6:
            piece = bytes(content[offset + position : offset + end]).ljust(len(piece), b"\0")
        pieces.append(piece)
        position = end
    return b"".join(pieces)


class Disk:
    """The data directory after the operations, and the batches answered 200 so far."""

    def __init__(self) -> None:
        self._files: dict[str, File] = {}  # by inode
        self._removed: list[File] = []  # whose inode may belong to another file by now
        self.answers: list[tuple[int, int]] = []  # port and status of each response so far

    def do(self, operation: Operation) -> None:
        """Follow one operation."""
        words = operation.words
        match operation.kind:
            case "C":
                if words[0] in self._files:
                    self._removed.append(self._files.pop(words[0]))
                self._files[words[0]] = File(Path(words[1]).name)
            case "W":
                self._file(words[0]).write(int(words[1]), operation.data)
            case "T":
                self._file(words[0]).truncate(int(words[1]))
            case "Y":
                self._file(words[0]).sync()
            case "R":
                self._named(words[0]).names.append(Path(words[1]).name)
            case "U":
                self._named(words[0]).names.append(None)
            case "D":
                self._sync_names()
            case "S":
                self.answers.append((int(words[0]), int(words[1])))

    def write_after_power_cut(self, directory: Path, chance: random.Random) -> None:
        """Make the files that may be there, each name and each content as bad luck has it."""
        for file in [*self._files.values(), *self._removed]:
            name = chance.choice((file.names[0], file.names[-1], chance.choice(file.names)))
            if name is not None:
                (directory / name).write_bytes(file.after_power_cut(chance))

    def _file(self, inode: str) -> File:
        """Return a file that was created, or one without a name (O_TMPFILE): no cut leaves it."""
        return self._files.setdefault(inode, File(None))

    def _named(self, path: str) -> File:
        name = Path(path).name
        (file,) = (file for file in self._files.values() if file.names[-1] == name)
        return file

    def _sync_names(self) -> None:
        for file in [*self._files.values(), *self._removed]:
            file.sync_name()
        self._removed = [file for file in self._removed if file.names != [None]]
