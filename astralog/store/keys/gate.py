"""Where requests claim their keys; they wait at most as long as for a commit."""

from collections.abc import Callable, Mapping

import gevent
from gevent.event import AsyncResult
from gevent.threadpool import ThreadPool

from astralog.errors import Rejection
from astralog.settings import Settings
from astralog.store.keys.claims import Claim
from astralog.store.keys.idempotency_keys import IdempotencyKeys
from astralog.store.keys.records import Key
from astralog.threads import Outcome, call_in_thread, spawn_in_thread

#: Seconds between two looks at what other processes appended to the journal.
LOOK_SECONDS = 1.0

#: Threads that look keys up while one of them waits for the disk.
THREADS = 3


class KeyGate:
    """Lets one request at a time store the batch of a key; the keys are read when one is used."""

    def __init__(self, settings: Settings, messages: Mapping[str, str]) -> None:
        """Tell clients the message of the code that rejects them."""
        self.keys = IdempotencyKeys(settings)
        self._messages = messages
        self._timeout_seconds = settings.commit_timeout_seconds
        self._threads = ThreadPool(THREADS)
        self._opening: AsyncResult[Outcome[None]] | None = None

    def claim(self, key: Key) -> Claim:
        """Return a claim of the key, which says where its batch is known to be stored already.

        Raises Rejection: `key_in_use`, `key_reused`, `storage_full`, `storage_failed`, or
        `commit_timeout` where the disk does not say in time what became of an earlier try.
        """
        self._wait_until_open()
        try:
            claim = self.keys.claim(key)
        except OSError:
            raise self._rejection("storage_failed") from None
        if claim is None:
            raise self._rejection("key_in_use")
        try:
            self._look_up(claim)
        except BaseException:
            claim.release()
            raise
        return claim

    def _wait_until_open(self) -> None:
        keys = self.keys
        if not keys.is_open and not keys.error_code:
            self._opening = self._opening or spawn_in_thread(self._threads, keys.open)
            self._opening.wait(self._timeout_seconds)
        if not keys.is_open:
            raise self._rejection(keys.error_code or "commit_timeout")

    def _look_up(self, claim: Claim) -> None:
        """Let a thread look where a key that was used before is stored; raises Rejection."""
        if self.keys.is_known(claim.key):
            with gevent.Timeout(self._timeout_seconds, self._rejection("commit_timeout")):
                call_in_thread(self._threads, self.keys.judge, claim)
        code = claim.verdict or self.keys.error_code
        if code and not claim.is_replayed:
            raise self._rejection(code)

    def _rejection(self, code: str) -> Rejection:
        if code == "commit_timeout":
            seconds = f"{self._timeout_seconds:g}"
            message = f"The disk did not say within {seconds} seconds what became of this batch."
            return Rejection(code, f"{message} This time it was not stored.")
        return Rejection(code, self._messages[code])

    def look_after(self, has_failed: Callable[[], bool]) -> None:
        """Maintain the keys from time to time, for ever, or hold nothing of a disk that fails."""
        while True:
            step = self.keys.stand_aside if has_failed() else self.keys.maintain
            call_in_thread(self._threads, step)
            gevent.sleep(LOOK_SECONDS)
