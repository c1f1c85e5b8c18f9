"""Workers of a service in one process: each with its keys, its storage, and a way to die."""

import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from astralog.errors import Cause, Rejection
from astralog.settings import Settings
from astralog.store.keys.claims import Claim, Outcome, make_key
from astralog.store.keys.idempotency_keys import IdempotencyKeys
from astralog.store.segment import EndState, Segment
from astralog.store.writer import SegmentWriter, Storage
from tests.unit.store.segments import code_of

TOKEN = bytes(32)
IN_USE = "key_in_use"
REPLAYED = "replayed"
STORED = "stored"


class Killed(BaseException):
    """The process was killed at this point."""


class Batch:
    """The parts of a batch that a commit group uses."""

    def __init__(self, lines: bytes, claim: Claim | None) -> None:
        self.lines = lines
        self.claim = claim


class Worker:
    """The keys and the storage of one process."""

    def __init__(self, settings: Settings) -> None:
        self.keys = IdempotencyKeys(settings)
        self.keys.open()
        self.storage = Storage(settings)
        self.is_alive = True

    def send(self, key: str, lines: bytes, body: bytes | None = None) -> str:
        """Store a batch as a request does; return STORED, REPLAYED or the code of its rejection."""
        try:
            claim = self.claim(key, lines if body is None else body)
        except Rejection as rejection:
            return rejection.code
        outcome = self.store(Batch(lines, claim))[0]
        claim.release()
        return outcome

    def claim(self, key: str, body: bytes) -> Claim:
        return self.keys.claim(make_key(TOKEN, "00000000", key, body, ""))

    def store(self, *batches: Batch) -> list[str]:
        """Store a commit group, and return the outcome of each batch."""
        cause = self.keys.store(self.storage, batches)
        return [self._outcome(batch, cause) for batch in batches]

    def _outcome(self, batch: Batch, cause: Cause | None) -> str:
        if batch.claim and batch.claim.outcome is not Outcome.NEW:
            return code_of(batch.claim.cause) or REPLAYED
        return code_of(cause) or STORED

    def send_plain(self, lines: bytes) -> str:
        return code_of(self.storage.store([lines])) or STORED

    def kill(self) -> None:
        """End as by SIGKILL: the kernel closes the files, and nothing else happens."""
        self.is_alive = False
        self.keys._database.close()
        self.keys._locks.close()
        if self.storage._segment:
            self.storage._segment.close()
        for ended in self.storage._ended.values():
            if ended.end_state is EndState.UNTRUNCATED:
                ended.close()


def kill_at(monkeypatch: pytest.MonkeyPatch, place: str, written: int = 0) -> None:
    """Kill the next commit group at its `write`, after some bytes, or at its `sync`."""
    original = getattr(Segment, place)
    abandon = SegmentWriter._abandon

    def die(segment: Segment, *arguments: list[bytes]) -> None:
        monkeypatch.setattr(Segment, place, original)
        if written:
            original(segment, [arguments[0][0][:written]])
        raise Killed

    def abandon_unless_killed(writer: SegmentWriter, segment: Segment) -> None:
        if not isinstance(sys.exc_info()[1], Killed):
            abandon(writer, segment)

    monkeypatch.setattr(Segment, place, die)
    monkeypatch.setattr(SegmentWriter, "_abandon", abandon_unless_killed)


def query(directory: Path, statement: str) -> list[Any]:
    """Return the result of an operator's statement on the database of a directory."""
    with closing(sqlite3.connect(directory / "keys.db")) as database:
        return database.execute(statement).fetchall()
