"""Keys when processes end, and when their database is damaged or blocked."""

import hashlib
import itertools
import json
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.keyed_client import is_replay, make_headers
from tests.support.keyed_load import KeyedLoad
from tests.support.numbered_batches import count_lines, make_body
from tests.support.service import (
    TOKEN,
    Answer,
    Service,
    make_batch,
    make_head,
    read_answer,
    wait_for,
)
from tests.support.workers import connect_to

BATCHES = range(6)

#: Logs of each batch, which spans more than a page.
LOGS = 20

#: What may befall the database while the service is down.
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "torn at its end": lambda content: content[:-5000],
    "spoilt in its midst": lambda content: content[:4096] + b"\xa5" * 9000 + content[13096:],
    "nothing but zeros": lambda content: bytes(len(content)),
    "somebody's text": lambda content: b"somebody's text\n" * 1000,
}


def send(service: Service, number: int) -> Answer:
    """Send a batch by its number."""
    return service.drain(make_body(number, LOGS), make_headers(number))


def send_until_stored(service: Service, number: int) -> Answer:
    """Send a batch until it is stored, as a client does."""

    def stored() -> Answer | None:
        answer = send(service, number)
        assert answer.status in (200, 409, 503)
        return answer if answer.status == 200 else None

    return wait_for(stored)


def check_stored(service: Service) -> None:
    """Check that each batch is stored completely, and once."""
    lines = count_lines(log for log in service.logs() if "batch" in log["metadata"])
    assert {(number, line) for number in BATCHES for line in range(LOGS)} == set(lines)
    assert {1} == set(lines.values())


