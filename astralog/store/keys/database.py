"""The records of batches with idempotency keys: `keys.db`, an SQLite database.

A row of `keys` is committed before the first line of its batch is written, and has the position of
the lines. A row of `segments` is added with the first key of a segment, and gets the segment's size
before the segment is sealed; neither the size nor the rows of its keys change after that.

All processes of the directory share the database, in WAL mode. SQLite before 3.51.3 may damage it
if a checkpoint begins while the log is in the database as a whole and another process restarts the
log (https://sqlite.org/wal.html#walresetbug): therefore only `upkeep.KeyUpkeep` makes checkpoints,
and its `_copy_log` avoids that.
"""

import contextlib
import errno
import logging
import os
import sqlite3
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gevent.monkey import get_original

from astralog.errors import FULL_ERRNOS
from astralog.store import files
from astralog.store.files import FILE_MODE
from astralog.store.keys.claims import LOCK_NAME, Key

log = logging.getLogger(__name__)

NAME = "keys.db"
DAMAGED_NAME = "keys.db.damaged"

#: The files of an open database: the database, its log, and the index of the log, which is mapped.
SUFFIXES = ("", "-wal", "-shm")

#: Seconds that a statement waits while another process has locked the database: on a slow disk, a
#: commit takes as long as a sync, a checkpoint as two, and all workers wait for each other. Less
#: than a commit may take, so that the other batches of a commit group are stored in time.
LOCK_SECONDS = 5.0

#: The same for seals under load: batches without a key wait too, and a seal is retried anyway.
SEAL_LOCK_SECONDS = 1.0

#: Seconds between two tries. SQLite's own waits are longer: 1 ms at first and 100 ms later, while a
#: commit takes 0.5 ms.
POLL_SECONDS = 0.0005

#: Rows of one statement: SQLite before 3.32 takes 999 parameters.
ROWS = 100

#: Segments of this process whose ids are remembered; more than its writers write at once.
MAX_SEGMENTS = 100

#: The byte of `keys.lock` that a process locks while it opens the database, beyond those of keys.
_OPENING_BYTE = 1 << 62

_APPLICATION = int.from_bytes(b"ALog", "big")
_VERSION = 1

_SCHEMA = (
    """
    CREATE TABLE segments (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,  -- without its suffix
        first INTEGER NOT NULL,  -- its keys have higher ids
        size INTEGER  -- bytes, once they are final
    )
    """,
    """
    CREATE TABLE keys (
        id INTEGER PRIMARY KEY,  -- in the order of the commits
        time INTEGER NOT NULL,  -- seconds since 1970
        token TEXT NOT NULL,  -- the token's name
        key BLOB NOT NULL,
        body BLOB NOT NULL,
        segment INTEGER NOT NULL REFERENCES segments,
        start INTEGER NOT NULL,  -- of its lines in the segment
        stop INTEGER NOT NULL
    )
    """,
    "CREATE INDEX keys_by_key ON keys (key)",
    f"PRAGMA application_id = {_APPLICATION}",
    f"PRAGMA user_version = {_VERSION}",
)

_FIND = """
    SELECT key, body, name, stop, size FROM keys JOIN segments ON segments.id = segment
    WHERE key IN (?) AND time >= ? ORDER BY keys.id DESC
"""
_INSERT = """
    INSERT INTO keys (time, token, key, body, segment, start, stop) VALUES (?, ?, ?, ?, ?, ?, ?)
"""
_RANGES = """
    SELECT start, stop FROM segments JOIN keys ON segment = segments.id
    WHERE name = ? AND keys.id > first
"""

_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

#: Bytes that SQLite needs at once at most: an index of its log, or a part of it, takes 32 KiB.
_PROBE_BYTES = 64 * 1024

#: Sleeps; gevent's own would run a second event loop in the thread.
block_thread: Callable[[float], None] = get_original("time", "sleep")


class DamagedDatabase(OSError):
    """The file is no database, or its content is inconsistent."""


class ForeignDatabase(OSError):
    """The database belongs to another program, or to another version of this one."""


class Record(NamedTuple):
    """A batch's key, and the range of its lines in their segment."""

    key: Key
    start: int
    stop: int


class Entry(NamedTuple):
    """One try of a key; `size` is the size of its segment, None until it is final."""

    body: bytes
    segment: str
    stop: int
    size: int | None


