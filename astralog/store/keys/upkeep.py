"""Keep the records of idempotency keys within their bounds; the housekeeper does so."""

import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence

from astralog.clock import TrustedClock
from astralog.log import LogOnce
from astralog.settings import PREFIX, Settings
from astralog.store.keys.database import NAME, Database, repeat
from astralog.store.names import is_ahead

log = logging.getLogger(__name__)

#: Rows deleted at once, while other processes wait; on a slow disk each takes a read.
DELETED_ROWS = 100

#: Rows counted at once, in some 10 ms.
COUNTED_ROWS = 50_000

#: Bytes of the log above which it is copied into the database.
LOG_BYTES = 1024 * 1024

#: Milliseconds that a checkpoint waits for other processes, while they wait for it. A commit of
#: theirs takes a sync. After a wait in vain, the whole checkpoint is repeated with its syncs.
WAIT_MS = 1000

#: Share of the limit below which a token no longer counts as one with too many keys.
CALM_SHARE = 0.9

#: Seconds between two searches for segments whose keys are all forgotten.
SEGMENTS_SECONDS = 3600.0


class KeyUpkeep:
    """The housekeeper's work on a directory's database; one thread at a time may use it."""

    def __init__(self, settings: Settings, clock: TrustedClock) -> None:
        """Keep each token's newest keys, within the number and the seconds of the settings."""
        self._path = settings.data_dir / NAME
        self._max_keys = settings.idempotency_keys
        self._seconds = settings.idempotency_seconds
        self._clock = clock
        self._database = Database(settings.data_dir, is_synced=settings.sync == "always")
        self._failure = LogOnce(log)
        self._forgetting = LogOnce(log, logging.WARNING)
        self.forgotten_keys = 0  # by this process, before their time
        self._begin()

    def _begin(self) -> None:
        self._counts: Counter[str] = Counter()  # keys by token
        self._counted_id = 0
        self._evicted_id: dict[str, int] = {}  # up to this id, the token has no keys
        self._is_log_known = False  # whether the log was emptied since the connection was made
        self._segments_at = time.monotonic()

    @property
    def held_keys(self) -> int:
        """The number of remembered keys that this process has counted."""
        return self._counts.total()

    def close(self) -> None:
        """Close all files until the next step."""
        self._database.close()

    def step(self) -> Iterator[None]:
        """Do the due work in small steps; an error is logged, and ends it until the next call.

        Without a database it does nothing.
        """
        try:
            was_in_place = self._database.is_in_place()
            if not self._database.open_existing():
                self._begin()
                return
            if not was_in_place:
                self._begin()
            yield from self._count()
            yield from self._forget_expired()
            yield from self._forget_excess()
            self._forget_segments()
            self._copy_log()
            self._failure.end("idempotency keys are maintained again")
        except OSError as error:
            self._failure.fail(
                error.errno, "cannot maintain the idempotency keys: %s", error.strerror
            )

    def _count(self) -> Iterator[None]:
        ((newest,),) = self._database.execute("SELECT coalesce(max(id), 0) FROM keys")
        while self._counted_id < newest:
            last = min(self._counted_id + COUNTED_ROWS, newest)
            rows = self._database.execute(
                "SELECT token, count(*) FROM keys WHERE id > ? AND id <= ? GROUP BY token",
                [self._counted_id, last],
            )
            self._counts.update(dict(rows))
            self._counted_id = last
            yield

    def _forget_expired(self) -> Iterator[None]:
        """Delete expired keys, the oldest first.

        The newest one stays, so that ids keep growing. Keys from the future, written while the
        clock was wrong, get the current time; otherwise they would block the deletion of later
        ones.
        """
        while True:
            now = self._clock.now()
            rows = self._database.execute(
                "SELECT id, token, time FROM keys WHERE id < (SELECT max(id) FROM keys)"
                " ORDER BY id LIMIT ?",
                [DELETED_ROWS],
            )
            for number, _, at in rows:
                if is_ahead(at, now):
                    self._database.execute(
                        "UPDATE keys SET time = ? WHERE id = ?", [int(now), number]
                    )
            old = [(number, token) for number, token, at in rows if at < now - self._seconds]
            if not old:
                return
            self._delete(old)
            yield

    def _forget_excess(self) -> Iterator[None]:
        """Delete the oldest keys of each token with too many; other tokens lose none."""
        for token in list(self._counts):
            while (excess := self._counts[token] - self._max_keys) > 0:
                rows = self._database.execute(
                    "SELECT id FROM keys WHERE token = ? AND id > ? ORDER BY id LIMIT ?",
                    [token, self._evicted_id.get(token, 0), min(excess, DELETED_ROWS)],
                )
                if not rows:
                    self._begin()  # another process deleted some: count them again
                    return
                self._delete([(number, token) for (number,) in rows])
                self._evicted_id[token] = rows[-1][0]
                self.forgotten_keys += len(rows)
                why = f"token {token} has more than {self._max_keys} ({PREFIX}IDEMPOTENCY_KEYS)"
                text = "forgetting idempotency keys before their time: %s"
                self._forgetting.fail("full", text, why)
                yield
        if max(self._counts.values(), default=0) <= self._max_keys * CALM_SHARE:
            self._forgetting.end()

    def _delete(self, keys: Sequence[tuple[int, str]]) -> None:
        statement = repeat("DELETE FROM keys WHERE id IN (?)", "?", len(keys))
        self._database.execute(statement, [number for number, _ in keys])
        self._counts.subtract(Counter(token for _, token in keys))

    def _forget_segments(self) -> None:
        """Delete the rows of segments that have no keys any more."""
        if time.monotonic() - self._segments_at < SEGMENTS_SECONDS:
            return
        self._segments_at = time.monotonic()
        rows = self._database.execute(
            "SELECT id FROM segments WHERE size IS NOT NULL"
            " AND id NOT IN (SELECT segment FROM keys)"
        )
        for row in rows:
            self._database.execute("DELETE FROM segments WHERE id = ?", row)

    def _copy_log(self) -> None:
        """Copy a long log into the database and empty it, unless other processes prevent it now.

        After a start it is copied whatever its length: pages that a failed sync left in it can be
        read, but may not be on the disk. The first checkpoint lets others commit; the second one,
        which empties the log, does not, and has little left to copy. Each follows a commit of this
        process, so that the log is never complete in the database when a checkpoint begins.

        SQLite's own wait is for the second checkpoint only: while other processes poll more often,
        a statement that uses it waits in vain.
        """
        if self._is_log_known and os.stat(f"{self._path}-wal").st_size < LOG_BYTES:
            return
        try:
            for mode, wait_ms in (("PASSIVE", 0), ("TRUNCATE", WAIT_MS)):
                self._database.commit_nothing()
                self._database.execute(f"PRAGMA busy_timeout = {wait_ms}")
                ((is_busy, _, _),) = self._database.execute(f"PRAGMA wal_checkpoint({mode})")
            self._is_log_known |= not is_busy
        finally:
            self._database.execute("PRAGMA busy_timeout = 0")
