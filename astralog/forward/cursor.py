"""The durable record of deliveries, and the node name used for them.

`store.forward_state` defines the format of the files. A fact is written only once it is true, so a
lost fact causes doubt and no harm: the table is queried about a segment whose facts may be
missing before anything is sent.

The node's name is fixed with the first delivery, in the file `node` beside the segments. A row's
place is its node, segment and line: under another name, everything would be delivered twice.
"""

import contextlib
import errno
import logging
import os
import socket
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from astralog.settings import PREFIX
from astralog.store import forward_state
from astralog.store.files import FILE_MODE, is_in_place, replace_file, sync_directory
from astralog.store.names import SegmentName

log = logging.getLogger(__name__)

#: Superfluous lines in the file that cause a rewrite.
SPARE_LINES = 10_000


class Position(NamedTuple):
    """The end of a segment's delivered part, in uncompressed bytes and in lines."""

    offset: int
    lines: int


START = Position(0, 0)


class Cursor:
    """The facts of one data directory about one table; every method may raise OSError.

    `delivered`: segments that the table holds as a whole. `repeated`: segments whose missing
    lines were sent a second time. `in_doubt`: segments of which the table may hold more than
    their facts say.
    """

    def __init__(self, directory: Path, node: str, table: str) -> None:
        """Read the cursor if it belongs to this directory, node and table."""
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
        return self.delivered | self._positions.keys()

    def open(self, sealed: Collection[str]) -> None:
        """Rewrite the file with the facts of the `sealed` segments only, and open it."""
        self.delivered.intersection_update(sealed)
        self.repeated.intersection_update(sealed)
        self._positions = {name: at for name, at in self._positions.items() if name in sealed}
        self.in_doubt = set(self._positions)
        with contextlib.suppress(OSError):  # the disk may be full: the first fact retries
            self._rewrite()

    def may_be_held(self, name: str) -> bool:
        """Return whether the table may hold lines of a segment that has no fact.

        It may if the segment started before this process, since facts can be lost or belong to
        another directory, or before one that was removed and may be restored. A start in the
        future means that the clock was set back.
        """
        start = SegmentName(name).start
        return start <= self._doubted_until or start > time.time()

    def doubt(self, name: str) -> None:
        """Remember, in this process only, that an attempt at a segment failed."""
        self.in_doubt.add(name)

    def position(self, name: str) -> Position:
        """Return the known end of a segment's delivered part."""
        return self._positions.get(name, START)

    def begin(self, name: str) -> None:
        """Record that a segment's lines are about to be sent, unless already recorded."""
        if name not in self._positions:
            self.advance(name, START)

    def advance(self, name: str, position: Position, then: str | None = None) -> None:
        """Record a segment's position, and begin segment `then` in the same write."""
        moved = {name: position}
        if then and then not in self._positions:
            moved[then] = START
        self._append([_at(*item) for item in moved.items()])
        self._positions |= moved

    def repeat(self, name: str) -> None:
        """Record that a segment's missing lines were sent a second time."""
        self._append([f"again {name}"])
        self.repeated.add(name)

    def finish(self, names: Collection[str]) -> None:
        """Record that segments are delivered as a whole."""
        self._append([f"done {name}" for name in names])
        self._drop(names)
        self.delivered.update(names)

    def forget(self, names: Collection[str]) -> None:
        """Drop removed segments; rewrite the file once it has grown."""
        starts = (SegmentName(name).start for name in names)
        self._doubted_until = max([self._doubted_until, *starts])
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
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _read(self) -> None:
        try:
            with self._path.open("rb") as file:
                head = self._head(file.fileno())
            first, *facts = forward_state.read_facts(self._directory)
        except (FileNotFoundError, ValueError):
            return
        if first != head:
            log.warning("the cursor is another directory's, node's or table's: querying the table")
            return
        for fact in facts:
            self._apply(fact)
        if None in facts:
            log.warning("the cursor is damaged: querying the table")

    def _apply(self, fact: str | None) -> None:
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

        The inodes of the file and its directory distinguish a copy from the original.
        """
        inodes = f"{os.stat(self._directory).st_ino}/{os.fstat(fd).st_ino}"
        return f"cursor 1 {inodes} {self._target}"

    def _rewrite(self) -> None:
        """Replace the file by one with each current fact once."""
        if os.stat(self._directory).st_ino != self._directory_inode:
            raise OSError(errno.ESTALE, "the directory was replaced", str(self._directory))
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
                draft.unlink()  # the disk may be full
            raise
        self._fd = fd
        self._lines = 1 + len(facts)

    def _append(self, facts: Collection[str]) -> None:
        """Append facts and sync them; after an error, the next call rewrites the file first."""
        if self._fd < 0 or not is_in_place(self._fd, self._path):
            self._rewrite()
        try:
            _write(self._fd, facts)
        except OSError:
            self.close()
            raise
        self._lines += len(facts)


def _at(name: str, position: Position) -> str:
    return f"at {name} {position.offset} {position.lines}"


def _write(fd: int, facts: Iterable[str]) -> None:
    content = b"".join(map(forward_state.encode_fact, facts))
    while content:
        content = content[os.write(fd, content) :]
    os.fdatasync(fd)


class NodeNameError(Exception):
    """The node's name is unknown or contradictory."""


def resolve_node(directory: Path, wanted: str) -> str:
    """Return the node's name for a directory; `wanted` is the setting, empty if unset.

    Raises OSError, and NodeNameError with one line that says what to do.
    """
    path = directory / forward_state.NODE_NAME
    noted = forward_state.read_node_of_cursor(directory)
    try:
        fixed = forward_state.read_node(directory)
    except ValueError:
        if noted is None:
            raise NodeNameError(
                f"{path} is damaged: remove it, and set {PREFIX}NODE to the value of `node` in "
                "the rows that ClickHouse has of this directory"
            ) from None
        log.warning("%s is damaged; the cursor has the name %s", path, noted)
        fixed = None
    known = fixed or noted
    if known and noted and noted != known:
        raise NodeNameError(
            f"{path} says that this node is {known}, but {forward_state.CURSOR_NAME} says {noted}: "
            "remove the file that is wrong"
        )
    if known and wanted and wanted != known:
        raise NodeNameError(
            f"{PREFIX}NODE is {wanted}, but ClickHouse has the logs of {directory} as node "
            f"{known}: unset {PREFIX}NODE or set it to {known}; to deliver everything here again "
            f"as {wanted}, remove {forward_state.NODE_NAME} and {forward_state.CURSOR_NAME} there"
        )
    return known or wanted or socket.gethostname()


def save_node(directory: Path, name: str) -> None:
    """Save the name for every later start and sync it; raises OSError."""
    content = forward_state.encode_fact(name)
    replace_file(directory / forward_state.NODE_NAME, content, is_synced=True)
