"""What the tables may hold of segments that the cursor has no facts of."""

from astralog.forward.backlog import Backlog
from astralog.forward.chunks import Chunk
from astralog.forward.client import NOTHING, Held
from astralog.forward.cursor import Cursor
from astralog.forward.delivery import LogTables

#: Bytes of the files of segments that one query asks about: the server counts the distinct lines
#: of each in memory.
QUERY_BYTES = 256 * 1024 * 1024


class Doubts:
    """Asks the tables about many segments in one query, and keeps the answers.

    Lines that an earlier process may still have under way have a fact in the cursor; about these,
    the tables are asked chunk by chunk when they are delivered.
    """

    def __init__(self, tables: LogTables, cursor: Cursor, backlog: Backlog) -> None:
        self._tables = tables
        self._cursor = cursor
        self._backlog = backlog
        self._held: dict[str, Held] = {}

    def ask_about(self, name: str) -> None:
        """Ask about a segment and others that wait, unless it is known; raises Unavailable."""
        if self._is_open(name):
            names = {name, *filter(self._is_open, self._backlog.oldest_within(QUERY_BYTES))}
            answer = self._tables.count(names)
            self._held |= {name: answer.get(name, NOTHING) for name in names}

    def _is_open(self, name: str) -> bool:
        is_asked = name in self._held or name in self._cursor.in_doubt
        return not is_asked and self._cursor.may_be_held(name)

    def is_held(self, chunk: Chunk) -> bool:
        """Return whether the tables hold all of a chunk."""
        held = self._held.get(chunk.segment, NOTHING)
        if not held.is_whole or held.last < chunk.first_line:
            return False  # without counting the chunk's lines
        return held.last >= chunk.first_line + chunk.lines - 1

    def has(self, chunk: Chunk) -> bool:
        """Return whether the tables may hold lines of a chunk, so that they must be asked."""
        if chunk.segment in self._cursor.in_doubt:
            return True
        return self._held.get(chunk.segment, NOTHING).last >= chunk.first_line

    def prune(self) -> None:
        """Drop the answers about segments that do not wait any more: one may come back."""
        gone = [name for name in self._held if name not in self._backlog]
        for name in gone:
            del self._held[name]