class Database:
    """A connection to the records; one thread at a time may use it.

    Every method raises OSError: ENOSPC if the disk is full, EBUSY if another process kept the
    database locked, DamagedDatabase, and others.
    """

    def __init__(
        self, directory: Path, *, is_synced: bool, lock_seconds: float = LOCK_SECONDS
    ) -> None:
        """Sync each commit if `is_synced`; a power cut loses unsynced commits and nothing else.

        Wait up to `lock_seconds` for other processes.
        """
        self._directory = directory
        self._is_synced = is_synced
        self._lock_seconds = lock_seconds
        self._connection: sqlite3.Connection | None = None
        self._files: list[tuple[int, int] | None] = []  # of the open connection
        self._is_damaged = False
        self._segments: dict[str, int] = {}  # ids of some of this process's segments

    # --- The connection

    def open(self) -> None:
        """Connect, unless a valid connection exists; create the database if it is missing.

        A database that is damaged or whose log was removed is moved aside.
        """
        if not self.is_in_place():
            with _opening(self._directory, self._lock_seconds):
                self._reopen()

    def open_existing(self) -> bool:
        """Connect to the database if it exists; return whether it does."""
        if not os.path.isfile(self._directory / NAME):
            self.close()
            return False
        self.open()
        return True

    def is_in_place(self) -> bool:
        """Return whether the connection leads to the files that other processes open now."""
        return (
            self._connection is not None
            and not self._is_damaged
            and self._files == _identities(self._directory)
        )

    def _reopen(self) -> None:
        before, now = self._files, _identities(self._directory)
        is_damaged = self._is_damaged
        self.close()
        if before and before[0] == now[0] and (is_damaged or before != now):
            self._move_aside("it is damaged" if is_damaged else "its log was removed")
        elif now[0] is None:  # the remains of a deleted database fit no new one
            for suffix in SUFFIXES[1:]:
                self._path(suffix).unlink(missing_ok=True)
        try:
            self._connect()
        except DamagedDatabase as error:
            self._move_aside(f"it is damaged ({error.strerror})")
            self._connect()

    def _connect(self) -> None:
        path = self._path()
        try:
            self._connection = sqlite3.connect(
                path, timeout=0, isolation_level=None, check_same_thread=False
            )
            if not path.stat().st_size:
                path.chmod(FILE_MODE)  # the other files get the same
            self._prepare()
            self._files = _identities(self._directory)
            if None in self._files:
                raise OSError(errno.ESTALE, f"{NAME} was removed")
            files.sync_directory(self._directory)  # SQLite does not say when its own sync fails
        except sqlite3.Error as error:
            self.close()
            raise self._as_os_error(error) from error
        except BaseException:
            self.close()
            raise

    def _prepare(self) -> None:
        """Create the tables of a new database, or check that the database is this service's."""
        ((tables,),) = self.execute("SELECT count(*) FROM sqlite_master")
        ((application,),) = self.execute("PRAGMA application_id")
        ((version,),) = self.execute("PRAGMA user_version")
        is_new = not (tables or application or version)
        if not is_new and (application, version) != (_APPLICATION, _VERSION):
            text = "is of another program or version; move it away to use idempotency keys"
            raise ForeignDatabase(errno.EEXIST, f"{NAME} {text}")
        ((mode,),) = self.execute("PRAGMA journal_mode = WAL")
        if mode != "wal":
            raise OSError(errno.EOPNOTSUPP, f"{NAME} needs a local file system")
        self.execute(f"PRAGMA synchronous = {'FULL' if self._is_synced else 'NORMAL'}")
        self.execute("PRAGMA wal_autocheckpoint = 0")
        self.execute("PRAGMA secure_delete = OFF")
        if is_new:
            with self._transaction():
                for statement in _SCHEMA:
                    self.execute(statement)

    def _move_aside(self, reason: str) -> None:
        """Move the database aside, so that a new one is created; its keys are forgotten."""
        for suffix in SUFFIXES:
            with contextlib.suppress(FileNotFoundError):
                self._path(suffix).replace(self._directory / (DAMAGED_NAME + suffix))
        files.sync_directory(self._directory)
        log.error(
            "idempotency keys: %s; the keys in it are FORGOTTEN: a batch that was stored before "
            "and is sent again is stored twice",
            f"{NAME} is now {DAMAGED_NAME}, since {reason}",
        )

    def close(self) -> None:
        """Close the connection; the last one to be closed removes the log."""
        if self._connection:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
        self._connection = None
        self._files = []
        self._is_damaged = False
        self._segments.clear()

    def _path(self, suffix: str = "") -> Path:
        return self._directory / (NAME + suffix)

    # --- Statements

    def execute(self, statement: str, parameters: Sequence[Any] = ()) -> list[Any]:
        """Return the rows of one statement; wait while the database is locked."""
        if self._connection is None:
            raise OSError(errno.EBADF, f"{NAME} is not open")
        deadline = 0.0
        while True:
            try:
                return self._connection.execute(statement, parameters).fetchall()
            except sqlite3.Error as error:
                if _primary_code(error) not in _BUSY:
                    raise self._as_os_error(error) from error
            now = time.monotonic()
            deadline = deadline or now + self._lock_seconds
            if now >= deadline:
                raise OSError(errno.EBUSY, f"{NAME} is locked by another process")
            block_thread(POLL_SECONDS)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(OSError):
                if self._connection and self._connection.in_transaction:
                    self.execute("ROLLBACK")
            raise

    def _as_os_error(self, error: sqlite3.Error) -> OSError:
        code = _primary_code(error)
        text = f"{NAME}: {error}"
        if code in _DAMAGED:
            self._is_damaged = True
            return DamagedDatabase(errno.EIO, text)
        return OSError(errno.ENOSPC if code == sqlite3.SQLITE_FULL else self._probe(error), text)

    def _probe(self, error: sqlite3.Error) -> int:
        """Return the errno behind SQLite's unspecific errors: write to another file and see.

        If that succeeds, another process may have made room meanwhile; the index of the log fails
        to grow for lack of room only.
        """
        try:
            with tempfile.TemporaryFile(dir=self._directory) as file:
                file.write(bytes(_PROBE_BYTES))
                file.flush()
                os.fsync(file.fileno())
        except OSError as failure:
            return failure.errno if failure.errno in FULL_ERRNOS else errno.EIO
        is_index = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_IOERR_SHMSIZE
        return errno.ENOSPC if is_index else errno.EIO

    # --- Records

    def find(self, digests: Sequence[bytes], oldest: float) -> Mapping[bytes, list[Entry]]:
        """Return the entries of keys that are not older than `oldest`, newest first."""
        found: defaultdict[bytes, list[Entry]] = defaultdict(list)
        for part in _parts(digests):
            rows = self.execute(repeat(_FIND, "?", len(part)), (*part, oldest))
            for key, *entry in rows:
                found[key].append(Entry(*entry))
        return found

    def add(self, segment: str, now: float, records: Sequence[Record]) -> None:
        """Commit the records of batches that will be written to a segment."""
        number = self._segments.get(segment)
        if number is not None and len(records) <= ROWS:
            self._insert(number, now, records)  # SQLite commits within the one statement
        else:
            with self._transaction():
                number = number or self._register(segment)
                for part in _parts(records):
                    self._insert(number, now, part)
            if len(self._segments) >= MAX_SEGMENTS:
                self._segments.clear()  # each is registered again, which finds it
            self._segments[segment] = number
        if not self.is_in_place():
            raise OSError(errno.ESTALE, f"{NAME} was removed")

    def _insert(self, number: int, now: float, records: Sequence[Record]) -> None:
        rows = [
            (int(now), key.token, key.digest, key.body, number, start, stop)
            for key, start, stop in records
        ]
        statement = repeat(_INSERT, "(?, ?, ?, ?, ?, ?, ?)", len(rows))
        self.execute(statement, [value for row in rows for value in row])

    def _register(self, segment: str) -> int:
        """Add a segment unless it is there, and return its id."""
        self.execute(
            "INSERT OR IGNORE INTO segments (name, first)"
            " VALUES (?, (SELECT coalesce(max(id), 0) FROM keys))",
            [segment],
        )
        ((number,),) = self.execute("SELECT id FROM segments WHERE name = ?", [segment])
        return int(number)

    def commit_nothing(self) -> None:
        """Write and commit as for a record, without a change."""
        self.execute(f"PRAGMA user_version = {_VERSION}")

    def sync(self) -> None:
        """Sync the commits that are not synced yet."""
        fd = os.open(self._path("-wal"), os.O_RDWR)
        try:
            os.fdatasync(fd)
        finally:
            os.close(fd)


