"""The database of the keys: its records, and faults of its files."""

import contextlib
import errno
import os
import sqlite3
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from astralog.store.keys import database
from astralog.store.keys.claims import Key
from astralog.store.keys.database import (
    DamagedDatabase,
    Database,
    Entry,
    Record,
    ranges_in,
    record_size,
)
from tests.support.fake_system import BreakOs

SEGMENT = "20261123T062500.123456Z-4711"
OTHER = "20261123T062500.654321Z-4712"
NOW = 1_764_000_000.5


def make_record(number: int, token: str = "00000000") -> Record:
    digest = number.to_bytes(16, "big")
    return Record(Key(token, digest, digest[::-1]), number * 10, number * 10 + 10)


def find(records: Database, *numbers: int, oldest: float = 0.0) -> dict[int, list[Entry]]:
    """Return the database's records for the keys of some records."""
    found = records.find([make_record(number).key.digest for number in numbers], oldest)
    return {int.from_bytes(digest, "big"): entries for digest, entries in found.items()}


def known(records: Database, *numbers: int) -> list[int]:
    """Return the records in a database with one of the keys."""
    return sorted(find(records, *numbers))


def add_each(records: Database, numbers: range) -> None:
    """Add records, each in its own commit."""
    for number in numbers:
        records.add(SEGMENT, NOW, [make_record(number)])


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[Callable[[], Database]]:
    """Return a function that opens the test's database, as another process would."""
    made: list[Database] = []

    def make() -> Database:
        made.append(Database(tmp_path, is_synced=False))
        made[-1].open()
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def records(connect: Callable[[], Database]) -> Database:
    return connect()


# --- Records


def test_an_entry_is_found_by_its_key(connect: Callable[[], Database]) -> None:
    """Whichever process added it, and among other keys."""
    one, two = connect(), connect()
    one.add(SEGMENT, NOW, [make_record(number) for number in (1, 2, 3)])
    two.add(OTHER, NOW, [make_record(4)])
    for each in (one, two):
        found = find(each, 2, 4, 5)
        assert [2, 4] == sorted(found)
        assert [Entry(make_record(2).key.body, SEGMENT, 30, None)] == found[2]
        assert [Entry(make_record(4).key.body, OTHER, 50, None)] == found[4]


def test_the_newest_entry_of_a_key_comes_first(records: Database) -> None:
    """A key that was tried again has several records; only the newest counts."""
    records.add(SEGMENT, NOW - 10, [make_record(1)])
    records.add(OTHER, NOW, [make_record(1)])
    assert [OTHER, SEGMENT] == [entry.segment for entry in find(records, 1)[1]]
    assert [OTHER] == [entry.segment for entry in find(records, 1, oldest=NOW - 5)[1]]
    assert {} == find(records, 1, oldest=NOW + 5)


@pytest.mark.parametrize("count", [1, database.ROWS, database.ROWS + 1, 5 * database.ROWS])
def test_a_commit_group_may_have_many_keys(records: Database, count: int) -> None:
    """All are found, however many there are."""
    records.add(SEGMENT, NOW, [make_record(number) for number in range(count)])
    assert list(range(count)) == known(records, *range(count + 5))


