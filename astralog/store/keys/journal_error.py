"""What is wrong with the journal now, if anything, and how the operator hears of it."""

import errno
import logging

from astralog.store.storage import FULL

log = logging.getLogger(__name__)


class NotAnnounced(Exception):
    """The journal could not be written; nothing that was to come after it was."""

    def __init__(self, error: OSError | MemoryError) -> None:
        super().__init__(str(error))
        self.error = error


class JournalError:
    """The code with which batches with keys are rejected, while there is one; told once."""

    def __init__(self) -> None:
        self.code: str | None = None
        self._logged = ""

    def note(self, error: OSError | MemoryError) -> str:
        """Reject batches with keys from now on, with the code that this returns."""
        number = error.errno if isinstance(error, OSError) else errno.ENOMEM
        self.code = code = "storage_full" if number in FULL else "storage_failed"
        if self._logged != code:
            self._logged = code
            text = str(error) or "out of memory"
            log.error("idempotency keys: %s; batches with a key are rejected", text)
        return code

    def end(self) -> None:
        """Take batches with keys again."""
        self.code = None
        if self._logged:
            log.warning("idempotency keys: %s is over", self._logged)
            self._logged = ""
