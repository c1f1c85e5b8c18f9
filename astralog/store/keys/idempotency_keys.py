"""Batches with an idempotency key: stored once, however often they are sent, to whichever worker.

A request claims its key: an entry in memory keeps the others of this process out, a lock the other
processes. The drain thread, which has the key to itself then, takes up what others appended to the
journal, and looks whether the batch is stored already. If not, it appends where the lines will lie,
syncs that, and only then writes the lines.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial

from gevent.monkey import get_original

from astralog.settings import Settings
from astralog.store.keys.claims import Claim, KeyedBatch
from astralog.store.keys.held_claims import HeldClaims
from astralog.store.keys.index import KeyIndex
from astralog.store.keys.journal_error import JournalError, NotAnnounced
from astralog.store.keys.judge import Judge
from astralog.store.keys.locks import KeyLocks
from astralog.store.keys.records import Entry, Key
from astralog.store.keys.stored_lines import StoredLines
from astralog.store.storage import Storage

log = logging.getLogger(__name__)

#: While a journal of many keys is read, others run for so many seconds between two steps.
PAUSE_SECONDS = 0.0002

# Blocks the thread; gevent's, which takes a millisecond more of it, runs a loop of its own there.
_sleep: Callable[[float], None] = get_original("time", "sleep")


class IdempotencyKeys:
    """The keys of a data directory, as one of its processes knows them.

    `claim` is called by the hub, all else by threads.
    """

    def __init__(self, settings: Settings) -> None:
        self._mode = settings.sync
        self._index = KeyIndex(
            settings.data_dir, settings.idempotency_keys, settings.idempotency_seconds
        )
        self._locks = KeyLocks(settings.data_dir)
        self._lines = StoredLines(settings.data_dir, settings.sync == "always")
        self._judge = Judge(self._index.known, self._lines)
        self._claimed: set[str] = set()
        self._held = HeldClaims()
        self._error = JournalError()
        self._mutex = get_original("threading", "Lock")()  # of the index, among threads
        self._groups = 0  # that are being stored
        self.is_open = False

    @property
    def error_code(self) -> str | None:
        """The code with which batches with keys are rejected now, whatever the storage does."""
        return self._error.code

    @property
    def held_keys(self) -> int:
        """The keys that are remembered, which is the same in every process."""
        return self._index.known.held_keys

    @property
    def forgotten_keys(self) -> int:
        """The keys that this process forgot before their time, for all processes."""
        return self._index.known.forgotten_keys

    # --- The start

    def are_used(self) -> bool:
        """Return whether there ever was a key in the directory."""
        return self._locks.exists()

    def open(self) -> None:
        """Read the journal; the keys cannot be claimed before. Raises nothing."""
        try:
            with self._mutex:
                self._locks.open()
                for _ in self._index.load():
                    _sleep(PAUSE_SECONDS)
        except (OSError, MemoryError) as error:
            self._error.note(error)
        else:
            self.is_open = True

    def close(self) -> None:
        """Let the other processes have all keys."""
        self._locks.close()

    # --- The hub's part

    def claim(self, key: Key) -> Claim | None:
        """Return a claim of the key, None where its batch is under way, here or elsewhere.

        Raises OSError where that is not known.
        """
        if key.digest in self._claimed or not self._locks.take(key.digest):
            return None
        self._claimed.add(key.digest)
        return Claim(key, self._locks.opened, self._release)

    def _release(self, key: Key) -> None:
        self._locks.release(key.digest)
        self._claimed.discard(key.digest)  # not before, or a new claim's lock would be released

    def is_known(self, key: Key) -> bool:
        """Return whether the journal may have the key, as far as it was read."""
        return bool(self._index.known.offsets_of(key.token, key.digest))

    # --- The threads' part

    def judge(self, claim: Claim) -> None:
        """Say in the claim what becomes of its batch, as far as the journal was read."""
        self._judge.judge(claim)

    def store(self, storage: Storage, group: Sequence[KeyedBatch]) -> str | None:
        """Store a commit group in which batches have keys.

        Return what `Storage.store` does for those whose claim has no verdict afterwards.
        """
        with self._mutex:
            self._groups += 1
        try:
            return self._store(storage, group)
        finally:
            with self._mutex:
                self._groups -= 1

    def _store(self, storage: Storage, group: Sequence[KeyedBatch]) -> str | None:
        self._held.release_settled()
        self._decide([batch.claim for batch in group if batch.claim])
        rest = [batch for batch in group if not (batch.claim and batch.claim.verdict)]
        keyed = [batch.claim for batch in rest if batch.claim]
        if keyed:
            try:
                return self._store_keyed(storage, rest, keyed)
            except NotAnnounced as error:
                code = self._error.note(error.error)
                for claim in keyed:
                    claim.verdict = code
            rest = [batch for batch in rest if not batch.claim]
        return storage.store([batch.lines for batch in rest]) if rest else None

    def _decide(self, claims: Sequence[Claim]) -> None:
        """Judge claims by what any process has appended to the journal."""
        try:
            with self._mutex:
                self._locks.open()
                self._index.catch_up()
        except (OSError, MemoryError) as error:
            code = self._error.note(error)
            for claim in claims:
                claim.verdict = code
            return
        for claim in claims:
            if claim.epoch == self._locks.opened:
                self.judge(claim)
            else:  # the file of the locks was closed, and another process may have the key
                claim.verdict = "key_in_use"

    def _store_keyed(
        self, storage: Storage, batches: Sequence[KeyedBatch], claims: Sequence[Claim]
    ) -> str | None:
        places: list[tuple[str, int]] = []
        announce = partial(self._announce, batches, places)
        is_stored = False
        try:
            code = storage.store([batch.lines for batch in batches], announce)
            is_stored = code is None
        finally:
            if is_stored:
                self._note_stored(*places[-1])
            elif storage.has_unsettled():
                self._held.hold(storage, claims)
        return code

    def _note_stored(self, segment: str, end: int) -> None:
        """Know a group's keys from now on, so that the next try of one is not even decoded."""
        self._lines.note_stored(segment, end)
        with contextlib.suppress(OSError, MemoryError), self._mutex:  # or the next group knows them
            self._index.read_on()

    def _announce(
        self,
        batches: Sequence[KeyedBatch],
        places: list[tuple[str, int]],
        segment: str,
        start: int,
    ) -> None:
        """Append to the journal where batches will lie; raises NotAnnounced."""
        now = int(time.time())
        entries = []
        for batch in batches:
            end = start + len(batch.lines)
            if batch.claim:
                entries.append(Entry(now, batch.claim.key, segment, start, end))
            start = end
        places.append((segment, start))
        try:
            with self._mutex:
                self._index.append(entries, is_synced=self._mode == "always")
        except (OSError, MemoryError) as error:
            raise NotAnnounced(error) from error

    # --- What is due by time

    def maintain(self) -> None:
        """Take up what others appended, and find out whether an error is over."""
        self._held.release_settled()
        if not self.is_open:
            if self.error_code or self.are_used():
                self.open()
            if not self.is_open:
                return
        try:
            with self._mutex:
                self._locks.open()
                if self._index.has_files():
                    self._index.catch_up()
                if self.error_code:
                    self._index.begin_file()
                if self._mode == "everysec":
                    self._index.sync()
        except (OSError, MemoryError) as error:
            self._error.note(error)
        else:
            self._error.end()

    def stand_aside(self) -> None:
        """Hold nothing of a disk that fails, so that it can be unmounted and repaired.

        Requests that have claimed a key and wait for their commit lose it, and are told so then. So
        does what is held: who claims it next recovers its segment first, unless that is open still.
        """
        self._held.release_settled()
        with self._mutex:
            if not (self._groups or self._held.has_uncut()):
                self._index.leave()
                self._locks.close()
