"""Which keys are known, as the journal says; the memory of it is bounded, and old keys go."""

import errno
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from astralog.store.keys.generation import Generation
from astralog.store.keys.journal_files import JournalFile, list_numbers, path_of
from astralog.store.keys.records import Entry, Sealed

log = logging.getLogger(__name__)

#: Parts in which a token's keys, and the time for which they are kept, are forgotten.
PARTS = 8

#: Times the keys of one token that all tokens may have together.
MAX_TOKENS_FULL = 4

#: Files that are tried where others make new ones, or remove them, at the same time.
ATTEMPTS = 10


class KeyIndex:
    """The keys in the journal of a directory, and the journal to append to.

    One thread at a time may use it, except for `offsets_of` and the numbers, which any may read.
    """

    def __init__(self, directory: Path, max_keys: int, seconds: float) -> None:
        """Keep at most `max_keys` of each token, for so many seconds."""
        self._directory = directory
        self._max_keys = max_keys
        self._seconds = seconds
        self._part_keys = max(max_keys // PARTS, 1)
        self._file: JournalFile | None = None
        self._generations: list[Generation] = []  # oldest first
        self._first_of: dict[bytes, int] = {}  # the first generation that counts, by token
        self._must_begin = False
        self._is_forgetting = False
        self._damaged_lines = 0
        self.forgotten_keys = 0  # by this process, for all

    @property
    def held_keys(self) -> int:
        """The keys that are remembered."""
        return sum(self._held_by_token().values())

    def _held_by_token(self) -> Counter[bytes]:
        held: Counter[bytes] = Counter()
        for generation in self._generations:
            for token, count in list(generation.keys_of.items()):
                if generation.number >= self._first_of.get(token, 0):
                    held[token] += count
        return held

    # --- Reading

    def has_files(self) -> bool:
        """Return whether there is a journal, without listing the directory; raises OSError.

        Where this process knows none, the first file of a new one is the first to come.
        """
        return bool(self._generations) or path_of(self._directory, 1).exists()

    def load(self) -> Iterator[None]:
        """Index what is there and not known yet, in small steps; raises OSError."""
        known = {g.number: g for g in self._generations if g.is_in_place()}
        generations = []
        for number in list_numbers(self._directory):
            generation = known.get(number) or Generation(self._directory, number)
            generations.append(generation)
            yield from generation.read()
        self._generations = generations

    def catch_up(self) -> None:
        """Index what was appended by anyone since; raises OSError.

        A journal that was deleted or replaced is forgotten.
        """
        for _ in range(ATTEMPTS):
            if self._file is None and not self._enter_newest():
                break
            is_newest = self._file is not None and self._file.is_newest()
            self.read_on()
            if is_newest:
                break
            self.leave()
        self._tell_damage()

    def read_on(self) -> None:
        """Index what was appended to the current file; raises OSError."""
        while self._file and self._generations[-1].read_step(self._file.read):
            pass

    def leave(self) -> None:
        """Close the newest file, and have it looked for anew when it is needed."""
        if self._file:
            self._file.close()
        self._file = None

    def _enter_newest(self) -> bool:
        """Take the newest file for the current one, unless there is none."""
        numbers = list_numbers(self._directory)
        if numbers:
            self._enter(numbers[-1])
        else:
            self._generations = []
        return bool(numbers)

    def _enter(self, number: int) -> None:
        """Open a file, or make it, as the current one, and index all that came before it."""
        file = JournalFile(self._directory, number)
        try:
            for _ in self.load():
                pass
            if not (self._generations and self._generations[-1].number == number):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), file.path)
        except BaseException:
            file.close()
            raise
        self._file = file
        self._forget(is_counted=file.is_new)

    def _tell_damage(self) -> None:
        damaged = sum(generation.damaged_lines for generation in self._generations)
        if damaged > self._damaged_lines:
            count = damaged - self._damaged_lines
            log.warning("skipped %d damaged lines in the journal of the idempotency keys", count)
        self._damaged_lines = damaged

    # --- Looking up

    def offsets_of(self, token: str, digest: str) -> list[tuple[Generation, int]]:
        """Return where a key stands, newest first."""
        text = digest.encode()
        found = []
        for generation in reversed(self._generations):
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
        for generation in reversed(self._generations):
            if segment in generation.sealed:
                return generation.sealed[segment]
        return None

    # --- Appending

    def append(self, records: Sequence[Entry | Sealed], is_synced: bool) -> None:
        """Append records, and sync them where that is asked; raises OSError.

        After an error some of them may be there.
        """
        for _ in range(ATTEMPTS):
            file = self._writable()
            try:
                file.append(records)
                # Others may have gone on to a newer file before these were there.
                if file.is_newest():
                    if is_synced:
                        file.sync()
                    return
            except BaseException:
                self.give_up_file()
                raise
            self.catch_up()
        raise OSError(errno.EAGAIN, "the journal's files keep changing")

    def give_up_file(self) -> None:
        """Append to a new file from now on: what became of this one is not known."""
        self._must_begin = True

    def sync(self) -> None:
        """Make durable what was appended without a sync; raises OSError."""
        if self._file and self._file.is_dirty:
            try:
                self._file.sync()
            except OSError:
                self.give_up_file()
                raise

    def _writable(self) -> JournalFile:
        """Return the file to append to: a new one where the newest is full or old."""
        if self._file is None or self._must_begin or self._is_full():
            self.begin_file()
        if self._file is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return self._file

    def _is_full(self) -> bool:
        newest = self._generations[-1]
        age = time.time() - newest.first_time
        return len(newest) >= self._part_keys or (
            bool(newest.first_time) and age >= self._seconds / PARTS
        )

    def begin_file(self) -> None:
        """Begin a new file, or go on with the one that another process begins; raises OSError."""
        number = max([0, *list_numbers(self._directory)]) + 1
        self.leave()
        self._enter(number)
        self._must_begin = False

    # --- Forgetting

    def _forget(self, is_counted: bool) -> None:
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
        newest = self._generations[-1]
        held = max(self._part_keys - len(newest), 0)
        first = self._first_of.get(token, 0)
        forgotten = 0
        for generation in reversed(self._generations):
            held += generation.keys_of[token]
            if generation.number >= first and held > self._max_keys and generation is not newest:
                forgotten += generation.keys_of[token]
                self._first_of[token] = max(self._first_of.get(token, 0), generation.number + 1)
        return forgotten

    def _drop_excess(self) -> int:
        """Remove the oldest files while all tokens together have too many; return the keys."""
        forgotten = 0
        while len(self._generations) > 1:
            total = sum(map(len, self._generations)) + self._part_keys
            if total <= MAX_TOKENS_FULL * self._max_keys:
                break
            oldest = self._generations[0]
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
        while len(self._generations) > 1:
            generation = self._generations[0]
            if self._counted_in(generation) and generation.last_time >= oldest:
                break
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        """Remove the oldest file; what other process does so, too, decides alike."""
        oldest, *self._generations = self._generations
        oldest.path.unlink(missing_ok=True)
