"""Batches with keys, at every moment at which a process, a disk or a machine may fail."""

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from astralog.settings import Settings
from astralog.store import recovery
from astralog.store.keys.claims import REPLAYED
from astralog.store.keys.journal_files import ranges_in
from astralog.store.recovery import recover_file
from tests.conftest import Fault
from tests.unit.store.keys.workers import (
    IN_USE,
    STORED,
    Batch,
    Killed,
    Worker,
    journal,
    kill_at,
    stored,
)

BreakOs = Callable[..., Fault]

A, B, C = b'{"m":"a1"}\n{"m":"a2"}\n', b'{"m":"b"}\n', b'{"m":"c"}\n'


@pytest.fixture
def make_worker(settings: Settings) -> Iterator[Callable[..., Worker]]:
    """Return what makes workers on one data directory."""
    made: list[Worker] = []

    def make(**changes: object) -> Worker:
        made.append(Worker(replace(settings, **changes)))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for worker in filter(lambda worker: worker.is_alive, made):
        worker.storage.close()
        worker.kill()


@pytest.fixture
def worker(make_worker: Callable[..., Worker]) -> Worker:
    return make_worker()


def kill_while_storing(worker: Worker, key: str, lines: bytes) -> None:
    with pytest.raises(Killed):
        worker.send(key, lines)
    worker.kill()


# --- Without faults


def test_a_batch_is_stored_once(worker: Worker, tmp_path: Path) -> None:
    """Each further try is a replay, also of a batch in the midst of others."""
    assert STORED == worker.send("a", A)
    assert STORED == worker.send("b", B)
    assert [REPLAYED] * 3 == [worker.send("a", A), worker.send("b", B), worker.send("a", A)]
    assert A + B == stored(tmp_path)


def test_another_worker_knows_what_was_stored(
    make_worker: Callable[..., Worker], tmp_path: Path
) -> None:
    """Also while the segment is being written, and after it was sealed, removed or compressed."""
    one, two = make_worker(), make_worker()
    assert STORED == one.send("a", A)
    assert REPLAYED == two.send("a", A)
    assert "key_reused" == two.send("a", A, b"another body")
    one.storage.close()
    assert REPLAYED == two.send("a", A)
    (path,) = tmp_path.glob("*.ndjson")
    path.unlink()
    assert [REPLAYED] * 3 == [w.send("a", A) for w in (one, two, make_worker())]
    assert STORED == two.send("b", B)
    assert REPLAYED == one.send("b", B)
    assert B == stored(tmp_path)


def test_one_worker_has_a_key_at_a_time(make_worker: Callable[..., Worker], tmp_path: Path) -> None:
    """The second one is told so, in the same process and in another, until the first lets go."""
    one, two = make_worker(), make_worker()
    claim = one.claim("a", A)
    assert claim
    assert (IN_USE, IN_USE) == (one.send("a", A), two.send("a", A))
    assert [STORED] == one.store(Batch(A, claim))
    assert IN_USE == two.send("a", A)
    claim.release()
    assert REPLAYED == two.send("a", A)
    assert A == stored(tmp_path)


def test_a_commit_group_may_hold_both_kinds(worker: Worker, tmp_path: Path) -> None:
    """Those that are stored already are left out of it."""
    assert STORED == worker.send("a", A)
    again, new = worker.claim("a", A), worker.claim("b", B)
    assert again
    assert new
    group = [Batch(C, None), Batch(A, again), Batch(B, new), Batch(C, None)]
    assert [STORED, REPLAYED, STORED, STORED] == worker.store(*group)
    new.release()
    again.release()
    assert A + C + B + C == stored(tmp_path)
    assert [REPLAYED, REPLAYED] == [worker.send("a", A), worker.send("b", B)]


# --- A process dies