def test_records_are_committed_all_or_none(
    records: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if they need more than one statement."""
    insert, parts = Database._insert, [1, 2]

    def fail_at_the_third(self: Database, *arguments: Any) -> None:
        if not parts:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        parts.pop()
        insert(self, *arguments)

    monkeypatch.setattr(Database, "_insert", fail_at_the_third)
    with pytest.raises(OSError, match="No space"):
        records.add(SEGMENT, NOW, [make_record(number) for number in range(5 * database.ROWS)])
    monkeypatch.setattr(Database, "_insert", insert)
    assert [] == known(records, *range(5 * database.ROWS))
    records.add(SEGMENT, NOW, [make_record(1)])
    assert [1] == known(records, 1)


def test_the_size_of_a_segment_is_known_with_its_keys(
    connect: Callable[[], Database], tmp_path: Path
) -> None:
    """A segment without keys has no size, and needs none."""
    one, two = connect(), connect()
    one.add(SEGMENT, NOW, [make_record(1)])
    record_size(tmp_path, SEGMENT, 123)
    record_size(tmp_path, OTHER, 456)
    two.add(OTHER, NOW, [make_record(2)])
    for each in (one, two):
        assert [123, None] == [find(each, number)[number][0].size for number in (1, 2)]


def test_the_ranges_of_a_segment_are_found(connect: Callable[[], Database], tmp_path: Path) -> None:
    """Among those of other segments, and after older keys were deleted."""
    one, two = connect(), connect()
    one.add(OTHER, NOW, [make_record(number) for number in range(5)])
    for number in (5, 7):
        one.add(SEGMENT, NOW, [make_record(number)])
        two.add(OTHER, NOW, [make_record(number + 1)])
    assert [(50, 60), (70, 80)] == sorted(ranges_in(tmp_path, SEGMENT))
    one.execute("DELETE FROM keys WHERE id < (SELECT max(id) FROM keys)")
    one.add(SEGMENT, NOW, [make_record(9)])
    assert [(90, 100)] == ranges_in(tmp_path, SEGMENT)
    assert [] == ranges_in(tmp_path, "20261123T062500.999999Z-1")


def test_lookup_creates_no_database(tmp_path: Path) -> None:
    """Without keys, no lookup is needed."""
    record_size(tmp_path, SEGMENT, 1)
    assert [] == ranges_in(tmp_path, SEGMENT)
    assert not Database(tmp_path, is_synced=True).open_existing()
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize("statement", [database._FIND, database._RANGES])
def test_lookup_reads_only_its_keys(records: Database, statement: str) -> None:
    """Among a million keys, the first one is found as fast as among ten."""
    parameters = ["x"] * statement.count("?")
    plan = [row[3] for row in records.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)]
    assert [] == [step for step in plan if step.startswith("SCAN")]
    assert [step for step in plan if step.startswith("SEARCH")]


def test_the_names_are_durable_before_the_first_record(tmp_path: Path, break_os: BreakOs) -> None:
    """SQLite syncs the directory too, but does not report a failure."""
    fault = break_os("fsync", errno.EIO)
    records = Database(tmp_path, is_synced=True)
    with pytest.raises(OSError, match="Input/output error"):
        records.open()
    assert not records.is_in_place()
    fault.times = 0
    with closing(records):
        records.open()
        assert records.is_in_place()


def test_unsynced_commits_are_synced_on_request(records: Database, break_os: BreakOs) -> None:
    """As once per second in the mode `everysec`."""
    fault = break_os("fdatasync", errno.EIO, times=1)
    with pytest.raises(OSError, match="Input/output error"):
        records.sync()
    records.sync()
    assert 2 == sum("keys.db-wal" in call for call in fault.calls)


def test_only_the_owner_and_the_group_may_read(records: Database, tmp_path: Path) -> None:
    """The mode is that of the segments."""
    records.add(SEGMENT, NOW, [make_record(1)])
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob("keys.db*")}
    assert dict.fromkeys(["keys.db", "keys.db-wal", "keys.db-shm"], 0o640) == modes


# --- Files that are deleted


@pytest.mark.parametrize(
    "names",
    [["keys.db", "keys.db-wal", "keys.db-shm"], ["keys.db"], ["keys.db-wal"], ["keys.db-shm"]],
)
def test_deleted_database_is_replaced_for_all(
    connect: Callable[[], Database], tmp_path: Path, names: list[str]
) -> None:
    """Whichever file is missing, all processes use the same new one."""
    one, two = connect(), connect()
    one.add(SEGMENT, NOW, [make_record(1)])
    for name in names:
        (tmp_path / name).unlink()
    assert not one.is_in_place()
    assert not two.is_in_place()
    two.open()
    two.add(SEGMENT, NOW, [make_record(2)])
    one.open()
    one.add(SEGMENT, NOW, [make_record(3)])
    for each in (one, two, connect()):
        each.open()
        assert [2, 3] == known(each, 1, 2, 3)
    assert [("ok",)] == one.execute("PRAGMA integrity_check")


def test_record_in_a_deleted_database_does_not_count(
    records: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could not be found."""
    insert = Database._insert

    def insert_and_delete(self: Database, *arguments: Any) -> None:
        insert(self, *arguments)
        (tmp_path / "keys.db").unlink()

    monkeypatch.setattr(Database, "_insert", insert_and_delete)
    with pytest.raises(OSError, match="was removed"):
        records.add(SEGMENT, NOW, [make_record(1)])


# --- Files that are damaged, or none of ours

GARBAGE = {
    "text": b"somebody's notes\n" * 1000,
    "zeros": bytes(10_000),
}


@pytest.mark.parametrize("content", GARBAGE.values(), ids=GARBAGE)
def test_invalid_database_is_moved_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    """None of it is lost, and the log explains the consequence."""
    (tmp_path / "keys.db").write_bytes(content)
    with closing(Database(tmp_path, is_synced=False)) as records:
        records.open()
        records.add(SEGMENT, NOW, [make_record(1)])
        assert [1] == known(records, 1)
    assert content == (tmp_path / "keys.db.damaged").read_bytes()
    (message,) = caplog.messages
    assert "FORGOTTEN" in message
    assert "keys.db.damaged" in message


@pytest.mark.parametrize("is_open", [True, False])
def test_a_database_that_is_damaged_is_moved_aside(
    connect: Callable[[], Database], tmp_path: Path, caplog: pytest.LogCaptureFixture, is_open: bool
) -> None:
    """By the process that notices it, also while it is open; others continue with the new one."""
    one, two = connect(), connect()
    one.add(SEGMENT, NOW, [make_record(number) for number in range(2000)])
    one.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    if not is_open:
        one.close()
        two.close()
    with (tmp_path / "keys.db").open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * 200_000)
    for records in (one, two):  # either may know it by heart
        with contextlib.suppress(DamagedDatabase):
            records.open()
            known(records, *range(2000))
    for records in (one, two, one, two):
        records.open()
    one.add(SEGMENT, NOW, [make_record(1)])
    two.add(SEGMENT, NOW, [make_record(2)])
    for records in (one, two, connect()):
        assert [1, 2] == known(records, *range(2000))
    assert 1 == sum("FORGOTTEN" in message for message in caplog.messages)
    assert 200_000 < (tmp_path / "keys.db.damaged").stat().st_size