def test_kills_double_nothing(tmp_path: Path) -> None:
    """Clients that retry until they get 200 find each batch complete, and once."""
    with Service(tmp_path, workers=2, segment_bytes=200_000) as service:
        load = KeyedLoad(service, threads=6)
        load.start()
        for _ in range(3):
            enough = len(load.acknowledged) + 30
            wait_for(lambda: len(load.acknowledged) > enough)  # noqa: B023
            service.kill()
            service.start()
        load.stop()
        wait_for(lambda: not service.has_orphans())
        assert 0 == service.stop()
        assert load.replayed
        load.check(service.logs())


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_database_is_replaced(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    """Its keys are forgotten, which the log reports; it is kept, and the service continues."""
    with Service(tmp_path, workers=2) as service:
        assert not any(is_replay(send(service, number)) for number in BATCHES)
        assert 0 == service.stop()
        path = service.data_dir / "keys.db"
        assert [path] == service.files("keys.db*")  # the last process has put all in it
        damaged = damage(path.read_bytes())
        path.write_bytes(damaged)
        service.start()
        assert 200 == service.drain(make_batch("without a key")).status
        assert not any(is_replay(send_until_stored(service, number)) for number in BATCHES)
        # The other worker may notice only now that the database was replaced, and reject once.
        assert all(is_replay(send_until_stored(service, number)) for number in BATCHES)
        assert damaged == (service.data_dir / "keys.db.damaged").read_bytes()
        assert 1 == service.log().count("are FORGOTTEN")
        _check_order(service)


def test_database_may_be_damaged_while_it_is_used(tmp_path: Path) -> None:
    """Each batch is stored by some worker, and the new database remembers it."""
    with Service(tmp_path, workers=2) as service:
        assert not any(is_replay(send(service, number)) for number in BATCHES)
        path = service.data_dir / "keys.db"
        with closing(sqlite3.connect(path, isolation_level=None)) as other:  # none is in the log
            wait_for(lambda: other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0)
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xa5" * 200_000)
        for number in itertools.chain(BATCHES, range(100, 120)):
            assert 200 == service.drain(make_batch("without a key")).status
            send_until_stored(service, number)
        wait_for(lambda: "are FORGOTTEN" in service.log())
        for number in BATCHES:
            send_until_stored(service, number)  # the other worker may still use the spoilt one
            assert is_replay(send_until_stored(service, number))
        _check_order(service)


def test_a_database_of_another_program_is_left_alone(tmp_path: Path) -> None:
    """Batches with keys are rejected until it is removed, and the log names the remedy."""
    service = Service(tmp_path, workers=2)
    service.data_dir.mkdir()
    path = service.data_dir / "keys.db"
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE notes (text)")
    before = path.read_bytes()
    with service:
        for number in BATCHES:
            assert (503, "storage_failed") == (
                send(service, number).status,
                send(service, number).body["code"],
            )
            assert 200 == service.drain(make_batch("without a key")).status
        assert "move it away" in service.log()
        assert before == path.read_bytes()
        path.rename(tmp_path / "notes.db")
        assert not any(is_replay(send_until_stored(service, number)) for number in BATCHES)
        _check_order(service)
        check_stored(service)


def test_a_locked_database_delays_no_other_batch(tmp_path: Path) -> None:
    """Batches with keys are rejected while any process holds the lock, and none is doubled."""
    with Service(tmp_path, workers=2) as service:
        assert not is_replay(send(service, 0))
        database = sqlite3.connect(service.data_dir / "keys.db", isolation_level=None)
        with closing(database):
            database.execute("BEGIN IMMEDIATE")
            for number in (1, 2, 3):
                answer = send(service, number)
                assert (503, "storage_failed") == (answer.status, answer.body["code"])
                assert 200 == service.drain(make_batch("without a key")).status
            database.execute("ROLLBACK")
        assert "locked by another process" in service.log()
        for number in BATCHES:
            send_until_stored(service, number)
        assert all(is_replay(send_until_stored(service, number)) for number in BATCHES)
        _check_order(service)
        check_stored(service)


def _check_order(service: Service) -> None:
    """Check that a fault of the database affects nothing else."""
    assert 200 == service.drain(make_batch("without a key")).status
    assert {"status": "ready"} == service.request("GET", "/ready").body
    assert "Traceback" not in service.log()
    assert 0 == service.stop()


def test_keys_wait_for_a_directory_that_is_gone(tmp_path: Path) -> None:
    """Nothing is stored and every client gets an answer; afterwards each batch is stored once."""
    with Service(tmp_path, workers=1) as service:
        assert not is_replay(send(service, 0))
        away = service.data_dir.rename(tmp_path / "away")
        for number in (0, 1, 1, 2):
            answers = [send(service, number), service.drain(make_batch("without a key"))]
            assert {503} >= {answer.status for answer in answers} - {200}
            codes = {answer.body.get("code") for answer in answers} - {None}
            assert codes <= {"storage_failed", "commit_timeout"}
        away.rename(service.data_dir)
        for number in BATCHES:
            wait_for(lambda: send(service, number).status == 200)  # noqa: B023
        assert all(is_replay(send(service, number)) for number in BATCHES)
        _check_order(service)
        check_stored(service)


@pytest.mark.parametrize("name", ["keys.db", "keys.db-wal", "keys.db-shm", "keys.lock"])
def test_a_directory_in_the_way_costs_no_other_batch(tmp_path: Path, name: str) -> None:
    """Batches without a key are stored; those with one are stored or rejected, permanently."""
    service = Service(tmp_path)
    (service.data_dir / name).mkdir(parents=True)
    with service:
        assert 200 == service.drain(make_batch("without a key")).status
        for number in BATCHES:
            answer = send(service, number)
            assert answer.status in (200, 503)
            if answer.status == 200:
                assert is_replay(send(service, number))
        assert 200 == service.drain(make_batch("without a key")).status
        assert {"status": "ready"} == service.request("GET", "/ready").body
        assert "Traceback" not in service.log()
        (service.data_dir / name).rmdir()
        for number in BATCHES:
            wait_for(lambda: send(service, number).status == 200)  # noqa: B023
        assert all(is_replay(send(service, number)) for number in BATCHES)
        assert 0 == service.stop()
        check_stored(service)


def test_many_keys_do_not_slow_the_first_one(tmp_path: Path) -> None:
    """A worker that is not the housekeeper reads almost nothing for it."""
    with Service(tmp_path, workers=2) as service:
        assert not is_replay(send(service, 0))
        assert 0 == service.stop()
        database = service.data_dir / "keys.db"
        _add_keys(database, 100_000)
        service.start()
        read = {}
        for pid in service.worker_pids():
            assert not is_replay(_send_to(service, pid))  # it imports what it needs
            before = _bytes_read(pid)
            assert not is_replay(_send_to(service, pid, f"Idempotency-Key: batch-{pid}"))
            read[pid] = _bytes_read(pid) - before
        assert min(read.values()) < database.stat().st_size / 10
        assert is_replay(send(service, 0))
        wait_for(lambda: "astralog_idempotency_keys 100003.0" in _metrics(service))


def _send_to(service: Service, pid: int, *headers: str) -> Answer:
    """Send a batch to one worker."""
    body = json.dumps(make_batch("sent to one")).encode()
    with connect_to(service, pid) as connection:
        connection.sendall(make_head(*headers, f"Content-Length: {len(body)}") + body)
        return read_answer(connection)


def _metrics(service: Service) -> str:
    return service.request("GET", "/metrics", None, {"Authorization": TOKEN}).raw.decode()


def _bytes_read(pid: int) -> int:
    """Return the bytes that a process has read, from files and sockets."""
    return int(Path(f"/proc/{pid}/io").read_text().split()[1])


def _add_keys(path: Path, count: int) -> None:
    """Add keys as docs/operations.md does."""
    now = int(time.time())
    digests = (hashlib.sha256(b"%d" % number).digest()[:16] for number in range(count))
    with closing(sqlite3.connect(path)) as database, database:
        database.executemany(
            "INSERT INTO keys (time, token, key, body, segment, start, stop)"
            " VALUES (?, '01234567', ?, x'00', 1, 0, 1)",
            ((now, digest) for digest in digests),
        )
