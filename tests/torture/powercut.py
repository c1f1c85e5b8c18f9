"""Power cuts: a run is recorded, and every disk that it may have left is recovered."""

import errno
import logging
import os
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from astralog.store import recovery
from astralog.store.compression import compress_segment
from tests.support.load import Load
from tests.support.service import Service, wait_for
from tests.torture.bench import Bench, read_lines
from tests.torture.diskmodel import Disk, Operation, read_trace
from tests.torture.shim import ShimmedService
from tests.torture.table import Row

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

#: Segments that are compressed before a power cut, where any are.
COMPRESSED_SEGMENTS = 5

#: Every so many states one is given to the real service.
STATES_A_START = 500


class TracedLoad(Load):
    """A load that knows which batch was posted on which port, in order."""

    def __init__(self, service: Service) -> None:
        super().__init__(service, threads=6)
        self.posted: defaultdict[int, list[int]] = defaultdict(list)

    def note_post(self, number: int, port: int) -> None:
        """Take note of the order of the batches on a port."""
        self.posted[port].append(number)

    def acknowledged_by(self, answers: list[tuple[int, int]]) -> dict[int, int]:
        """Return the batches that these responses acknowledge, with their sizes."""
        sent: Counter[int] = Counter()
        batches = {}
        for port, status in answers:
            if port in self.posted:
                number = self.posted[port][sent[port]]
                sent[port] += 1
                if status == 200:
                    batches[number] = number % self._largest + 1
        return batches


Disturb = Callable[[Bench, ShimmedService, TracedLoad], None]


def torture(bench: Bench, states: int) -> Iterator[Row]:
    """Recover `states` disks that runs may have left, from runs without and with other faults."""
    rows = [
        Row("power cut"),
        Row("power cut, calls failing before"),
        Row("power cut, workers killed before"),
        Row("power cut, segments compressed before"),
    ]
    yield from rows  # they fill up together, and what they have stays if one fails
    disturbances: tuple[Disturb | None, ...] = (None, _fail_calls, _kill_workers, _wait)
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
    _cut(bench, row, load, read_trace(trace), states)
    bench.remove(directory)


def _fail_calls(bench: Bench, service: ShimmedService, load: TracedLoad) -> None:
    """Let single calls fail; a sync that fails twice before a power cut is beyond the promise."""
    for operation in ("write", "sync", "rename", "dirsync", "write", "sync"):
        service.control.fail(operation, errno.EIO, skip=bench.random.randrange(5))
        service.control.wait_for_hits(operation, 5)
        load.wait_for_acknowledged(5)
    service.control.mend()


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
    bench: Bench, row: Row, load: TracedLoad, operations: list[Operation], states: int
) -> None:
    """Follow the trace and, at `states` of its points, recover what may be there then."""
    cuts = Counter(bench.random.randrange(1, len(operations) + 1) for _ in range(states))
    disk = Disk()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as path:
        for position, operation in enumerate(operations, 1):
            disk.do(operation)
            for number in range(cuts[position]):
                data_dir = Path(path) / f"{position}-{number}" / "data"
                data_dir.mkdir(parents=True)
                disk.write_after_power_cut(data_dir, bench.random)
                _recover(row, data_dir)
                _end_compression(row, data_dir)
                _check(row, data_dir, load.acknowledged_by(disk.answers))
                bench.remove(data_dir.parent)


def _recover(row: Row, data_dir: Path) -> None:
    """Let the service's own recovery mend the files, now and then as part of a real start."""
    row.tried += 1
    if row.tried % STATES_A_START:
        logger = logging.getLogger(recovery.__name__)
        logger.disabled = True  # a line for each of the many states helps nobody
        for path in data_dir.glob("*.open"):
            recovery.recover_file(path)
        logger.disabled = False
        return
    with Service(data_dir.parent) as service:
        wait_for(lambda: not service.has_orphans())
        if service.drain({"logs": []}).status != 200 or service.stop() != 0:
            row.fail("did not serve after the power cut")


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


def _check(row: Row, data_dir: Path, acknowledged: dict[int, int]) -> None:
    lines = read_lines(sorted(data_dir.glob("*.ndjson*")), row)
    found = Counter(batch for batch, _ in lines)
    row.acknowledged += len(acknowledged)
    row.lost += sum(1 for batch, size in acknowledged.items() if found[batch] != size)
    row.doubled += sum(1 for count in lines.values() if count > 1)
    if list(data_dir.glob("*.open")):
        row.fail("left an open segment")