@pytest.mark.parametrize("statement", ["CREATE TABLE notes (text)", "PRAGMA user_version = 2"])
def test_a_database_of_another_program_is_left_alone(
    tmp_path: Path, connect: Callable[[], Database], statement: str
) -> None:
    """Or of a later version; once it is removed, keys are remembered again."""
    path = tmp_path / "keys.db"
    with closing(sqlite3.connect(path)) as other:
        other.execute(statement)
    before = path.read_bytes()
    records = Database(tmp_path, is_synced=False)
    for _ in range(2):
        with pytest.raises(OSError, match="of another program or version; move it away"):
            records.open()
    record_size(tmp_path, SEGMENT, 1)
    assert [] == ranges_in(tmp_path, SEGMENT)
    assert before == path.read_bytes()
    path.rename(tmp_path / "notes.db")
    records = connect()
    records.add(SEGMENT, NOW, [make_record(1)])
    assert [1] == known(records, 1)


def test_incomplete_database_is_completed(tmp_path: Path) -> None:
    """A process may have died while it created the database."""
    with closing(sqlite3.connect(tmp_path / "keys.db")) as other:
        other.execute("PRAGMA journal_mode = WAL")
    with closing(Database(tmp_path, is_synced=True)) as records:
        records.open()
        records.add(SEGMENT, NOW, [make_record(1)])
        assert [1] == known(records, 1)


