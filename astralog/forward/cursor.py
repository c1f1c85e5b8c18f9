"""What is delivered, durably; `store.deliveries` has the format of the file.

A fact is written only when it is true, so that facts that are lost leave doubt and no harm: of a
segment whose facts may be missing, the table is asked what it holds before anything is sent.
"""

import logging
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from astralog.store import deliveries
from astralog.store.files import sync_directory

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

    `delivered` are the segments that the table holds as a whole; of those `in_doubt` it may hold
    more than the cursor knows.
    """

    def __init__(self, directory: Path, node: str, table: str) -> None:
        """Read the cursor, if there is one that holds for this directory, node and table."""
        self._directory = directory
        self._path = directory / deliveries.CURSOR_NAME
        self._target = f"{_word(node)} {_word(table)}"
        self._positions: dict[str, Position] = {}
        self._lines = 0
        self._fd = -1
        self.delivered: set[str] = set()
        self._is_complete = self._read()
        self.in_doubt: set[str] = set()

    def known(self) -> set[str]:
        """Return the segments that there are facts about."""
        return self.delivered | self._positions.keys()

    def open(self, sealed: Collection[str]) -> None:
        """Write the file anew, with facts about the `sealed` segments alone, to go on with it.

        What is in doubt is noted as begun, so that it stays in doubt whatever happens.
        """
        self.delivered.intersection_update(sealed)
        self._positions = {name: at for name, at in self._positions.items() if name in sealed}
        if not self._is_complete:
            for name in sorted(set(sealed) - self.delivered):
                self._positions.setdefault(name, START)
        self.in_doubt = set(self._positions)
        self._rewrite()

    def position(self, name: str) -> Position:
        """Return how far into a segment all is delivered, as far as is known."""
        return self._positions.get(name, START)

    def begin(self, name: str) -> None:
        """Note that lines of a segment are about to be sent, where that is not known yet."""
        if name not in self._positions:
            self.advance(name, START)

    def advance(self, name: str, position: Position) -> None:
        """Note how far into a segment all is delivered."""
        self._append(f"at {name} {position.offset} {position.lines}")
        self._positions[name] = position

    def finish(self, name: str, then: str | None) -> None:
        """Note that a segment is delivered, and begin with the next one in the same write."""
        facts = [f"done {name}"]
        if then and then not in self._positions:
            facts.append(f"at {then} {START.offset} {START.lines}")
        self._append(*facts)
        self._positions.pop(name, None)
        self.in_doubt.discard(name)
        self.delivered.add(name)
        if then:
            self._positions.setdefault(then, START)

    def forget(self, names: Collection[str]) -> None:
        """Drop segments that are gone, from the file too when it has grown."""
        self.delivered.difference_update(names)
        self.in_doubt.difference_update(names)
        for name in names:
            self._positions.pop(name, None)
        needed = len(self.delivered) + len(self._positions)
        if self._lines > needed + SPARE_LINES:
            self._rewrite()

    def close(self) -> None:
        """Close the file; every fact is in it already."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _read(self) -> bool:
        """Take in the facts that the file holds; return whether none is missing."""
        try:
            with self._path.open("rb") as file:
                head = self._head(file.fileno())
            first, *facts = deliveries.read_facts(self._directory)
        except (FileNotFoundError, ValueError):
            return False
        if first != head:
            log.warning("the cursor is another directory's, node's or table's: the table is asked")
            return False
        for fact in facts:
            self._take(fact)
        if None in facts:
            log.warning("the cursor is damaged: the table is asked what it holds")
        return None not in facts

    def _take(self, fact: str | None) -> None:
        match fact.split(" ") if fact else ():
            case ["at", name, offset, lines]:
                self._positions[name] = Position(int(offset), int(lines))
            case ["done", name]:
                self._positions.pop(name, None)
                self.delivered.add(name)

    def _head(self, fd: int) -> str:
        """Return the first fact of the cursor in the open file.

        The numbers of the file and of its directory tell a copy from the original.
        """
        inodes = f"{os.stat(self._directory).st_ino}/{os.fstat(fd).st_ino}"
        return f"cursor 1 {inodes} {self._target}"

    def _rewrite(self) -> None:
        """Replace the file by one that holds what is known now, and nothing twice."""
        facts = [f"done {name}" for name in sorted(self.delivered)]
        facts += [f"at {name} {at.offset} {at.lines}" for name, at in self._positions.items()]
        draft = self._path.with_name(self._path.name + ".new")
        flags = os.O_CREAT | os.O_TRUNC | os.O_RDWR | os.O_APPEND
        fd = os.open(draft, flags, deliveries.FILE_MODE)
        try:
            _write(fd, [self._head(fd), *facts])
            draft.rename(self._path)
            sync_directory(self._directory)
        except BaseException:
            os.close(fd)
            raise
        self.close()
        self._fd = fd
        self._lines = 1 + len(facts)

    def _append(self, *facts: str) -> None:
        """Add facts durably; after an error, the file is written anew before the next ones."""
        if self._fd < 0:
            self._rewrite()
        try:
            _write(self._fd, facts)
        except OSError:
            self.close()
            raise
        self._lines += len(facts)


def _write(fd: int, facts: Collection[str]) -> None:
    content = b"".join(map(deliveries.encode_fact, facts))
    while content:
        content = content[os.write(fd, content) :]
    os.fdatasync(fd)


def _word(text: str) -> str:
    """Return a text as one word of ASCII."""
    return re.sub(r"[^!-~]", lambda match: "".join(f"%{b:02X}" for b in match[0].encode()), text)
