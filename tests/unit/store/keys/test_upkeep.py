"""The housekeeper's work on keys: old ones are deleted, and SQLite's log stays short."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from astralog.clock import TrustedClock
from astralog.settings import Settings
from astralog.store.keys import database
from astralog.store.keys import upkeep as upkeep_module
from astralog.store.keys.database import Database, record_size
from astralog.store.keys.upkeep import DELETED_ROWS, KeyUpkeep
from tests.unit.store.keys.test_database import OTHER, SEGMENT, known, make_record

TOKEN, ANOTHER = "1f0e9a3c", "00c0ffee"
MAX_KEYS = 300
SECONDS = 1000.0
DAY = 86400.0


class Clock:
    """The wall clock and CLOCK_BOOTTIME of a machine."""

    def __init__(self) -> None:
        self.now = 1_764_000_000.0
        self.jump = 0.0

    def wall(self) -> float:
        return self.now + self.jump

    def elapsed(self) -> float:
        return self.now - 1_763_000_000.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Database]:
    """Return a worker's connection."""
    with closing(Database(tmp_path, is_synced=False)) as made:
        made.open()
        yield made


@pytest.fixture
def make_upkeep(settings: Settings, clock: Clock) -> Iterator[Callable[..., KeyUpkeep]]:
    made: list[KeyUpkeep] = []
    defaults = {"sync": "never", "idempotency_keys": MAX_KEYS, "idempotency_seconds": SECONDS}

    def make(**changes: object) -> KeyUpkeep:
        all_changes = {**defaults, **changes}
        trusted = TrustedClock(clock.wall, clock.elapsed)
        made.append(KeyUpkeep(replace(settings, **all_changes), trusted))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def upkeep(make_upkeep: Callable[..., KeyUpkeep]) -> KeyUpkeep:
    return make_upkeep()


def run(upkeep: KeyUpkeep) -> int:
    """Do the due work, and return the number of its steps."""
    return sum(1 for _ in upkeep.step())


def add(
    records: Database,
    numbers: range,
    at: float,
    token: str = TOKEN,
    segment: str = SEGMENT,
) -> None:
    records.add(segment, at, [make_record(number, token) for number in numbers])


def test_upkeep_creates_no_database(upkeep: KeyUpkeep, tmp_path: Path) -> None:
    """Services without keys have no database."""
    assert 0 == run(upkeep)
    assert [] == list(tmp_path.iterdir())
    assert (0, 0) == (upkeep.held_keys, upkeep.forgotten_keys)


@pytest.mark.parametrize("count", [MAX_KEYS + 1, 3 * MAX_KEYS])
def test_a_token_keeps_its_newest_keys(
    upkeep: KeyUpkeep,
    records: Database,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
    count: int,
) -> None:
    """Its surplus keys are deleted, oldest first, counted, and logged once."""
    for first in range(0, count, 100):
        add(records, range(first, min(first + 100, count)), clock.now)
        run(upkeep)
    assert list(range(count - MAX_KEYS, count)) == known(records, *range(count))
    assert (MAX_KEYS, count - MAX_KEYS) == (upkeep.held_keys, upkeep.forgotten_keys)
    (message,) = caplog.messages
    assert TOKEN in message
    assert "ASTRALOG_IDEMPOTENCY_KEYS" in message


def test_one_token_evicts_no_keys_of_another(
    upkeep: KeyUpkeep, records: Database, clock: Clock
) -> None:
    """However many it sends, and whether the other's are older, newer or in between."""
    add(records, range(5), clock.now, ANOTHER)
    for first in range(5, 55, 5):
        start = 1000 + first * MAX_KEYS
        add(records, range(start, start + MAX_KEYS), clock.now)
        add(records, range(first, first + 5), clock.now, ANOTHER)
        run(upkeep)
    assert list(range(55)) == known(records, *range(1000))
    assert MAX_KEYS + 55 == upkeep.held_keys


