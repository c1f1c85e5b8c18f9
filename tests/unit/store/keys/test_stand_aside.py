"""No file of a failing disk stays open, so it can be unmounted."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from astralog.settings import Settings
from astralog.store.segment import Segment
from tests.unit.store.keys.workers import IN_USE, REPLAYED, STORED, Batch, Worker

A, B = b'{"m":"a1"}\n{"m":"a2"}\n', b'{"m":"b"}\n'


@pytest.fixture
def worker(settings: Settings) -> Iterator[Worker]:
    worker = Worker(settings)
    yield worker
    worker.storage.close()
    worker.kill()


def open_files(directory: Path) -> set[str]:
    """Return a directory's files that this process has open or mapped."""
    paths = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            paths.append(os.readlink(f"/proc/self/fd/{name}"))
    for line in Path("/proc/self/maps").read_text().splitlines():
        paths += line.split(maxsplit=5)[5:]
    return {Path(path).name for path in paths if path.startswith(f"{directory}/")}


def test_no_file_of_a_failing_disk_is_open(worker: Worker, tmp_path: Path) -> None:
    """Earlier claims are lost, and keys are accepted again afterwards."""
    assert STORED == worker.send("a", A)
    claim = worker.claim("b", B)
    for _ in worker.keys.upkeep.step():
        pass
    worker.storage.close()
    assert {"keys.db", "keys.db-wal", "keys.db-shm", "keys.lock"} == open_files(tmp_path)
    worker.keys.stand_aside()
    worker.keys.upkeep.close()
    assert set() == open_files(tmp_path)
    assert [IN_USE] == worker.store(Batch(B, claim))
    claim.release()
    worker.keys.stand_aside()
    assert set() == open_files(tmp_path)
    assert [REPLAYED, STORED] == [worker.send("a", A), worker.send("b", B)]


def test_keys_stay_locked_while_their_lines_are_written(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise another process would store the batch as well."""
    write = Segment.write

    def stand_aside_and_write(segment: Segment, buffers: Sequence[bytes]) -> None:
        worker.keys.stand_aside()
        assert "keys.lock" in open_files(tmp_path)
        write(segment, buffers)

    monkeypatch.setattr(Segment, "write", stand_aside_and_write)
    assert STORED == worker.send("a", A)
