import errno
import gc
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import gevent
import pytest

from astralog.codec import Batch
from astralog.errors import Refusal
from astralog.pipeline import CHUNK_BYTES, Pipeline
from astralog.settings import Settings
from astralog.storage import Storage
from tests.conftest import Disk, Fault

BreakOs = Callable[..., Fault]

#: Seconds to wait for what should come at once; an upper bound that a slow machine needs.
PATIENCE_SECONDS = 10


class Gate:
    """A storage whose chunks are recorded, and wait at a gate while it is closed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.chunks: list[list[bytes]] = []
        self._opened = threading.Event()
        self._opened.set()
        store = Storage.store

        def store_behind_gate(storage: Storage, buffers: Sequence[bytes]) -> str | None:
            self.chunks.append(list(buffers))
            assert self._opened.wait(PATIENCE_SECONDS)
            return store(storage, buffers)

        monkeypatch.setattr(Storage, "store", store_behind_gate)

    def close(self) -> None:
        self._opened.clear()

    def open(self) -> None:
        self._opened.set()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made = Gate(monkeypatch)
    yield made
    made.open()


@pytest.fixture
def make_pipeline(settings: Settings) -> Iterator[Callable[..., Pipeline]]:
    """Return what makes pipelines; they are stopped at the end, and must have freed everything."""
    made: list[Pipeline] = []

    def make(**changes: object) -> Pipeline:
        made.append(Pipeline(replace(settings, **changes)))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for pipeline in made:
        pipeline.stop(PATIENCE_SECONDS)
        assert 0 == reserved(pipeline)


@pytest.fixture
def pipeline(make_pipeline: Callable[..., Pipeline]) -> Pipeline:
    return make_pipeline()


def reserved(pipeline: Pipeline) -> int:
    return pipeline._admission.reserved


def line(number: int, size: int = 0) -> bytes:
    return b'{"n":%d,"x":"%s"}\n' % (number, b"x" * size)


def commit(pipeline: Pipeline, lines: bytes) -> Refusal | None:
    """Commit a batch as a request does; return its refusal, None where it is stored."""
    try:
        with pipeline.admit() as room:
            room.resize(len(lines))
            pipeline.commit(Batch(lines, lines.count(b"\n")), room)
    except Refusal as refusal:
        return refusal
    return None


def commit_later(pipeline: Pipeline, lines: bytes) -> "gevent.Greenlet[..., Refusal | None]":
    return gevent.spawn(commit, pipeline, lines)


def result(greenlet: "gevent.Greenlet[..., Refusal | None]") -> str | None:
    """Return the code with which a batch was refused, None where it was stored."""
    refusal = greenlet.get(timeout=PATIENCE_SECONDS)
    return refusal.code if refusal else None


def wait_until(condition: Callable[[], object]) -> None:
    """Let other greenlets run until a condition holds."""
    with gevent.Timeout(PATIENCE_SECONDS):
        while not condition():
            gevent.sleep(0.001)


def stored(path: Path, pattern: str = "*.ndjson*") -> bytes:
    """Return what all segments hold, oldest first."""
    return b"".join(file.read_bytes() for file in sorted(path.glob(pattern)))


# --- Commit


def test_a_batch_is_on_disk_when_its_commit_returns(pipeline: Pipeline, tmp_path: Path) -> None:
    """The pipeline starts by itself with its first batch and stores it."""
    assert commit(pipeline, line(1)) is None
    assert line(1) == stored(tmp_path)
    assert commit(pipeline, line(2) + line(3)) is None
    assert line(1) + line(2) + line(3) == stored(tmp_path)
    assert 0 == reserved(pipeline)


def test_an_empty_batch_needs_no_disk(pipeline: Pipeline, tmp_path: Path) -> None:
    """A batch without lines is stored by doing nothing."""
    assert commit(pipeline, b"") is None
    assert [] == list(tmp_path.iterdir())


def test_batches_that_queue_up_are_stored_in_one_chunk(
    pipeline: Pipeline, gate: Gate, tmp_path: Path
) -> None:
    """What waits while the disk is busy is written and synced at once, in order."""
    gate.close()
    greenlets = [commit_later(pipeline, line(0))]
    wait_until(lambda: gate.chunks)
    greenlets += [commit_later(pipeline, line(number)) for number in range(1, 6)]
    gevent.sleep(0.01)
    assert 1 == len(gate.chunks)
    assert not any(greenlet.ready() for greenlet in greenlets)
    gate.open()
    assert [None] * 6 == [result(greenlet) for greenlet in greenlets]
    assert [[line(0)], [line(number) for number in range(1, 6)]] == gate.chunks
    assert b"".join(map(line, range(6))) == stored(tmp_path)


def test_a_chunk_is_bounded(pipeline: Pipeline, gate: Gate, tmp_path: Path) -> None:
    """What is queued beyond a chunk's bytes waits for the next one."""
    size = CHUNK_BYTES // 3
    gate.close()
    greenlets = [commit_later(pipeline, line(0))]
    wait_until(lambda: gate.chunks)
    greenlets += [commit_later(pipeline, line(number, size)) for number in range(1, 8)]
    gevent.sleep(0.01)
    gate.open()
    assert {None} == {result(greenlet) for greenlet in greenlets}
    assert [1, 3, 3, 1] == [len(chunk) for chunk in gate.chunks]
    assert 8 == stored(tmp_path).count(b"\n")