def test_no_key_below_the_limit_is_forgotten_within_its_time(
    upkeep: KeyUpkeep, records: Database, clock: Clock
) -> None:
    """Nor is any kept long after it."""
    add(records, range(MAX_KEYS // 2), clock.now)
    clock.now += SECONDS / 2
    add(records, range(MAX_KEYS // 2, MAX_KEYS), clock.now)
    run(upkeep)
    assert list(range(MAX_KEYS)) == known(records, *range(MAX_KEYS))
    clock.now += SECONDS / 2 + 2
    run(upkeep)
    assert list(range(MAX_KEYS // 2, MAX_KEYS)) == known(records, *range(MAX_KEYS))
    assert (MAX_KEYS // 2, 0) == (upkeep.held_keys, upkeep.forgotten_keys)


def test_the_newest_record_stays_so_that_ids_grow(
    upkeep: KeyUpkeep, records: Database, clock: Clock
) -> None:
    """A segment finds its keys by their ids."""
    add(records, range(2 * DELETED_ROWS), clock.now)
    ((newest,),) = records.execute("SELECT max(id) FROM keys")
    clock.now += 2 * SECONDS
    run(upkeep)
    assert [(newest,)] == records.execute("SELECT id FROM keys")
    assert 1 == upkeep.held_keys
    add(records, range(5), clock.now)
    run(upkeep)
    assert [(newest + 5,)] == records.execute("SELECT max(id) FROM keys")
    assert 5 == upkeep.held_keys


@pytest.mark.parametrize("jump", [-2 * DAY, -100.0, 100.0, 2 * DAY, 1000 * DAY])
def test_a_clock_that_jumps_for_seconds_forgets_nothing(
    upkeep: KeyUpkeep, records: Database, clock: Clock, jump: float
) -> None:
    """Ages follow elapsed time, until the change has lasted for an hour."""
    add(records, range(10), clock.now)
    run(upkeep)
    clock.jump = jump
    for _ in range(10):
        clock.now += 10
        run(upkeep)
    clock.jump = 0.0
    run(upkeep)
    assert list(range(10)) == known(records, *range(10))
    assert (10, 0) == (upkeep.held_keys, upkeep.forgotten_keys)


def test_keys_from_the_future_do_not_protect_others(
    upkeep: KeyUpkeep, records: Database, clock: Clock
) -> None:
    """They were added by a wrong clock, and count as added now."""
    add(records, range(10), clock.now + 1000 * DAY)
    add(records, range(10, 20), clock.now)
    run(upkeep)
    assert list(range(20)) == known(records, *range(20))
    clock.now += SECONDS + 1
    add(records, range(20, 30), clock.now)
    run(upkeep)
    assert list(range(20, 30)) == known(records, *range(30))


def test_many_keys_are_counted_in_steps(
    make_upkeep: Callable[..., KeyUpkeep],
    records: Database,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Existing ones, and those that others add; a second process gets the same count."""
    monkeypatch.setattr(upkeep_module, "COUNTED_ROWS", 10)
    one = make_upkeep()
    add(records, range(95), clock.now)
    assert 10 == run(one)
    assert 95 == one.held_keys
    add(records, range(95, 100), clock.now, ANOTHER)
    assert 1 == run(one)
    two = make_upkeep()
    assert 10 == run(two)
    assert (100, 100) == (one.held_keys, two.held_keys)


def test_a_new_database_is_counted_anew(
    upkeep: KeyUpkeep, records: Database, clock: Clock, tmp_path: Path
) -> None:
    """The counts of the old one are dropped."""
    add(records, range(10), clock.now)
    run(upkeep)
    for path in tmp_path.glob("keys.db*"):
        path.unlink()
    run(upkeep)
    assert 0 == upkeep.held_keys
    records.open()
    add(records, range(3), clock.now)
    run(upkeep)
    assert 3 == upkeep.held_keys


# --- The log


def log_bytes(directory: Path) -> int:
    return (directory / "keys.db-wal").stat().st_size


def write_long_log(records: Database, directory: Path, at: float) -> int:
    """Add keys until SQLite's log is long; return their number."""
    count = 0
    while log_bytes(directory) < upkeep_module.LOG_BYTES:
        add(records, range(count, count + 100), at)
        count += 100
    return count


def test_a_long_log_is_copied_into_the_database(
    make_upkeep: Callable[..., KeyUpkeep], records: Database, clock: Clock, tmp_path: Path
) -> None:
    """It is empty afterwards, and nothing is lost."""
    upkeep = make_upkeep(idempotency_keys=1_000_000)
    run(upkeep)
    count = write_long_log(records, tmp_path, clock.now)
    run(upkeep)
    assert 0 == log_bytes(tmp_path)
    assert count == len(known(records, *range(count)))
    add(records, range(count, count + 1), clock.now)
    before = log_bytes(tmp_path)
    run(upkeep)
    assert before == log_bytes(tmp_path)


def test_a_log_that_is_read_is_emptied_later(
    make_upkeep: Callable[..., KeyUpkeep],
    records: Database,
    clock: Clock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A long read of the database delays only that."""
    monkeypatch.setattr(upkeep_module, "WAIT_MS", 1)
    upkeep = make_upkeep(idempotency_keys=1_000_000)
    run(upkeep)
    count = write_long_log(records, tmp_path, clock.now)
    with closing(sqlite3.connect(tmp_path / "keys.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM keys").fetchone()
        run(upkeep)
        assert log_bytes(tmp_path) >= upkeep_module.LOG_BYTES
        add(records, range(count, count + 1), clock.now)
        reader.execute("COMMIT")
    run(upkeep)
    assert 0 == log_bytes(tmp_path)
    assert count + 1 == len(known(records, *range(count + 1)))


def test_deletion_polls_a_locked_database_as_often_as_batches(
    upkeep: KeyUpkeep,
    records: Database,
    clock: Clock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SQLite's own wait polls less often, and would be in vain while batches are stored."""
    run(upkeep)
    add(records, range(10), clock.now - 2 * SECONDS)
    timeouts = []
    with closing(sqlite3.connect(tmp_path / "keys.db", isolation_level=None)) as other:

        def wait(seconds: float) -> None:
            timeouts.extend(upkeep._database.execute("PRAGMA busy_timeout"))
            other.rollback()

        monkeypatch.setattr(database, "block_thread", wait)
        other.execute("BEGIN IMMEDIATE")
        run(upkeep)
    assert [(0,)] == timeouts
    assert [9] == known(records, *range(10))


def test_a_log_is_never_complete_when_a_checkpoint_begins(
    upkeep: KeyUpkeep, records: Database, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each follows a commit of its process: SQLite's wal.html, "WAL-reset bug"."""
    execute, statements = Database.execute, []

    def note(self: Database, statement: str, parameters: object = ()) -> object:
        if "busy_timeout" not in statement:
            statements.append(statement)
        return execute(self, statement, parameters)  # type: ignore[arg-type]

    add(records, range(10), clock.now)
    monkeypatch.setattr(Database, "execute", note)
    run(upkeep)
    found = [number for number, text in enumerate(statements) if "wal_checkpoint" in text]
    assert 2 == len(found)
    assert all(statements[number - 1] == "PRAGMA user_version = 1" for number in found)


# --- Segments


def test_a_size_goes_with_the_last_key_of_its_segment(
    upkeep: KeyUpkeep,
    records: Database,
    clock: Clock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Unless more keys may be added to it."""
    monkeypatch.setattr(upkeep_module, "SEGMENTS_SECONDS", 0.0)
    names = [f"{SEGMENT}{number}" for number in range(3)]
    for number, name in enumerate(names):
        add(records, range(number, number + 1), clock.now, segment=name)
    record_size(tmp_path, names[0], 100)
    run(upkeep)
    assert 3 == len(records.execute("SELECT * FROM segments"))
    clock.now += SECONDS + 1
    add(records, range(10, 11), clock.now, segment=OTHER)
    run(upkeep)
    rows = records.execute("SELECT name FROM segments ORDER BY name")
    assert sorted([names[1], names[2], OTHER]) == [name for (name,) in rows]
    add(records, range(20, 21), clock.now, segment=names[2])
    assert [20] == known(records, 20)


# --- Errors


def test_an_error_is_logged_once_and_does_not_end_the_upkeep(
    upkeep: KeyUpkeep,
    records: Database,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    """The next step continues after it."""
    add(records, range(10), clock.now)
    records.close()
    content = (tmp_path / "keys.db").rename(tmp_path / "away")
    with closing(sqlite3.connect(tmp_path / "keys.db")) as other:
        other.execute("CREATE TABLE notes (text)")
    for _ in range(3):
        assert 0 == run(upkeep)
    assert 1 == len(caplog.messages)
    assert "cannot maintain the idempotency keys" in caplog.messages[0]
    content.rename(tmp_path / "keys.db")
    run(upkeep)
    assert 10 == upkeep.held_keys
    assert 2 == len(caplog.messages)