@pytest.mark.parametrize("written", [0, 1, len(A) // 2, len(A) - 1])
def test_lines_that_are_not_whole_are_cut_and_stored_anew(
    make_worker: Callable[..., Worker],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    written: int,
) -> None:
    """Killed between the journal and the last line, also after one of several whole lines."""
    one, two = make_worker(), make_worker()
    assert STORED == one.send_plain(B)
    kill_at(monkeypatch, "write", written)
    kill_while_storing(one, "a", A)
    assert b"keyed " in journal(tmp_path)
    assert B + A[:written] == stored(tmp_path)
    assert STORED == two.send("a", A)
    assert B + A == stored(tmp_path)
    assert [REPLAYED, REPLAYED] == [two.send("a", A), make_worker().send("a", A)]


def test_lines_that_are_whole_count_although_nobody_was_answered(
    make_worker: Callable[..., Worker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the sync of the lines: whoever looks next syncs them, and it is a replay."""
    one, two = make_worker(), make_worker()
    kill_at(monkeypatch, "sync")
    kill_while_storing(one, "a", A)
    assert [REPLAYED, REPLAYED] == [two.send("a", A), make_worker().send("a", A)]
    assert [A] == [path.read_bytes() for path in tmp_path.glob("*.ndjson")]


def test_a_recovery_by_others_says_what_was_kept(
    make_worker: Callable[..., Worker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it cut is not taken for stored when the segment is gone, and what it kept is."""
    one = make_worker()
    assert STORED == one.send("b", B)
    kill_at(monkeypatch, "write", len(A) // 2)
    kill_while_storing(one, "a", A)
    (path,) = tmp_path.glob("*.open")
    assert len(B) == recover_file(path)
    (sealed,) = tmp_path.glob("*.ndjson")
    assert b"sealed %b %d " % (sealed.stem.encode(), len(B)) in journal(tmp_path)
    sealed.unlink()
    two = make_worker()
    assert REPLAYED == two.send("b", B)
    assert STORED == two.send("a", A)
    assert A == stored(tmp_path)


def test_a_segment_that_never_had_a_line_does_not_count(
    make_worker: Callable[..., Worker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recovery removes an empty file; the journal's word alone is not enough."""
    one = make_worker()
    kill_at(monkeypatch, "write")
    kill_while_storing(one, "a", A)
    (path,) = tmp_path.glob("*.open")
    assert 0 == recover_file(path)
    assert [] == list(tmp_path.glob("*.ndjson*"))
    assert STORED == make_worker().send("a", A)


@pytest.mark.parametrize("first_hole", [0, len(B), len(B) + 3, len(B) + len(A) - 1])
def test_after_a_power_cut_no_part_of_a_batch_is_kept(
    make_worker: Callable[..., Worker], tmp_path: Path, first_hole: int
) -> None:
    """Pages that were lost read as zeros; what comes after them is not kept either."""
    one = make_worker()
    for key, lines in (("b", B), ("a", A), ("c", C)):
        assert STORED == one.send(key, lines)
    one.kill()
    (path,) = tmp_path.glob("*.open")
    content = bytearray(path.read_bytes())
    content[first_hole] = 0
    path.write_bytes(content)
    two = make_worker()
    outcomes = [two.send(key, lines) for key, lines in (("c", C), ("a", A), ("b", B))]
    kept_b = first_hole >= len(B)
    assert [STORED, STORED, REPLAYED if kept_b else STORED] == outcomes
    assert sorted(A + B + C) == sorted(stored(tmp_path))
    assert stored(tmp_path) == (B if kept_b else b"") + C + A + (b"" if kept_b else B)


def test_a_segment_that_is_being_recovered_is_not_looked_into(
    make_worker: Callable[..., Worker],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    break_os: BreakOs,
) -> None:
    """A sync beside the recovery's could take its error, and what was lost would be kept."""
    one, two = make_worker(), make_worker()
    kill_at(monkeypatch, "sync")
    kill_while_storing(one, "a", A)
    syncs = break_os("fdatasync", errno.EIO, times=0)
    outcomes = []

    def look_meanwhile(directory: Path, segment: str) -> list[tuple[int, int]]:
        outcomes.append(two.send("a", A))
        return ranges_in(directory, segment)

    monkeypatch.setattr(recovery, "ranges_in", look_meanwhile)
    (path,) = tmp_path.glob("*.open")
    assert len(A) == recover_file(path)
    assert ["storage_failed"] == outcomes
    assert [] == [file for file in syncs.calls if ".ndjson" in file]
    assert REPLAYED == two.send("a", A)


# --- The disk fails


def test_without_a_journal_batches_with_keys_are_rejected(
    worker: Worker, tmp_path: Path, break_os: BreakOs
) -> None:
    """A journal that cannot be written costs those nothing that have no key."""
    claim = worker.claim("a", A)
    break_os("write", errno.ENOSPC)
    assert ["storage_full", STORED] == worker.store(Batch(A, claim), Batch(B, None))
    assert B == stored(tmp_path)
    assert worker.storage.error_code is None


def test_a_journal_that_is_not_synced_does_not_count(
    make_worker: Callable[..., Worker], tmp_path: Path, break_os: BreakOs
) -> None:
    """Its word may be there all the same; the offsets that it names are never written to."""
    one, two = make_worker(), make_worker()
    assert STORED == one.send("c", C)
    claim = one.claim("a", A)
    assert claim
    syncs = break_os("fdatasync", errno.EIO, times=1)
    assert ["storage_failed", STORED] == one.store(Batch(A, claim), Batch(B, None))
    assert ".journal" in syncs.calls[0]
    claim.release()
    assert 1 == len(list(tmp_path.glob("*.ndjson")))
    for _ in range(20):
        one.send_plain(B)
    one.storage.close()
    assert STORED == two.send("a", A)
    assert 1 == stored(tmp_path).count(A)
    assert [REPLAYED] * 3 == [one.send("a", A), one.send("c", C), make_worker().send("a", A)]


def test_keys_are_taken_again_when_the_disk_works(
    worker: Worker, break_os: BreakOs, caplog: pytest.LogCaptureFixture
) -> None:
    """The journal is tried once a second, in a new file, and the log says when it works."""
    fault = break_os("write", errno.EIO)
    assert "storage_failed" == worker.send("a", A)
    worker.keys.maintain()
    assert "storage_failed" == worker.keys.error_code
    fault.times = 0
    worker.keys.maintain()
    assert worker.keys.error_code is None
    assert STORED == worker.send("a", A)
    told = [message for message in caplog.messages if message.startswith("idempotency keys: ")]
    assert 2 == len(told)
    assert told[1].endswith("storage_failed is over")


def _noted(calls: list[str], name: str, function: Callable[..., int]) -> Callable[..., int]:
    """Return a function of `os` that notes which kind of file it is called for."""

    def note(fd: int, *arguments: object) -> int:
        path = os.readlink(f"/proc/self/fd/{fd}")
        calls.append(f"{name} {'journal' if path.endswith('.journal') else 'segment'}")
        return function(fd, *arguments)

    return note


def test_the_journal_is_synced_before_the_first_line(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines that reached the disk without it would be stored anew by the second try."""
    calls: list[str] = []
    for name in ("write", "writev", "fdatasync"):
        monkeypatch.setattr(os, name, _noted(calls, name, getattr(os, name)))
    assert STORED == worker.send("a", A)
    calls.clear()
    assert STORED == worker.send("b", B)
    assert ["write journal", "fdatasync journal", "writev segment", "fdatasync segment"] == calls


def test_lines_that_cannot_be_cut_keep_their_key(
    make_worker: Callable[..., Worker], tmp_path: Path, break_os: BreakOs
) -> None:
    """Until they are cut, nobody can say whether the batch will have been stored."""
    one, two = make_worker(), make_worker()
    break_os("fdatasync", errno.EIO, times=1)
    cuts = break_os("ftruncate", errno.EIO)
    one.keys._mode = "never"  # so that it is the lines' sync that fails
    assert "storage_failed" == one.send("a", A)
    assert (IN_USE, IN_USE) == (one.send("a", A), two.send("a", A))
    cuts.times = 0
    one.storage.maintain()
    one.keys.maintain()
    assert STORED == two.send("a", A)
    assert REPLAYED == one.send("a", A)
    assert 1 == stored(tmp_path).count(A)


def test_lines_that_were_never_cut_are_a_batch_once_their_process_is_gone(
    make_worker: Callable[..., Worker], tmp_path: Path, break_os: BreakOs
) -> None:
    """A recovery keeps what is whole, and the second try finds that out."""
    one, two = make_worker(), make_worker()
    break_os("fdatasync", errno.EIO, times=1)
    cuts = break_os("ftruncate", errno.EIO)
    one.keys._mode = "never"
    assert "storage_failed" == one.send("a", A)
    cuts.times = 0
    one.kill()
    assert REPLAYED == two.send("a", A)
    assert 1 == stored(tmp_path).count(A)


# --- Somebody interferes


def test_a_deleted_journal_costs_the_memory_alone(
    make_worker: Callable[..., Worker], tmp_path: Path
) -> None:
    """What comes after it is remembered again, by every worker."""
    one, two = make_worker(), make_worker()
    assert STORED == one.send("a", A)
    assert REPLAYED == two.send("a", A)
    for path in tmp_path.glob("keys-*.journal"):
        path.unlink()
    assert STORED == one.send("b", B)
    assert REPLAYED == two.send("b", B)
    assert STORED == two.send("a", A)
    assert REPLAYED == one.send("a", A)


def test_a_deleted_lock_file_gives_no_key_to_two(
    make_worker: Callable[..., Worker], tmp_path: Path
) -> None:
    """Who locked the old file is told to try again."""
    one, two = make_worker(), make_worker()
    claim = one.claim("a", A)
    assert claim
    (tmp_path / "keys.lock").unlink()
    assert IN_USE == two.send("b", B)  # it finds the file gone, and makes a new one
    assert STORED == two.send("a", A)
    assert [IN_USE] == one.store(Batch(A, claim))
    claim.release()
    assert REPLAYED == one.send("a", A)
    assert A == stored(tmp_path)


def test_damaged_records_are_skipped_and_told(
    make_worker: Callable[..., Worker], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A torn record costs its own key, and no other."""
    one = make_worker()
    assert STORED == one.send("a", A)
    (path,) = tmp_path.glob("keys-*.journal")
    with path.open("ab") as file:
        file.write(b"\nkeyed 17640340")
    assert STORED == one.send("b", B)
    two = make_worker()
    assert [REPLAYED, REPLAYED] == [two.send("a", A), two.send("b", B)]
    assert any("skipped 1 damaged lines" in message for message in caplog.messages)