def test_several_writers_store_at_once(
    make_pipeline: Callable[..., Pipeline], gate: Gate, tmp_path: Path
) -> None:
    """A second writer takes what comes while the first one waits, into its own segment."""
    pipeline = make_pipeline(writers=2)
    gate.close()
    greenlets = []
    for number in range(2):
        greenlets.append(commit_later(pipeline, line(number)))
        wait_until(lambda: len(gate.chunks) == len(greenlets))
    gate.open()
    assert [None, None] == [result(greenlet) for greenlet in greenlets]
    assert [line(0), line(1)] == sorted(p.read_bytes() for p in tmp_path.glob("*.open"))


def test_what_a_dead_process_left_open_is_recovered_at_start(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    """Starting seals the segments that nobody holds, cut after their last whole line."""
    (tmp_path / "20260101T000000.000000Z-1.ndjson.open").write_bytes(line(1) + b"torn")
    pipeline.start()
    wait_until(lambda: list(tmp_path.glob("*.ndjson")))
    assert line(1) == stored(tmp_path)


# --- Refusals of the storage


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, "storage_full"), (errno.EIO, "storage_failed")]
)
def test_a_chunk_that_cannot_be_stored_refuses_each_of_its_batches(
    pipeline: Pipeline, gate: Gate, break_os: BreakOs, tmp_path: Path, number: int, code: str
) -> None:
    """Every batch of the chunk is refused with the reason, and none is on the disk."""
    gate.close()
    greenlets = [commit_later(pipeline, line(0))]
    wait_until(lambda: gate.chunks)
    greenlets += [commit_later(pipeline, line(1)), commit_later(pipeline, line(2))]
    gevent.sleep(0.01)
    break_os("writev", number, times=2)
    gate.open()
    assert [code] * 3 == [result(greenlet) for greenlet in greenlets]
    assert b"" == stored(tmp_path)
    assert 0 == reserved(pipeline)
    assert code == pipeline.unavailable()
    refusal = commit(pipeline, line(3))
    assert refusal is not None
    assert code == refusal.code
    assert refusal.message.endswith("nothing was stored.")
    assert 2 == len(gate.chunks)


