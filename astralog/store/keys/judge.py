"""What becomes of a batch whose key was used before: the lines decide."""

import logging

from astralog.store.keys.claims import REPLAYED, Claim
from astralog.store.keys.generations import Generations
from astralog.store.keys.records import Entry
from astralog.store.keys.stored_lines import StoredLines
from astralog.store.segment_reader import READ_ERRORS

log = logging.getLogger(__name__)


class Judge:
    """Judges claims by what is known of the journal, and by the segments; any thread may use it."""

    def __init__(self, known: Generations, lines: StoredLines) -> None:
        self._known = known
        self._lines = lines

    def judge(self, claim: Claim) -> None:
        """Say in the claim what becomes of its batch, as far as the journal was read."""
        try:
            claim.verdict = self._verdict_of(claim)
        except READ_ERRORS as error:
            log.error("cannot tell whether a batch with a key is stored: %s", error)
            claim.verdict = "storage_failed"

    def _verdict_of(self, claim: Claim) -> str | None:
        key = claim.key
        for entry in self._known.entries_of(key.token, key.digest):
            if self._is_stored(entry):
                return REPLAYED if entry.key.body == key.body else "key_reused"
        return None

    def _is_stored(self, entry: Entry) -> bool:
        size = self._known.sealed_bytes(entry.segment)
        if size is None:
            return self._lines.has(entry)
        self._lines.forget(entry.segment)
        return entry.end <= size
