"""The housekeeper's part of the idempotency keys: forget old ones, and keep the log short."""

import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence

from astralog.clock import TrustedClock
from astralog.log import LogOnce
from astralog.settings import PREFIX, Settings
from astralog.store.keys.database import NAME, Database, repeat

log = logging.getLogger(__name__)

#: Rows that are deleted at once, while other processes wait; on a slow disk each takes a read.
DELETED_ROWS = 100

#: Rows that are counted at once, which takes some 10 ms.
COUNTED_ROWS = 50_000

#: Bytes of the log beyond which it is copied into the database.
LOG_BYTES = 1024 * 1024

#: Milliseconds that a checkpoint waits for other processes, in which others wait for it.
WAIT_MS = 100

#: Seconds by which a record may be ahead of the clock before the clock of its time counts as wrong.
AHEAD_SECONDS = 86400.0

#: Share of its keys below which a token no longer counts as one that has too many.
CALM_SHARE = 0.9

#: Seconds between two searches for segments whose keys are all forgotten.
SEGMENTS_SECONDS = 3600.0


class KeyUpkeep:
    """What one process does for the database of a directory; one thread at a time may use it."""

    def __init__(self, settings: Settings, clock: TrustedClock) -> None:
        """Keep each token's newest keys, as many and as long as the settings say."""
        self._path = settings.data_dir / NAME
        self._max_keys = settings.idempotency_keys
        self._seconds = settings.idempotency_seconds
        self._clock = clock
        self._database = Database(settings.data_dir, is_synced=settings.sync == "always")
        self._failure = LogOnce(log)
        self._forgetting = LogOnce(log, logging.WARNING)
        self._forgotten = 0  # keys before their time
        self._begin()

    def _begin(self) -> None:
        self._counts: Counter[str] = Counter()  # keys by token
        self._counted_id = 0
        self._evicted_id: dict[str, int] = {}  # up to which a token has no keys left
        self._is_log_known = False  # whether the log was emptied since the connection was made
        self._segments_at = time.monotonic()

    @property
    def held_keys(self) -> int:
        """The keys that are remembered, as far as this process has counted them."""
        return self._counts.total()

    @property
    def forgotten_keys(self) -> int:
        """The keys that this process forgot before their time."""
        return self._forgotten

    def close(self) -> None:
        """Hold nothing of the directory until the next step."""
        self._database.close()

    def step(self) -> Iterator[None]:
        """Do what is due, a little at a time; an error is logged, and ends it until the next call.

        It does nothing until there is a database.
        """
        try:
            was_in_place = self._database.is_in_place()
            if not self._database.open_existing():
                self._begin()
                return
            if not was_in_place:
                self._begin()
                self._database.execute(f"PRAGMA busy_timeout = {WAIT_MS}")
            yield from self._count()
            yield from self._forget_expired()
            yield from self._forget_excess()
            self._forget_segments()
            self._copy_log()
            self._failure.end("the upkeep of the idempotency keys goes on")
        except OSError as error:
            self._failure.fail(
                error.errno, "cannot maintain the idempotency keys: %s", error.strerror
            )

    def _count(self) -> Iterator[None]:
        """Count the keys that were added since."""
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
        """Delete the oldest keys while they are beyond their time.

        The newest one stays, so that ids keep growing. Keys from the future, when the clock was
        wrong, count as of now: they would keep all later ones from being deleted.
        """
        while True:
            now = self._clock.now()
            rows = self._database.execute(
                "SELECT id, token, time FROM keys WHERE id < (SELECT max(id) FROM keys)"
                " ORDER BY id LIMIT ?",
                [DELETED_ROWS],
            )
            for number, _, at in rows:
                if at > now + AHEAD_SECONDS:
                    self._database.execute(
                        "UPDATE keys SET time = ? WHERE id = ?", [int(now), number]
                    )
            old = [(number, token) for number, token, at in rows if at < now - self._seconds]
            if not old:
                return
            self._delete(old)
            yield

    def _forget_excess(self) -> Iterator[None]:
        """Delete the oldest keys of each token that has too many; other tokens lose nothing."""
        for token in list(self._counts):
            while (excess := self._counts[token] - self._max_keys) > 0:
                rows = self._database.execute(
                    "SELECT id FROM keys WHERE token = ? AND id > ? ORDER BY id LIMIT ?",
                    [token, self._evicted_id.get(token, 0), min(excess, DELETED_ROWS)],
                )
                if not rows:
                    self._begin()  # somebody else deleted some: they are counted anew
                    return
                self._delete([(number, token) for (number,) in rows])
                self._evicted_id[token] = rows[-1][0]
                self._forgotten += len(rows)
                self._forgetting.fail(
                    "full",
                    "forgetting idempotency keys before their time: token %s has more than %d "
                    "(%sIDEMPOTENCY_KEYS)",
                    token,
                    self._max_keys,
                    PREFIX,
                )
                yield
        if max(self._counts.values(), default=0) <= self._max_keys * CALM_SHARE:
            self._forgetting.end()

    def _delete(self, keys: Sequence[tuple[int, str]]) -> None:
        statement = repeat("DELETE FROM keys WHERE id IN (?)", "?", len(keys))
        self._database.execute(statement, [number for number, _ in keys])
        self._counts.subtract(Counter(token for _, token in keys))

    def _forget_segments(self) -> None:
        """Delete the sizes of segments that have no keys any more."""
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
        """Copy a long log into the database and empty it; the next call goes on where it cannot.

        The first one after a start is copied whatever its length: what a failed sync left in it may
        be there to read, but not on the disk. The first checkpoint lets others commit; the second
        one, which empties the log, does not, and has little left to copy. Each follows a commit of
        this process, so that the log is never in the database as a whole when one begins.
        """
        if self._is_log_known and os.stat(f"{self._path}-wal").st_size < LOG_BYTES:
            return
        for mode in ("PASSIVE", "TRUNCATE"):
            self._database.commit_nothing()
            ((is_busy, _, _),) = self._database.execute(f"PRAGMA wal_checkpoint({mode})")
        self._is_log_known |= not is_busy
