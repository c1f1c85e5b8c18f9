"""Power cuts: a run is recorded, and every disk that it may have left is recovered.

Then keyed batches are resent: the disk must decide whether they were stored.
"""

import errno
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from astralog.store.compression import compress_segment
from astralog.store.keys.database import DAMAGED_NAME
from tests.faults.bench import Bench, read_lines
from tests.faults.diskmodel import Disk, Operation, read_trace
from tests.faults.restart import quiet, recover, send_again, send_again_for_real
from tests.faults.shim import ShimmedService
from tests.faults.table import Row
from tests.faults.traced_load import TracedLoad, size_of
from tests.support.keyed_load import KEYED_START
from tests.support.service import Service, wait_for

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

#: Segments compressed before a power cut, in runs with compression.
COMPRESSED_SEGMENTS = 5

#: Every so many states one is given to the real service.
STATES_A_START = 500


#: Calls that fail at once, before a power cut.
SEVERAL = (
    *(("write", "truncate"), ("sync", "truncate"), ("sync", "dirsync"), ("rename", "dirsync")),
    *(("write", "sync"), ("open", "unlink"), ("sync", "rename"), ("dirsync", "unlink")),
)

Disturb = Callable[[Bench, ShimmedService, TracedLoad], None]


def run(bench: Bench, states: int) -> Iterator[Row]:
    """Recover `states` disks that runs may have left, from runs without and with other faults."""
    rows = [
        Row("power cut"),
        Row("power cut, calls failing before"),
        Row("power cut, several calls failing at once before"),
        Row("power cut, workers killed before"),
        Row("power cut, segments compressed before"),
    ]
    yield from rows  # they fill up together, and what they have stays if one fails
    disturbances: tuple[Disturb | None, ...] = (
        None,
        _fail_calls,
        _fail_several,
        _kill_workers,
        _wait,
    )
    left = dict.fromkeys(range(len(rows)), states // len(rows))
    while any(left.values()) and bench.has_time:
        for index, row in enumerate(rows):
            count = min(left[index], 1000)
            left[index] -= count
            if count and bench.has_time:
                _campaign(bench, row, disturbances[index], count)
                bench.say(f"{row.what}: {row.tried} states")


def _campaign(bench: Bench, row: Row, disturb: Disturb | None, states: int) -> None:
    directory = bench.make_directory()
    trace = directory / "trace"
    compress = "zstd" if disturb is _wait else "none"
    service = ShimmedService(directory, trace, workers=2, segment_bytes=60_000, compress=compress)
    load = TracedLoad(service)
    with service:
        with load:
            load.wait_for_acknowledged(40)
            if disturb:
                disturb(bench, service, load)
            load.wait_for_acknowledged(40)
        service.stop()
    may_double = disturb is _fail_several
    _cut(bench, row, load, read_trace(trace), states, may_double)
    bench.remove(directory)


def _fail_calls(bench: Bench, service: ShimmedService, load: TracedLoad) -> None:
    """Let single calls fail; a sync that fails twice before a power cut is beyond the promise."""
    for operation in ("write", "sync", "rename", "dirsync", "write", "sync"):
        service.control.fail(operation, errno.EIO, skip=bench.random.randrange(5))
        service.control.wait_for_hits(operation, 5)
        load.wait_for_acknowledged(5)
    service.control.end_faults()


def _fail_several(bench: Bench, service: ShimmedService, load: TracedLoad) -> None:
    """Make calls fail twice and more, together with the calls that would undo their effects.

    Batches without a key may be doubled by this, those with one not even so.
    """
    for operation, also in SEVERAL:
        service.control.fail(also, errno.EIO, times=bench.random.randrange(1, 4))
        times = bench.random.randrange(2, 5)
        service.control.fail(operation, errno.EIO, skip=bench.random.randrange(5), times=times)
        service.control.wait_for_hits(operation, 5)
        load.wait_for_acknowledged(2)
        service.control.end_faults()
        load.wait_for_acknowledged(2)


def _kill_workers(bench: Bench, service: ShimmedService, load: TracedLoad) -> None:
    for _ in range(3):
        service.wait_for_workers()
        time.sleep(bench.random.uniform(0.05, 0.3))
        os.kill(bench.random.choice(service.worker_pids()), signal.SIGKILL)
        load.wait_for_acknowledged(20)


def _wait(bench: Bench, service: ShimmedService, load: TracedLoad) -> None:
    """Let some segments be compressed."""
    wait_for(lambda: len(service.files("*.zst")) > COMPRESSED_SEGMENTS)


def _cut(
    bench: Bench,
    row: Row,
    load: TracedLoad,
    operations: list[Operation],
    states: int,
    may_double: bool,
) -> None:
    """Follow the trace and, at `states` of its points, recover a possible disk."""
    cuts = Counter(bench.random.randrange(1, len(operations) + 1) for _ in range(states))
    disk = Disk()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as path, quiet():
        for position, operation in enumerate(operations, 1):
            disk.do(operation)
            for number in range(cuts[position]):
                if not bench.has_time:
                    return
                data_dir = Path(path) / f"{position}-{number}" / "data"
                data_dir.mkdir(parents=True)
                disk.write_after_power_cut(data_dir, bench.random)
                acknowledged = load.acknowledged_by(disk.answers)
                again = load.batches_to_send(acknowledged, bench.random)
                acknowledged |= _recover(row, data_dir, again)
                _end_compression(row, data_dir)
                _check(row, data_dir, acknowledged, may_double)
                bench.remove(data_dir.parent)


def _recover(row: Row, data_dir: Path, again: list[tuple[int, int]]) -> dict[int, int]:
    """Let the service recover the files, now and then in a real start, and send batches again.

    Return those that it acknowledges.
    """
    row.tried += 1
    if row.tried % STATES_A_START:
        acknowledged = send_again(row, data_dir, again)
        recover(data_dir)
        return acknowledged
    with Service(data_dir.parent) as service:
        acknowledged = send_again_for_real(row, service, again)
        wait_for(lambda: not service.has_orphans())
        if service.drain({"logs": []}).status != 200 or service.stop() != 0:
            row.fail("did not serve after the power cut")
    return acknowledged


def _end_compression(row: Row, data_dir: Path) -> None:
    """See that of each segment with two forms both are whole, and let the plain one go."""
    for path in data_dir.glob("*.ndjson.zst"):
        plain = path.with_suffix("")
        if plain.exists():
            if not _is_same(path, plain):
                row.fail(f"{path.name} is not what {plain.name} is")
                continue
            compress_segment(data_dir, plain.stem)
            if plain.exists():
                row.fail(f"{plain.name} was left")


def _is_same(compressed: Path, plain: Path) -> bool:
    try:
        return zstd.decompress(compressed.read_bytes()) == plain.read_bytes()
    except zstd.ZstdError:
        return False


def _check(row: Row, data_dir: Path, acknowledged: dict[int, int], may_double: bool) -> None:
    """Add missing and wrong lines to the row; batches without a key `may_double`."""
    lines = read_lines(sorted(data_dir.glob("*.ndjson*")), row)
    found = Counter(batch for batch, _ in lines)
    row.acknowledged += len(acknowledged)
    row.keyed += sum(1 for number in acknowledged if number >= KEYED_START)
    lost = [batch for batch, size in acknowledged.items() if found[batch] != size]
    row.lost += len(lost)
    twice = {batch for (batch, _), count in lines.items() if count > 1}
    doubled = {batch for batch in twice if batch >= KEYED_START or not may_double}
    row.doubled += len(doubled)
    row.undecided += len(twice - doubled)
    for name, batches in (("lost", lost), ("twice", sorted(doubled))):
        if batches:
            row.remark(f"{name}: batches {batches[:10]}")
    parts = {batch: count for batch, count in found.items() if batch >= KEYED_START}
    row.parts += sum(1 for batch, count in parts.items() if count != size_of(batch))
    if list(data_dir.glob("*.open")):
        row.fail("left an open segment")
    if (data_dir / DAMAGED_NAME).exists():
        row.fail("damaged the database of the idempotency keys")
