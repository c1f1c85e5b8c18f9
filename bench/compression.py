"""The runs of compression: its savings, its cost, and its effect on intake."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from statistics import median

from bench import bodies, measure, stored
from bench.compression_results import Compression, Intake
from bench.runs import ROUNDS, Runner, progress
from tests.support.decoding import encode_batch
from tests.support.metrics import Samples, read_samples
from tests.support.processes import cpu_seconds
from tests.support.service import Service, wait_for

BATCH, CONNECTIONS = 500, 16
WORKERS = 2

SEGMENT_LOGS = 250_000
ALONE_SEGMENTS = 8

#: Seconds that these may take on a machine whose CPU others want.
ALONE_SECONDS = 300.0

#: More than are compressed in a run, so that there is always one to compress.
BACKLOG_SEGMENTS = 300

BACKLOG_PREFIX = "2000"  # before any segment of the run

#: A process that takes the CPU that nobody else wants, as the compressor does.
BUSY = """
import os
os.setpriority(os.PRIO_PROCESS, 0, 19)
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
while True:
    pass
"""


def measure_compression(runner: Runner, directory: Path) -> Compression:
    """Compress a number of segments alone, and a backlog of them while logs come in."""
    segment = directory / "segment"
    _write_segment(segment)
    progress(f"compression: {ALONE_SEGMENTS} segments alone")
    with runner.service(workers=1, compress="zstd") as service:
        _link(segment, service.data_dir, ALONE_SEGMENTS)
        wait_for(
            lambda: _samples(service)["compressed_segments_total"] == ALONE_SEGMENTS, ALONE_SECONDS
        )
        samples = _samples(service)
        peak_mib = measure.peak_mib(service.compressor_pid() or 0)
    beside, busy = [], []
    for count in range(1, ROUNDS + 1):
        progress(f"compression: intake beside it, round {count} of {ROUNDS}")
        beside.append(_measure(runner, partial(_compressor, segment), compress="zstd"))
        busy.append(_measure(runner, _busy))
    segment.unlink()
    pairs = zip(beside, busy, strict=True)
    logs = ALONE_SEGMENTS * SEGMENT_LOGS
    return Compression(
        plain_bytes_per_log=samples["compressed_plain_bytes_total"] / logs,
        compressed_bytes_per_log=samples["compressed_bytes_total"] / logs,
        cpu_us_per_log=samples["compression_cpu_seconds_total"] * 1e6 / logs,
        peak_mib=peak_mib,
        beside_compressor=beside,
        beside_busy=busy,
        intake_factor=median(a.logs_per_second / b.logs_per_second for a, b in pairs),
    )


def _write_segment(path: Path) -> None:
    pool = bodies.templates(BATCH)
    with path.open("wb") as file:
        for number in range(SEGMENT_LOGS // BATCH):
            file.write(encode_batch(pool[number % len(pool)].body(number)).lines)


def _link(segment: Path, data_dir: Path, count: int) -> None:
    """Seal a segment under several names, older than new logs."""
    for number in range(count):
        os.link(segment, data_dir / f"{BACKLOG_PREFIX}0101T000000.{number:06d}Z-1.ndjson")


def _samples(service: Service) -> Samples:
    return read_samples(service.request("GET", "/metrics").raw.decode())


def _measure(
    runner: Runner, other: Callable[[Service], AbstractContextManager[int]], **settings: object
) -> Intake:
    """Put a load on the service that uses all cores, together with another process."""
    with runner.service(workers=WORKERS, **settings) as service, other(service) as pid:
        before, start = cpu_seconds([pid]), time.perf_counter()
        outcome = runner.load(service, BATCH, CONNECTIONS, [runner.seconds])
        cores = (cpu_seconds([pid]) - before) / (time.perf_counter() - start)
        own = [path for path in service.files() if not path.name.startswith(BACKLOG_PREFIX)]
        check = stored.check(own, BATCH, outcome)
    phase = outcome.phases[-1]
    return Intake(
        logs_per_second=phase.acknowledged * BATCH / phase.seconds,
        p50_ms=measure.percentile(phase.latencies, 50) * 1e3,
        p99_ms=measure.percentile(phase.latencies, 99) * 1e3,
        other_cores=cores,
        check=check,
    )


@contextmanager
def _compressor(segment: Path, service: Service) -> Iterator[int]:
    """Give the service more to compress than it can for as long as the load takes."""
    _link(segment, service.data_dir, BACKLOG_SEGMENTS)
    wait_for(lambda: _samples(service)["compression_waiting_segments"])
    yield wait_for(service.compressor_pid)
    assert _samples(service)["compression_waiting_segments"], "the backlog was too short"


@contextmanager
def _busy(service: Service) -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()
