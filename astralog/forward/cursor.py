"""What is delivered, durably; `store.forward_state` has the format of the file.

A fact is written only when it is true, so that facts that are lost leave doubt and no harm: of a
segment whose facts may be missing, the table is asked what it holds before anything is sent.
"""

import contextlib
import errno
import logging
import os
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from astralog.store import forward_state
from astralog.store.files import FILE_MODE, is_same_file, sync_directory
from astralog.store.sealed import start_of

log = logging.getLogger(__name__)

#: The file is written anew when it holds this many lines more than it needs.
SPARE_LINES = 10_000


class Position(NamedTuple):
    """How far into a segment all is delivered, in uncompressed bytes and in lines."""

    offset: int
    lines: int


START = Position(0, 0)


class Cursor:
    """The facts of one data directory about one table; raises OSError throughout.

    `delivered` are the segments that the table holds as a whole, and `repeated` those whose
    missing lines were sent a second time. Of those `in_doubt` it may hold more than their facts
    say, and of those that `may_be_held` as well, although they have no fact.
    """

    def __init__(self, directory: Path, node: str, table: str) -> None:
        """Read the cursor, if there is one that holds for this directory, node and table."""
        self._directory = directory
        self._directory_inode = os.stat(directory).st_ino
        self._path = directory / forward_state.CURSOR_NAME
        self._target = " ".join(map(forward_state.encode_word, (node, table)))
        self._positions: dict[str, Position] = {}
        self._lines = 0
        self._fd = -1
        #: Segments without a fact that were started by then may have been delivered all the same.
        self._doubted_until = time.time()
        self.delivered: set[str] = set()
        self.repeated: set[str] = set()
        self.in_doubt: set[str] = set()
        self._read()

    def known(self) -> set[str]:
        """Return the segments that there are facts about."""
        return self.delivered | self._positions.keys()

    def open(self, sealed: Collection[str]) -> None:
        """Write the file anew, with facts about the `sealed` segments alone, to go on with it."""
        self.delivered.intersection_update(sealed)
        self.repeated.intersection_update(sealed)
        self._positions = {name: at for name, at in self._positions.items() if name in sealed}
        self.in_doubt = set(self._positions)
        with contextlib.suppress(OSError):  # on a full disk, the first fact tries again
            self._rewrite()

    def may_be_held(self, name: str) -> bool:
        """Return whether the table may hold lines of a segment that has no fact.

        Such are all that were started before this process, since facts may be lost or another
        directory's, and before one that is gone, which may come back. A start in the future shows
        a clock that was set back.
        """
        start = start_of(name)
        return start <= self._doubted_until or start > time.time()

    def doubt(self, name: str) -> None:
        """Note, for this process, that an attempt at a segment failed."""
        self.in_doubt.add(name)

    def position(self, name: str) -> Position:
        """Return how far into a segment all is delivered, as far as is known."""
        return self._positions.get(name, START)

    def begin(self, name: str) -> None:
        """Note that lines of a segment are about to be sent, unless that is known."""
        if name not in self._positions:
            self.advance(name, START)

    def advance(self, name: str, position: Position, then: str | None = None) -> None:
        """Note how far into a segment all is delivered, and begin another in the same write."""
        moved = {name: position}
        if then and then not in self._positions:
            moved[then] = START
        self._append([_at(*item) for item in moved.items()])
        self._positions |= moved

    def repeat(self, name: str) -> None:
        """Note that a segment's missing lines were sent a second time."""
        self._append([f"again {name}"])
        self.repeated.add(name)

    def finish(self, names: Collection[str]) -> None:
        """Note that segments are delivered as a whole."""
        self._append([f"done {name}" for name in names])
        self._drop(names)
        self.delivered.update(names)

    def forget(self, names: Collection[str]) -> None:
        """Drop segments that are gone, from the file too when it has grown."""
        self._doubted_until = max([self._doubted_until, *map(start_of, names)])
        self._drop(names)
        self.delivered.difference_update(names)
        needed = len(self.delivered) + len(self._positions)
        if self._lines > needed + SPARE_LINES:
            self._rewrite()

    def _drop(self, names: Collection[str]) -> None:
        self.in_doubt.difference_update(names)
        self.repeated.difference_update(names)
        for name in names:
            self._positions.pop(name, None)

    def close(self) -> None:
        """Close the file; every fact is in it already."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _read(self) -> None:
        """Take in the facts that the file holds."""
        try:
            with self._path.open("rb") as file:
                head = self._head(file.fileno())
            first, *facts = forward_state.read_facts(self._directory)
        except (FileNotFoundError, ValueError):
            return
        if first != head:
            log.warning("the cursor is another directory's, node's or table's: the table is asked")
            return
        for fact in facts:
            self._take(fact)
        if None in facts:
            log.warning("the cursor is damaged: the table is asked what it holds")

    def _take(self, fact: str | None) -> None:
        match fact.split(" ") if fact else ():
            case ["at", name, offset, lines]:
                self._positions[name] = Position(int(offset), int(lines))
            case ["again", name]:
                self.repeated.add(name)
            case ["done", name]:
                self._drop({name})
                self.delivered.add(name)

    def _head(self, fd: int) -> str:
        """Return the first fact of the cursor in the open file.

        The numbers of the file and of its directory tell a copy from the original.
        """
        inodes = f"{os.stat(self._directory).st_ino}/{os.fstat(fd).st_ino}"
        return f"cursor 1 {inodes} {self._target}"

    def _rewrite(self) -> None:
        """Replace the file by one that holds what is known now, and nothing twice."""
        if os.stat(self._directory).st_ino != self._directory_inode:
            raise OSError(errno.ESTALE, "another directory is there now", str(self._directory))
        self.close()
        facts = [f"done {name}" for name in sorted(self.delivered)]
        facts += [_at(*item) for item in self._positions.items()]
        facts += [f"again {name}" for name in sorted(self.repeated)]
        draft = self._path.with_name(self._path.name + ".new")
        flags = os.O_CREAT | os.O_TRUNC | os.O_RDWR | os.O_APPEND
        fd = os.open(draft, flags, FILE_MODE)
        try:
            _write(fd, [self._head(fd), *facts])
            draft.rename(self._path)
            sync_directory(self._directory)
        except BaseException:
            os.close(fd)
            with contextlib.suppress(OSError):
                draft.unlink()  # it takes room, and the disk may be full
            raise
        self._fd = fd
        self._lines = 1 + len(facts)

    def _append(self, facts: Collection[str]) -> None:
        """Add facts durably; after an error, the file is written anew before the next ones."""
        if not self._is_in_place():
            self._rewrite()
        try:
            _write(self._fd, facts)
        except OSError:
            self.close()
            raise
        self._lines += len(facts)

    def _is_in_place(self) -> bool:
        """Return whether the open file is the cursor, which was not replaced or removed."""
        try:
            return self._fd >= 0 and is_same_file(self._fd, self._path)
        except FileNotFoundError:
            return False


def _at(name: str, position: Position) -> str:
    return f"at {name} {position.offset} {position.lines}"


def _write(fd: int, facts: Iterable[str]) -> None:
    content = b"".join(map(forward_state.encode_fact, facts))
    while content:
        content = content[os.write(fd, content) :]
    os.fdatasync(fd)
