"""The journal of the keys: what all processes have appended to it, and what this one appends."""

import errno
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from astralog.store.keys.generation import Generation
from astralog.store.keys.generations import Generations
from astralog.store.keys.journal_files import JournalFile, list_numbers, path_of
from astralog.store.keys.records import Entry, Sealed

log = logging.getLogger(__name__)

#: Files that are tried where others make new ones, or remove them, at the same time.
ATTEMPTS = 10

KEEP_CHANGING = "the journal's files keep changing"


class KeyIndex:
    """What the journal of a directory holds, as far as it was read, and the journal to append to.

    One thread at a time may use it, while others look up what is known.
    """

    def __init__(self, directory: Path, max_keys: int, seconds: float) -> None:
        """Keep at most `max_keys` of each token, for so many seconds."""
        self._directory = directory
        self.known = Generations(max_keys, seconds)
        self._file: JournalFile | None = None
        self._must_begin = False
        self._damaged_lines = 0

    # --- Reading

    def has_files(self) -> bool:
        """Return whether there is a journal, without listing the directory; raises OSError.

        Where this process knows none, the first file of a new one is the first to come.
        """
        return bool(self.known.all) or path_of(self._directory, 1).exists()

    def load(self) -> Iterator[None]:
        """Index what is there and not known yet, in small steps; raises OSError."""
        known = {g.number: g for g in self.known.all if g.is_in_place()}
        generations = []
        for number in list_numbers(self._directory):
            generation = known.get(number) or Generation(self._directory, number)
            generations.append(generation)
            yield from generation.read()
        self.known.all = generations

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
        while self._file and self.known.all[-1].read_step(self._file.read):
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
            self._enter_or_newer(numbers[-1])
        else:
            self.known.all = []
        return bool(numbers)

    def _enter_or_newer(self, number: int) -> None:
        """Enter a file, or a newer one where another process made that, and removed this one."""
        for _ in range(ATTEMPTS):
            try:
                self._enter(number)
            except FileNotFoundError:
                newest = self._newest_number()
                if newest <= number:
                    raise
                number = newest
            else:
                return
        raise OSError(errno.EAGAIN, KEEP_CHANGING)

    def _newest_number(self) -> int:
        return max([0, *list_numbers(self._directory)])

    def _enter(self, number: int) -> None:
        """Open a file, or make it, as the current one, and index all that came before it."""
        file = JournalFile(self._directory, number)
        try:
            for _ in self.load():
                pass
            if not (self.known.all and self.known.all[-1].number == number):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), file.path)
        except BaseException:
            file.close()
            raise
        self._file = file
        self.known.forget(is_counted=file.is_new)

    def _tell_damage(self) -> None:
        damaged = sum(generation.damaged_lines for generation in self.known.all)
        if damaged > self._damaged_lines:
            count = damaged - self._damaged_lines
            log.warning("skipped %d damaged lines in the journal of the idempotency keys", count)
        self._damaged_lines = damaged

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
        raise OSError(errno.EAGAIN, KEEP_CHANGING)

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
        if self._file is None or self._must_begin or self.known.is_full():
            self.begin_file()
        if self._file is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return self._file

    def begin_file(self) -> None:
        """Begin a new file, or go on with the one that another process begins; raises OSError."""
        number = self._newest_number() + 1
        self.leave()
        self._enter_or_newer(number)
        self._must_begin = False
