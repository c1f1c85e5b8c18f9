"""Compression with kills, with a full disk, and with readers at the same time."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path

from tests.faults import mounts
from tests.faults.bench import Bench, under_load, wait_for_more
from tests.faults.disks import fill_up
from tests.faults.table import Row
from tests.support.load import Load
from tests.support.service import Service, one_form_each, read_segment, wait_for
from tests.support.tail import Tail

KIB = 1024
MIB = 1024 * KIB

#: Small, so that most moments are in the midst of a compression.
SEGMENT_BYTES = 40 * KIB

#: Longest time between two kills.
LONGEST_PEACE_SECONDS = 1.5

#: Seconds in which all that is sealed must be compressed at the end.
COMPRESSION_SECONDS = 60.0

DRAFT_NAME = ".compressing"


def run(bench: Bench, rounds: int, kills: Collection[str] = ()) -> Iterator[Row]:
    """Kill the compressor and other processes, `rounds` times each; then fill a disk.

    Of the kinds of `kills` there are all, or those that are named.
    """
    for what, kill in KILLS.items():
        if bench.has_time and (not kills or what in kills):
            yield _run(bench, f"compression: kill -9 of {what}", rounds, kill)
    if not bench.has_time:
        return
    if mounts.can_mount():
        yield _fill(bench)
    else:
        bench.say("NOT TESTED: compression on a full disk; it takes root to mount one")


def _kill_compressor(service: Service, bench: Bench) -> None:
    if pid := service.compressor_pid():
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: service.compressor_pid() not in (None, pid))


def _kill_worker(service: Service, bench: Bench) -> None:
    service.wait_for_workers()
    service.kill_worker(bench.random.choice(service.worker_pids()))


def _kill_master(service: Service, bench: Bench) -> None:
    service.signal(signal.SIGKILL)
    service.wait()
    wait_for(lambda: not service.pids())
    service.start()


def _kill_all(service: Service, bench: Bench) -> None:
    service.kill()
    service.start()


def _kill_both(service: Service, bench: Bench) -> None:
    _kill_compressor(service, bench)
    bench.random.choice((_kill_worker, _kill_all))(service, bench)


Kill = Callable[[Service, Bench], None]

KILLS: dict[str, Kill] = {
    "the compressor": _kill_compressor,
    "the master": _kill_master,
    "everything at once": _kill_all,
    "the compressor and another process": _kill_both,
}


def _run(bench: Bench, what: str, rounds: int, kill: Kill) -> Row:
    """Kill at random moments; `tail -f` must show each stored line once."""
    row = Row(what)
    directory = bench.make_directory()
    service = Service(
        directory, workers=2, segment_bytes=SEGMENT_BYTES, segment_seconds=1, compress="zstd"
    )
    service.data_dir.mkdir()
    with (
        Tail(directory, service.data_dir, "-f", "-n", "all", "--json") as tail,
        under_load(bench, row, service, threads=4) as load,
    ):
        while row.tried < rounds and bench.has_time:
            time.sleep(bench.random.uniform(0, LONGEST_PEACE_SECONDS))
            killed_at = time.monotonic()
            kill(service, bench)
            row.tried += 1
            wait_for_more(load, 1, row, killed_at)
        load.stop()
        _finish(row, service)
        _compare(row, service, tail)
    bench.remove(directory)
    return row


def _finish(row: Row, service: Service) -> None:
    """See all that is stored compressed, each segment in one form."""
    wait_for(lambda: not service.has_orphans())
    service.reload()  # which seals what is open
    try:
        wait_for(partial(_is_compressed, service), COMPRESSION_SECONDS)
    except AssertionError:
        row.fail(f"left {[path.name for path in service.files() if path.suffix != '.zst'][:5]}")
    if (service.data_dir / DRAFT_NAME).exists():
        row.fail("left a draft")


def _is_compressed(service: Service) -> bool:
    return all(path.suffix == ".zst" for path in service.files())


def _compare(row: Row, service: Service, tail: Tail) -> None:
    """Compare the followed lines with the stored ones."""
    stored = Counter(_lines(service.files()))
    try:
        shown = Counter(tail.wait_for_lines(stored.total()))
    except AssertionError:
        shown = Counter(tail.lines())
    missing, more = stored - shown, shown - stored
    if missing or more:
        row.fail(f"tail missed {missing.total()} lines, and showed {more.total()} too many")


def _lines(paths: list[Path]) -> Iterator[str]:
    for path in one_form_each(paths):
        yield from read_segment(path).decode().split("\n")[:-1]


def _fill(bench: Bench) -> Row:
    """Leave no room for compressed segments, then free some."""
    row = Row("compression: disk full")
    directory = bench.make_directory()
    disk = directory / "disk"
    with mounts.small_disk(disk):
        # Segments open on the full disk are sealed by age, and wait to be compressed.
        service = Service(
            disk,
            workers=2,
            segment_bytes=MIB,
            segment_seconds=1,
            min_free_bytes=0,
            compress="zstd",
        )
        with under_load(bench, row, service) as load:
            wait_for(lambda: service.files("*.zst"))
            fill_up(disk / "filler", bench.random.randrange(8 * KIB))
            _note_words(row, service, load)
            (disk / "filler").unlink()
            wait_for_more(load, 5, row)
            load.stop()
            _finish(row, service)
            row.tried += 1
    bench.remove(directory)
    return row


def _note_words(row: Row, service: Service, load: Load) -> None:
    """Check that batches are rejected, and that compression logs once that it waits."""
    before = len(load.rejected)
    wait_for(lambda: len(load.rejected) > before + 5)
    # A segment with keyed batches stays open until its size is in the database of the keys, which
    # is on the full disk too: perhaps no segment waits.
    wait_for(
        lambda: (
            "segments stay uncompressed: No space left" in service.log()
            or not service.files("*.ndjson")
        )
    )
    time.sleep(3)
    if service.log().count("segments stay uncompressed") > 1:
        row.fail("said more than once that it waits")
