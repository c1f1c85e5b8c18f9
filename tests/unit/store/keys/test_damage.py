"""What a power cut or a failed sync may leave of the journal, and disks that are unmounted."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from astralog.settings import Settings
from astralog.store.keys.claims import REPLAYED
from astralog.store.keys.locks import KeyLocks
from astralog.store.segment import Segment
from tests.unit.store.keys.workers import IN_USE, STORED, Batch, Worker, stored

A, B = b'{"m":"a1"}\n{"m":"a2"}\n', b'{"m":"b"}\n'

#: What may stand behind the last record that was synced: a page was lost, and the next one not.
HOLES = (bytes(100), bytes(5000), bytes(100) + b"10 20 0123abcd", bytes(4000) + b"0 0\nkeyed 17")


@pytest.fixture
def workers(settings: Settings) -> Iterator[list[Worker]]:
    """Return two workers, of which the first has stored batch `a`."""
    workers = [Worker(settings), Worker(settings)]
    assert STORED == workers[0].send("a", A)
    yield workers
    for worker in workers:
        worker.storage.close()
        worker.kill()


@pytest.fixture
def worker(settings: Settings) -> Iterator[Worker]:
    worker = Worker(settings)
    yield worker
    worker.storage.close()
    worker.kill()


def journal_of(directory: Path) -> Path:
    """Return the one file of the journal."""
    (path,) = directory.glob("keys-*.journal")
    return path


@pytest.mark.parametrize("hole", HOLES)
def test_a_hole_behind_a_record_costs_it_nothing(
    workers: list[Worker], settings: Settings, tmp_path: Path, hole: bytes
) -> None:
    """A record that was synced counts, whoever reads it, before others are appended and after."""
    with journal_of(tmp_path).open("ab") as file:
        file.write(hole)
    one, two = workers
    assert [REPLAYED, REPLAYED] == [worker.send("a", A) for worker in (Worker(settings), two)]
    assert STORED == two.send("b", B)
    for worker in (one, two, Worker(settings)):
        assert [REPLAYED, REPLAYED] == [worker.send("a", A), worker.send("b", B)]


def test_a_hole_behind_a_record_keeps_no_part_of_its_batch(
    workers: list[Worker], settings: Settings, tmp_path: Path
) -> None:
    """The recovery of a segment knows where a batch ends, and so does its second try."""
    workers[0].kill()
    with journal_of(tmp_path).open("ab") as file:
        file.write(bytes(100))
    (segment,) = tmp_path.glob("*.ndjson.open")
    os.truncate(segment, len(A) - 3)
    assert STORED == workers[1].send("a", A)
    assert A == stored(tmp_path)


def test_locks_that_cannot_be_opened_fail_as_the_disk_does(tmp_path: Path) -> None:
    """Where the directory is gone, nobody gets a key, and what is released is released."""
    (tmp_path / "data").mkdir()
    locks = KeyLocks(tmp_path / "data")
    locks.open()
    assert locks.take("0123456789abcdef")
    (tmp_path / "data").rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError):
        locks.open()
    with pytest.raises(OSError, match="Bad file descriptor"):
        locks.take("0123456789abcdef")
    locks.release("0123456789abcdef")


def open_files(directory: Path) -> list[str]:
    """Return the files of a directory that this process has open."""
    paths = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            paths.append(os.readlink(f"/proc/self/fd/{name}"))
    return sorted(Path(path).name for path in paths if path.startswith(f"{directory}/"))


def test_nothing_is_held_of_a_disk_that_fails(worker: Worker, tmp_path: Path) -> None:
    """It can be unmounted; a claim from before is lost, and keys are taken again afterwards."""
    assert STORED == worker.send("a", A)
    claim = worker.claim("b", B)
    worker.storage.close()
    assert ["keys-00000001.journal", "keys.lock"] == open_files(tmp_path)
    worker.keys.stand_aside()
    assert [] == open_files(tmp_path)
    with pytest.raises(OSError, match="Bad file descriptor"):
        worker.claim("c", A)
    assert claim
    assert [IN_USE] == worker.store(Batch(B, claim))
    claim.release()
    worker.keys.stand_aside()
    worker.keys.maintain()
    assert [REPLAYED, STORED] == [worker.send("a", A), worker.send("b", B)]


def test_keys_are_not_let_go_while_their_lines_are_written(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process would store the batch as well."""
    write = Segment.write

    def stand_aside_and_write(segment: Segment, buffers: Sequence[bytes]) -> None:
        worker.keys.stand_aside()
        assert "keys.lock" in open_files(tmp_path)
        write(segment, buffers)

    monkeypatch.setattr(Segment, "write", stand_aside_and_write)
    assert STORED == worker.send("a", A)