def test_a_request_is_let_in_again_when_the_disk_has_room(
    make_pipeline: Callable[..., Pipeline], disk: Disk, tmp_path: Path
) -> None:
    """Nothing is admitted while the disk is full, and the drain finds out that it is not."""
    pipeline = make_pipeline(min_free_bytes=1000)
    disk.free = 0
    assert result(commit_later(pipeline, line(1))) == "storage_full"
    with pytest.raises(Refusal) as refused:
        pipeline.admit()
    assert "storage_full" == refused.value.code
    disk.free = 1 << 40
    wait_until(lambda: pipeline.unavailable() is None)
    assert commit(pipeline, line(2)) is None
    assert line(2) == stored(tmp_path)


def test_one_writer_in_trouble_does_not_refuse_requests(
    make_pipeline: Callable[..., Pipeline],
) -> None:
    """Requests are only turned away when no writer can store."""
    pipeline = make_pipeline(writers=2)
    first, second = pipeline.storages
    first.trouble = "storage_failed"
    assert pipeline.unavailable() is None
    second.trouble = "storage_full"
    assert pipeline.unavailable() in ("storage_failed", "storage_full")
    first.trouble = second.trouble = None


def test_a_fault_of_the_storage_does_not_kill_the_drain(
    pipeline: Pipeline,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A mistake of ours refuses its batches, is logged, and the drain goes on."""

    def fail(storage: Storage, buffers: Sequence[bytes]) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "store", fail)
        assert "storage_failed" == result(commit_later(pipeline, line(1)))
    assert 0 == reserved(pipeline)
    assert None is result(commit_later(pipeline, line(2)))
    assert line(2) == stored(tmp_path)
    (record,) = [record for record in caplog.records if record.exc_info]
    assert logging.ERROR == record.levelno


# --- The commit timeout


def test_a_batch_that_no_writer_took_is_dropped_at_the_timeout(
    make_pipeline: Callable[..., Pipeline], gate: Gate, tmp_path: Path
) -> None:
    """A client that was told so may send the batch again: it is never stored afterwards."""
    pipeline = make_pipeline(commit_timeout_seconds=0.1)
    gate.close()
    taken = commit_later(pipeline, line(1))
    wait_until(lambda: gate.chunks)
    waiting = [commit_later(pipeline, line(2)), commit_later(pipeline, line(3))]
    for greenlet in waiting:
        refusal = greenlet.get(timeout=PATIENCE_SECONDS)
        assert refusal is not None
        assert "commit_timeout" == refusal.code
        assert "the batch was not stored" in refusal.message
        assert "0.1 seconds" in refusal.message
    refusal = taken.get(timeout=PATIENCE_SECONDS)
    assert refusal is not None
    assert "commit_timeout" == refusal.code
    assert "the batch may still be stored" in refusal.message
    gate.open()
    assert result(commit_later(pipeline, line(4))) is None
    pipeline.stop(PATIENCE_SECONDS)
    assert line(1) + line(4) == stored(tmp_path)
    assert 0 == reserved(pipeline)


def test_a_batch_is_dropped_as_soon_as_its_client_is_to_be_told_so(
    make_pipeline: Callable[..., Pipeline],
    settings: Settings,
    gate: Gate,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A writer that runs between the decision and the answer does not store it."""
    pipeline = make_pipeline(commit_timeout_seconds=0.5)
    gate.close()
    commit_later(pipeline, line(1))
    wait_until(lambda: gate.chunks)
    waiting = commit_later(pipeline, line(2))
    gevent.sleep(0)
    time.sleep(0.6)  # nothing else runs, so that the timer is late
    monkeypatch.setattr(gevent, "idle", pipeline.time_out_once)
    gate.open()
    pipeline.drain_once(Storage(settings))
    refusal = waiting.get(timeout=PATIENCE_SECONDS)
    assert refusal is not None
    assert "the batch was not stored" in refusal.message
    assert line(2) not in stored(tmp_path)


def test_a_clock_that_jumps_ends_no_wait(
    pipeline: Pipeline, gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches have their time whatever an operator or NTP does to the clock."""
    gate.close()
    greenlets = [commit_later(pipeline, line(0))]
    wait_until(lambda: gate.chunks)
    greenlets.append(commit_later(pipeline, line(1)))
    gevent.sleep(0.01)
    now = time.time()
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now + 3600)
        pipeline.time_out_once()
    gate.open()
    assert [None, None] == [result(greenlet) for greenlet in greenlets]
    assert line(0) + line(1) == stored(tmp_path)


def test_a_batch_that_a_writer_took_is_charged_until_it_is_stored(
    make_pipeline: Callable[..., Pipeline], gate: Gate
) -> None:
    """Its client is gone, but its bytes are in memory; those of a dropped one are not."""
    pipeline = make_pipeline(commit_timeout_seconds=0.05)
    gate.close()
    taken = commit_later(pipeline, line(1, 10_000))
    wait_until(lambda: gate.chunks)
    dropped = commit_later(pipeline, line(2, 50_000))
    assert ["commit_timeout"] * 2 == [result(taken), result(dropped)]
    assert 10_000 < reserved(pipeline) < 20_000
    gate.open()
    wait_until(lambda: not reserved(pipeline))


@pytest.mark.parametrize("is_killed", [True, False])
def test_a_batch_that_is_dropped_is_let_go_of(
    make_pipeline: Callable[..., Pipeline], gate: Gate, is_killed: bool
) -> None:
    """While the disk hangs, a batch whose client is gone or was told so takes no memory."""
    pipeline = make_pipeline(commit_timeout_seconds=PATIENCE_SECONDS if is_killed else 0.1)
    gate.close()
    commit_later(pipeline, line(1))
    wait_until(lambda: gate.chunks)
    lines = line(2, 50_000)
    held = sys.getrefcount(lines)
    greenlet = commit_later(pipeline, lines)
    gevent.sleep(0.01)
    if is_killed:
        greenlet.kill()
    else:
        assert "commit_timeout" == result(greenlet)
    del greenlet

    def is_let_go_of() -> bool:
        gc.collect()
        return held == sys.getrefcount(lines)

    wait_until(is_let_go_of)


@pytest.mark.parametrize("is_taken", [True, False])
def test_a_client_that_is_gone_leaves_nothing_behind(
    pipeline: Pipeline, gate: Gate, tmp_path: Path, is_taken: bool
) -> None:
    """A request that is killed gives its bytes back; only what a writer took is stored."""
    gate.close()
    greenlet = commit_later(pipeline, line(1))
    wait_until(lambda: gate.chunks)
    if not is_taken:
        waiting = commit_later(pipeline, line(2))
        gevent.sleep(0.01)
        waiting.kill()
    else:
        greenlet.kill()
    gate.open()
    pipeline.stop(PATIENCE_SECONDS)
    assert line(1) == stored(tmp_path)
    assert 0 == reserved(pipeline)


# --- The bounded queue


def test_what_does_not_fit_into_the_queue_is_refused(
    make_pipeline: Callable[..., Pipeline],
    gate: Gate,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A full queue refuses at once and once in the log; what was in it is stored."""
    pipeline = make_pipeline(queue_bytes=100_000, max_body_bytes=100_000)
    gate.close()
    greenlets = [commit_later(pipeline, line(number, 30_000)) for number in range(3)]
    wait_until(lambda: reserved(pipeline) > 90_000)
    for number in (3, 4, 5):
        refusal = commit(pipeline, line(number, 30_000))
        assert refusal is not None
        assert "queue_full" == refusal.code
    assert "queue_full" == pipeline.unavailable()
    gate.open()
    assert [None] * 3 == [result(greenlet) for greenlet in greenlets]
    assert pipeline.unavailable() is None
    assert b"".join(line(number, 30_000) for number in range(3)) == stored(tmp_path)
    lines = [r.getMessage() for r in caplog.records if r.name == "astralog.admission"]
    assert ["queue full", "queue has room again"] == [text[: text.find(":")] for text in lines]
    assert "3 requests were refused" in lines[1]


def test_a_small_request_is_let_in_though_a_large_one_was_refused(
    make_pipeline: Callable[..., Pipeline], gate: Gate
) -> None:
    """A full queue is no reason to turn away what still fits."""
    pipeline = make_pipeline(queue_bytes=100_000, max_body_bytes=100_000)
    gate.close()
    first = commit_later(pipeline, line(0, 80_000))
    wait_until(lambda: reserved(pipeline) > 80_000)
    refusal = commit(pipeline, line(1, 50_000))
    assert refusal is not None
    assert "queue_full" == refusal.code
    second = commit_later(pipeline, line(2, 100))
    gevent.sleep(0.01)
    gate.open()
    assert [None, None] == [result(first), result(second)]


# --- Stopping


def test_stopping_stores_what_is_queued_and_seals(
    pipeline: Pipeline, gate: Gate, tmp_path: Path
) -> None:
    """Nothing that was queued is lost, and no segment stays open."""
    gate.close()
    greenlets = [commit_later(pipeline, line(0))]
    wait_until(lambda: gate.chunks)
    greenlets += [commit_later(pipeline, line(number)) for number in range(1, 4)]
    gevent.sleep(0.01)
    stop = gevent.spawn(pipeline.stop, PATIENCE_SECONDS)
    gevent.sleep(0.01)
    assert "stopping" == pipeline.unavailable()
    gate.open()
    stop.get(timeout=PATIENCE_SECONDS)
    assert [None] * 4 == [result(greenlet) for greenlet in greenlets]
    assert b"".join(map(line, range(4))) == stored(tmp_path, "*.ndjson")
    assert [] == list(tmp_path.glob("*.open"))


def test_a_stopped_pipeline_refuses(pipeline: Pipeline, tmp_path: Path) -> None:
    """After the stop nothing is let in and nothing is stored."""
    with pipeline.admit() as room:
        commit(pipeline, line(1))
        pipeline.stop(PATIENCE_SECONDS)
        assert "stopping" == pipeline.unavailable()
        with pytest.raises(Refusal) as refused:
            pipeline.commit(Batch(line(2), 1), room)
        assert "stopping" == refused.value.code
    with pytest.raises(Refusal) as refused:
        pipeline.admit()
    assert "stopping" == refused.value.code
    assert line(1) == stored(tmp_path, "*.ndjson")
    assert 0 == reserved(pipeline)


def test_a_pipeline_that_never_started_stops(pipeline: Pipeline, tmp_path: Path) -> None:
    """Stopping needs no start, and may be asked twice."""
    pipeline.stop(PATIENCE_SECONDS)
    pipeline.stop(PATIENCE_SECONDS)
    assert [] == list(tmp_path.iterdir())


def test_every_writer_seals_at_the_stop(
    make_pipeline: Callable[..., Pipeline], gate: Gate, tmp_path: Path
) -> None:
    """All writers end, each with its segment sealed."""
    pipeline = make_pipeline(writers=3)
    gate.close()
    greenlets = []
    for number in range(3):
        greenlets.append(commit_later(pipeline, line(number)))
        wait_until(lambda: len(gate.chunks) == len(greenlets))
    gate.open()
    assert [None] * 3 == [result(greenlet) for greenlet in greenlets]
    pipeline.stop(PATIENCE_SECONDS)
    assert 3 == len(list(tmp_path.glob("*.ndjson")))
    assert [] == list(tmp_path.glob("*.open"))


def test_what_cannot_be_stored_before_the_stop_is_refused(
    pipeline: Pipeline, gate: Gate, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At its deadline the stop refuses what no writer has taken, and says so in the log."""
    gate.close()
    taken = commit_later(pipeline, line(1))
    wait_until(lambda: gate.chunks)
    waiting = commit_later(pipeline, line(2))
    gevent.sleep(0.01)
    pipeline.stop(0.05)
    assert "stopping" == result(waiting)
    assert any(message.startswith("stopped before") for message in caplog.messages)
    gate.open()
    assert result(taken) is None
    assert line(1) == stored(tmp_path)
    assert 0 == reserved(pipeline)
