"""Tables that live in memory and fail when they are told to."""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from astralog.forward.chunks import Chunk
from astralog.forward.client import Unacceptable, Unavailable
from astralog.forward.rows import DeadLetter

NODE = "n"


class FakeServer:
    """A server with the two tables.

    `faults` are what the next calls do: "before" fails without a trace, "after" fails although
    what was sent is stored, "view" says that it cannot be stored although it is, and "" succeeds.
    A row with `poison` in it is not held.
    """

    name = "http://host/db/logs"

    def __init__(self) -> None:
        self.logs: Counter[tuple[str, int]] = Counter()
        self.dead_letters: dict[tuple[str, int], str] = {}
        self.faults: list[str] = []
        self.poison = b"poison"
        self.remembers_tokens = True
        self.calls: list[str] = []
        self.is_connected = False
        self._tokens: set[tuple[str, str, int, int]] = set()

    def insert(self, chunk: Chunk, rows: Iterable[bytes]) -> None:
        """Insert rows, as `client.Tables` does."""
        content = b"".join(rows)
        assert content, "an insert without rows"
        if self.poison in content:
            self.calls.append("rejected")
            raise Unacceptable("it is poison")
        lines = [json.loads(row)["line"] for row in content.split(b"\n")[:-1]]
        self._store("insert", chunk, lambda: self.logs.update((chunk.segment, n) for n in lines))

    def insert_dead_letters(self, chunk: Chunk, lines: list[DeadLetter]) -> None:
        """Insert lines that do not fit, as `client.Tables` does."""
        assert lines, "an insert without rows"
        rows = {(chunk.segment, line.line): line.error for line in lines}
        assert not rows.keys() & self.dead_letters.keys(), "a dead letter twice"
        self._store("insert_dead_letters", chunk, lambda: self.dead_letters.update(rows))

    def _store(self, call: str, chunk: Chunk, store: Callable[[], None]) -> None:
        fault = self._called(call)
        token = (call, chunk.segment, chunk.offset, chunk.size)
        if not (self.remembers_tokens and token in self._tokens):
            store()
        self._tokens.add(token)
        if fault == "view":
            raise Unacceptable("a view of it cannot hold it")
        if fault == "after":
            raise Unavailable(ConnectionResetError("cut"), None)

    def held(self, chunk: Chunk) -> set[int]:
        """Return the lines that are there, as `client.Tables` does."""
        self._called("held")
        lines = range(chunk.first_line, chunk.first_line + chunk.lines)
        held = {n for segment, n in [*self.logs, *self.dead_letters] if segment == chunk.segment}
        return held & set(lines)

    def disconnect(self) -> None:
        """Note that there is nothing to do."""
        self.is_connected = False

    def _called(self, call: str) -> str:
        self.is_connected = True
        self.calls.append(call)
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "before":
            raise Unavailable(ConnectionRefusedError("refused"), None)
        return fault

    def lines(self) -> Counter[tuple[str, int]]:
        """Return how often each line is there, in whichever table."""
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