def repeat(statement: str, marks: str, count: int) -> str:
    """Return a statement with its first `marks` repeated `count` times."""
    return statement.replace(marks, ", ".join([marks] * count), 1)


def ranges_in(
    directory: Path, segment: str, lock_seconds: float = SEAL_LOCK_SECONDS
) -> list[tuple[int, int]]:
    """Return the ranges of a segment's batches with keys, stored or not; raises OSError."""
    with _existing(directory, lock_seconds) as database:
        return database.execute(_RANGES, [segment]) if database else []


def record_size(
    directory: Path, segment: str, size: int, lock_seconds: float = SEAL_LOCK_SECONDS
) -> None:
    """Commit the final size of a segment that has keys; raises OSError."""
    with _existing(directory, lock_seconds) as database:
        if database:
            database.execute("UPDATE segments SET size = ? WHERE name = ?", [size, segment])


@contextlib.contextmanager
def _existing(directory: Path, lock_seconds: float) -> Iterator[Database | None]:
    """Connect to the database of a directory; yield None if this service has none there."""
    database = Database(directory, is_synced=True, lock_seconds=lock_seconds)
    with contextlib.closing(database):
        try:
            is_there = database.open_existing()
        except ForeignDatabase:
            is_there = False
        yield database if is_there else None


@contextlib.contextmanager
def _opening(directory: Path, lock_seconds: float) -> Iterator[None]:
    """Allow one process at a time to open, create or replace the database; raises OSError."""
    fd = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT, FILE_MODE)
    deadline = time.monotonic() + lock_seconds
    try:
        while True:
            try:
                files.lock_byte(fd, _OPENING_BYTE)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise OSError(errno.EBUSY, f"{NAME} is being opened for too long") from None
            block_thread(POLL_SECONDS)
        yield
    finally:
        os.close(fd)


def _identities(directory: Path) -> list[tuple[int, int] | None]:
    """Return the device and inode of each file of the database, None if there is no such file."""
    return [_identity(f"{directory}/{NAME}{suffix}") for suffix in SUFFIXES]


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _primary_code(error: sqlite3.Error) -> int:
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return code & 0xFF


def _parts(items: Sequence[Any]) -> Iterable[Sequence[Any]]:
    return (items[first : first + ROWS] for first in range(0, len(items), ROWS))
