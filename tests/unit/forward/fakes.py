"""Tables in memory that fail on request."""

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from astralog.forward.chunks import Chunk, DeadLetter
from astralog.forward.clickhouse import Held, Tables, Unacceptable, Unavailable

NODE = "n"


class FakeServer(Tables):
    """A server with the two tables.

    `faults` lists the outcomes of the next calls: "before" fails without effect, "after" fails
    although the rows are stored, "view" reports that they cannot be stored although they are, "lie"
    stores nothing and reports success, "fewer" stores nothing and reports it, "miscount" stores all
    and reports nothing, and "" succeeds. A row that contains `poison` is rejected. Rows in `hidden`
    are not returned, as on a replica that lags.
    """

    name = "http://host/db/logs"

    def __init__(self) -> None:
        self.logs: Counter[tuple[str, int]] = Counter()
        self.dead_letters: dict[tuple[str, int], str] = {}
        self.faults: list[str] = []
        self.poison = b"poison"
        self.hidden: set[tuple[str, int]] = set()
        self.remembers_tokens = True
        self.calls: list[str] = []
        self.is_connected = False
        self._tokens: set[tuple[object, ...]] = set()

    def insert(self, chunk: Chunk, rows: Iterable[bytes], again: bool) -> int:
        """Insert rows, as `clickhouse.Tables` does."""
        content = b"".join(rows)
        assert content, "an insert without rows"
        if self.poison in content:
            self.calls.append("rejected")
            raise Unacceptable("it is poison")
        lines = [json.loads(row)["line"] for row in content.split(b"\n")[:-1]]
        call = "insert again" if again else "insert"
        return self._store(
            call,
            chunk,
            lambda: self.logs.update((chunk.segment, n) for n in lines),
            len(lines),
        )

    def insert_dead_letters(self, chunk: Chunk, lines: list[DeadLetter], again: bool) -> int:
        """Insert lines that do not fit, as `clickhouse.Tables` does."""
        assert lines, "an insert without rows"
        rows = {(chunk.segment, line.line): line.error for line in lines}
        call = "insert_dead_letters" + " again" * again
        return self._store(call, chunk, lambda: self._bury(rows), len(lines))

    def _bury(self, rows: dict[tuple[str, int], str]) -> None:
        assert not rows.keys() & self.dead_letters.keys(), "a dead letter twice"
        self.dead_letters.update(rows)

    def _store(self, call: str, chunk: Chunk, store: Callable[[], None], rows: int) -> int:
        fault = self._called(call)
        if fault in ("lie", "fewer"):
            return rows if fault == "lie" else rows - 1
        token = (call, chunk.segment, chunk.offset, chunk.size)
        if not (self.remembers_tokens and token in self._tokens):
            store()
        self._tokens.add(token)
        if fault == "view":
            raise Unacceptable("a view of it cannot hold it")
        if fault == "after":
            raise Unavailable(ConnectionResetError("cut"), None)
        return 0 if fault == "miscount" else rows

    def held(self, chunk: Chunk) -> set[int]:
        """Return the stored lines, as `clickhouse.Tables` does."""
        self._called("held")
        lines = range(chunk.first_line, chunk.first_line + chunk.lines)
        return self._shown(chunk.segment).keys() & set(lines)

    def count(self, segments: Collection[str]) -> dict[str, Held]:
        """Return the counts of segments, as `clickhouse.Tables` does."""
        assert segments, "a question about nothing"
        self._called("count")
        shown = {name: self._shown(name) for name in segments}
        return {
            name: Held(lines.total(), len(lines), max(lines))
            for name, lines in shown.items()
            if lines
        }

    def _shown(self, segment: str) -> Counter[int]:
        shown = {place: count for place, count in self.lines().items() if place not in self.hidden}
        return Counter({line: count for (name, line), count in shown.items() if name == segment})

    def disconnect(self) -> None:
        """Do nothing."""
        self.is_connected = False

    def _called(self, call: str) -> str:
        self.is_connected = True
        self.calls.append(call)
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "before":
            raise Unavailable(ConnectionRefusedError("refused"), None)
        return fault

    def lines(self) -> Counter[tuple[str, int]]:
        """Return the number of copies of each line in both tables."""
        return self.logs + Counter(self.dead_letters.keys())


def make_chunk(name: str, *lines: bytes) -> Chunk:
    """Return the first chunk of a segment, of these lines."""
    content = bytearray(b"".join(line + b"\n" for line in lines))
    return Chunk(name, 0, 1, content, 0, len(content))


def stored(directory: Path) -> Counter[tuple[str, int]]:
    """Return each line of the plain segments of a directory, once."""
    return Counter(
        (path.name.partition(".ndjson")[0], number)
        for path in directory.glob("*.ndjson")
        for number in range(1, path.read_bytes().count(b"\n") + 1)
    )
