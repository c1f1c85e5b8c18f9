"""The files of the journal in memory, within the bounds of their keys: old keys go."""

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Iterator

from astralog.store.keys.generation import Generation
from astralog.store.keys.records import Entry

log = logging.getLogger(__name__)

#: Parts in which a token's keys, and the time for which they are kept, are forgotten.
PARTS = 8

#: Times the keys of one token that all tokens may have together.
MAX_TOKENS_FULL = 4


class Generations:
    """The generations that are known, oldest first.

    One thread at a time may change them, while others look keys up.
    """

    def __init__(self, max_keys: int, seconds: float) -> None:
        """Keep at most `max_keys` of each token, for so many seconds."""
        self.all: list[Generation] = []
        self._max_keys = max_keys
        self._seconds = seconds
        self._part_keys = max(max_keys // PARTS, 1)
        self._first_of: dict[bytes, int] = {}  # the first generation that counts, by token
        self._is_forgetting = False
        self.forgotten_keys = 0  # by this process, for all

    @property
    def held_keys(self) -> int:
        """The keys that are remembered."""
        return sum(self._held_by_token().values())

    def _held_by_token(self) -> Counter[bytes]:
        held: Counter[bytes] = Counter()
        for generation in self.all:
            for token, count in list(generation.keys_of.items()):
                if generation.number >= self._first_of.get(token, 0):
                    held[token] += count
        return held

    def offsets_of(self, token: str, digest: str) -> list[tuple[Generation, int]]:
        """Return where a key stands, newest first."""
        text = digest.encode()
        found = []
        for generation in reversed(self.all):
            if offsets := generation.offsets_of(text):
                if generation.number < self._first_of.get(token.encode(), 0):
                    break
                found += [(generation, offset) for offset in reversed(offsets)]
        return found

    def entries_of(self, token: str, digest: str) -> Iterator[Entry]:
        """Yield what the journal has for a key, newest first; raises OSError."""
        for generation, offset in self.offsets_of(token, digest):
            entry = generation.entry_at(offset)
            oldest = time.time() - self._seconds
            if entry and entry.key.digest == digest and entry.time >= oldest:
                yield entry

    def sealed_bytes(self, segment: str) -> int | None:
        """Return the bytes that a segment was sealed with, None where that is not known."""
        for generation in reversed(self.all):
            if segment in generation.sealed:
                return generation.sealed[segment]
        return None

    def is_full(self) -> bool:
        """Return whether the newest one has its part of the keys, or of the time."""
        newest = self.all[-1]
        age = time.time() - newest.first_time
        return len(newest) >= self._part_keys or (
            bool(newest.first_time) and age >= self._seconds / PARTS
        )

    def forget(self, is_counted: bool) -> None:
        """Forget the oldest keys beyond the bounds, of which one process tells for all."""
        forgotten = sum(self._forget_of(token) for token in self._held_by_token())
        forgotten += self._drop_excess()
        self._drop_expired()
        if is_counted:
            self.forgotten_keys += forgotten
            if forgotten and not self._is_forgetting:
                log.warning(
                    "forgot %d idempotency keys before their time: a token has more than %d",
                    forgotten,
                    self._max_keys,
                )
        self._is_forgetting = bool(forgotten)

    def _forget_of(self, token: bytes) -> int:
        """Forget a token's oldest keys, so that the newest file can be filled with its own."""
        newest = self.all[-1]
        held = max(self._part_keys - len(newest), 0)
        first = self._first_of.get(token, 0)
        forgotten = 0
        for generation in reversed(self.all):
            held += generation.keys_of[token]
            if generation.number >= first and held > self._max_keys and generation is not newest:
                forgotten += generation.keys_of[token]
                self._first_of[token] = max(self._first_of.get(token, 0), generation.number + 1)
        return forgotten

    def _drop_excess(self) -> int:
        """Remove the oldest files while all tokens together have too many; return the keys."""
        forgotten = 0
        while len(self.all) > 1:
            total = sum(map(len, self.all)) + self._part_keys
            if total <= MAX_TOKENS_FULL * self._max_keys:
                break
            oldest = self.all[0]
            forgotten += self._counted_in(oldest)
            self._drop_oldest()
        return forgotten

    def _counted_in(self, generation: Generation) -> int:
        return sum(
            count
            for token, count in generation.keys_of.items()
            if generation.number >= self._first_of.get(token, 0)
        )

    def _drop_expired(self) -> None:
        """Remove the oldest files of which no key counts any more."""
        oldest = time.time() - self._seconds
        while len(self.all) > 1:
            generation = self.all[0]
            if self._counted_in(generation) and generation.last_time >= oldest:
                break
            self._drop_oldest()
        for generation in self.all[:-1]:
            if not (generation.keys_of or generation.sealed):  # begun while the disk failed
                self._drop(generation)

    def _drop_oldest(self) -> None:
        self._drop(self.all[0])

    def _drop(self, generation: Generation) -> None:
        """Forget a generation with its file, as all processes do; a file that stays is tried again.

        Whoever appends to it at this moment finds out, and does so to the newest.
        """
        self.all = [other for other in self.all if other is not generation]
        with contextlib.suppress(OSError):
            generation.path.unlink()