def test_a_directory_in_the_way_is_an_error_until_it_is_gone(
    tmp_path: Path, connect: Callable[[], Database]
) -> None:
    """It is not touched, as anything else that SQLite cannot open."""
    (tmp_path / "keys.db").mkdir()
    record_size(tmp_path, SEGMENT, 1)
    assert [] == ranges_in(tmp_path, SEGMENT)
    with pytest.raises(OSError, match="unable to open") as raised:
        connect()
    assert errno.EIO == raised.value.errno
    (tmp_path / "keys.db").rmdir()
    connect().add(SEGMENT, NOW, [make_record(1)])


def test_a_missing_directory_is_an_error(tmp_path: Path) -> None:
    """For example if a disk is not mounted."""
    with pytest.raises(FileNotFoundError):
        Database(tmp_path / "away", is_synced=True).open()


# --- A database that others hold, or that has no room


def test_wait_for_a_lock_is_bounded(
    records: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lookups work meanwhile."""
    records.add(SEGMENT, NOW, [make_record(1)])
    with closing(sqlite3.connect(tmp_path / "keys.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        waits = []

        def wait(seconds: float) -> None:
            waits.append(seconds)
            if len(waits) == 3:
                other.execute("ROLLBACK")

        monkeypatch.setattr(database, "block_thread", wait)
        records.add(SEGMENT, NOW, [make_record(2)])
        assert 3 == len(waits)
        other.execute("BEGIN IMMEDIATE")
        records._lock_seconds = 0.01
        with pytest.raises(OSError, match="locked by another process") as raised:
            records.add(SEGMENT, NOW, [make_record(number) for number in range(3, 500)])
        assert errno.EBUSY == raised.value.errno
        assert [1, 2] == known(records, *range(500))
        other.execute("ROLLBACK")
    records.add(SEGMENT, NOW, [make_record(3)])
    assert [1, 2, 3] == known(records, *range(500))


def test_a_full_database_is_a_full_disk(records: Database) -> None:
    """It accepts records again once there is room; earlier ones are complete."""
    records.execute("PRAGMA max_page_count = 20")
    with pytest.raises(OSError, match="full") as raised:
        add_each(records, range(5000))
    assert errno.ENOSPC == raised.value.errno
    count = len(known(records, *range(5000)))
    records.execute("PRAGMA max_page_count = 100000")
    records.add(SEGMENT, NOW, [make_record(9999)])
    assert count + 1 == len(known(records, *range(10_000)))
    assert [("ok",)] == records.execute("PRAGMA integrity_check")


@pytest.mark.parametrize(
    ("code", "probed", "number"),
    [
        (sqlite3.SQLITE_IOERR_WRITE, errno.EDQUOT, errno.EDQUOT),
        (sqlite3.SQLITE_IOERR_WRITE, errno.ENOSPC, errno.ENOSPC),
        (sqlite3.SQLITE_IOERR_WRITE, errno.EIO, errno.EIO),
        (sqlite3.SQLITE_IOERR_WRITE, errno.EROFS, errno.EIO),
        (sqlite3.SQLITE_IOERR_WRITE, None, errno.EIO),
        (sqlite3.SQLITE_IOERR_SHMSIZE, None, errno.ENOSPC),
        (sqlite3.SQLITE_IOERR_SHMSIZE, errno.EDQUOT, errno.EDQUOT),
        (sqlite3.SQLITE_IOERR_SHMSIZE, errno.EROFS, errno.EIO),
    ],
)
def test_a_full_disk_is_distinguished_from_a_failed_one(
    records: Database, monkeypatch: pytest.MonkeyPatch, code: int, probed: int | None, number: int
) -> None:
    """SQLite reports both as an I/O error; a write to another file distinguishes them.

    An index that cannot grow needs room, even if another process has made some since.
    """

    def fail(**kwargs: object) -> None:
        raise OSError(probed, "x")

    if probed:
        monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = code
    assert records._as_os_error(error).errno == number
