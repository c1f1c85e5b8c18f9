"""The runs of `astralog forward`: into an engine that discards all, and into a real one."""

import http.client
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from operator import truediv
from pathlib import Path

from astralog.store.compression import LEVEL
from astralog.store.forward_state import read_status
from bench import bodies, measure
from bench.forward_results import Delivery, Forward
from bench.runs import PEAK_EVERY_SECONDS, ROUNDS, Runner, progress
from bench.service import BareService
from tests.support import clickhouse
from tests.support.clickhouse import DISCARD, ClickHouse
from tests.support.decoding import encode_batch
from tests.support.service import TIMEOUT_SECONDS, TOKEN, Service, make_batch, wait_for

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

SEGMENT_LOGS = 500_000
SEGMENTS = 4

BATCH = 500
KEEP_UP_LOGS_PER_SECOND = 100_000
KEEP_UP_CLIENTS = 4
KEEP_UP_SECONDS = 40.0

SEGMENT_SECONDS = 10.0  # as is recommended for search
SEARCHES = 10
SEARCH_EVERY_SECONDS = 2.3  # so that logs come at any time of a segment

DISCARD_FOR_EVER = 1_000_000


def measure_forward(runner: Runner, directory: Path) -> Forward:
    """Run everything, with the engines and files in `directory`."""
    with ClickHouse(directory / "discarding") as discarding:
        discarding.break_inserts(DISCARD, DISCARD_FOR_EVER)
        forward = _deliveries(directory, discarding)
        progress(f"forward: {KEEP_UP_LOGS_PER_SECOND:,} logs/s of intake")
        forward.intake_logs_per_second, forward.lag_seconds = _keep_up(directory, discarding)
        for count in range(1, ROUNDS + 1):
            progress(f"forward: intake beside an idle one, round {count} of {ROUNDS}")
            for side, is_beside in ((forward.alone_us, False), (forward.beside_us, True)):
                beside = partial(_idle, discarding, is_beside=is_beside)
                cpu_us, check = runner.cpu_us_beside(beside)
                side.append(cpu_us)
                forward.checks.append(check)
    medians = map(statistics.median, (forward.beside_us, forward.alone_us))
    forward.beside_factor = truediv(*medians)
    with ClickHouse(directory / "searched") as engine:
        progress(f"forward: {SEARCHES} searches, each for a new log")
        forward.search_seconds = _search(directory, engine)
    return forward


def _deliveries(directory: Path, discarding: ClickHouse) -> Forward:
    """Deliver the same logs in either form, and plain ones into a real table."""
    plain, packed = directory / "plain-logs", directory / "packed-logs"
    for path in (plain, packed):
        path.mkdir()
    plain_bytes = _write_segments(plain)
    packed_bytes = _compress_segments(plain, packed)
    discarded = "discarded"
    deliveries = []
    for path, form in ((plain, "plain"), (packed, "zstd")):
        discarding.break_inserts(DISCARD, DISCARD_FOR_EVER)  # and know of no segment
        deliveries.append(_deliver(directory, discarding, path, discarded, form))
    for path in sorted(plain.iterdir())[1:]:
        path.unlink()  # the same logs again would be compressed to nothing
    with ClickHouse(directory / "real") as engine:
        deliveries.append(_deliver(directory, engine, plain, "chdb on the same cores", "plain"))
        table_bytes, index_bytes = _table_bytes(engine)
    return Forward(
        deliveries=deliveries,
        disk_bytes_per_log=plain_bytes / SEGMENT_LOGS,
        compressed_bytes_per_log=packed_bytes / SEGMENT_LOGS,
        table_bytes_per_log=table_bytes / SEGMENT_LOGS,
        index_bytes_per_log=index_bytes / SEGMENT_LOGS,
        intake_logs_per_second=0.0,
        lag_seconds=0.0,
        segment_seconds=SEGMENT_SECONDS,
        search_seconds=[],
        alone_us=[],
        beside_us=[],
        beside_factor=0.0,
        checks=[],
    )


def _name(number: int) -> str:
    return f"20261123T000000.{number:06d}Z-1.ndjson"


def _write_segments(directory: Path) -> int:
    """Write one segment under several names, and return its bytes."""
    first = directory / _name(0)
    pool = bodies.templates(BATCH)
    with first.open("wb") as file:
        for number in range(SEGMENT_LOGS // BATCH):
            file.write(encode_batch(pool[number % len(pool)].body(number)).lines)
    for number in range(1, SEGMENTS):
        os.link(first, directory / _name(number))
    return first.stat().st_size


def _compress_segments(plain: Path, packed: Path) -> int:
    first = packed / (_name(0) + ".zst")
    first.write_bytes(zstd.compress((plain / _name(0)).read_bytes(), LEVEL))
    for number in range(1, SEGMENTS):
        os.link(first, packed / (_name(number) + ".zst"))
    return first.stat().st_size


def _deliver(
    directory: Path, engine: ClickHouse, data_dir: Path, engine_name: str, form: str
) -> Delivery:
    """Deliver all segments of a directory once, as new ones: at a first start all is in doubt."""
    progress(f"forward: {form} segments, {engine_name}")
    with tempfile.TemporaryDirectory(dir=directory) as empty:
        start_cpu, _, _ = _run_once(directory, engine, Path(empty))
        paths = list(data_dir.iterdir())
        for path in paths:
            os.link(path, Path(empty) / path.name)
        cpu, seconds, peak_mib = _run_once(directory, engine, Path(empty))
    logs = len(paths) * SEGMENT_LOGS
    return Delivery(
        engine=engine_name,
        form=form,
        logs=logs,
        logs_per_second=logs / seconds,
        cpu_us_per_log=(cpu - start_cpu) * 1e6 / logs,
        peak_mib=peak_mib,
    )


def _run_once(directory: Path, engine: ClickHouse, data_dir: Path) -> tuple[float, float, float]:
    """Return the CPU seconds of a forward that delivers once, its seconds, and its peak in MiB."""
    forward = clickhouse.Forward(directory, engine.url, data_dir)
    start = time.perf_counter()
    # Given a stderr, it is a child of this process, whose CPU wait4 returns.
    process = forward.start("--once", stderr=subprocess.STDOUT).process
    peaks = [0.0]
    while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
        peaks.append(measure.peak_mib(process.pid))
        time.sleep(PEAK_EVERY_SECONDS)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(ended[1])
    if process.returncode:
        raise RuntimeError(f"forward failed:\n{forward.log()[-5000:]}")
    return ended[2].ru_utime + ended[2].ru_stime, seconds, max(peaks)


def _table_bytes(engine: ClickHouse) -> tuple[int, int]:
    """Return the bytes of the table, merged, and those of its indices."""
    engine.query("OPTIMIZE TABLE logs FINAL", timeout=600)
    [row] = engine.rows(
        "system.parts WHERE active AND table = 'logs'",
        "sum(bytes_on_disk) AS bytes, sum(secondary_indices_compressed_bytes) AS indices",
    )
    return int(row["bytes"]), int(row["indices"])


def _keep_up(directory: Path, engine: ClickHouse) -> tuple[float, float]:
    """Return the logs per second taken in, and the worst lag, while forward delivers them."""
    place = Path(tempfile.mkdtemp(dir=directory))
    lags: list[float] = []
    with (
        BareService(place, workers=1, segment_seconds=SEGMENT_SECONDS) as service,
        clickhouse.Forward(place, engine.url, service.data_dir).start(),
    ):
        with ThreadPoolExecutor(KEEP_UP_CLIENTS) as clients:
            rates = [clients.submit(_paced_load, service) for _ in range(KEEP_UP_CLIENTS)]
            while not all(rate.done() for rate in rates):
                time.sleep(0.5)
                if status := read_status(service.data_dir):
                    lags.append(status.lag_seconds(time.time()))
        wait_for(lambda: not service.files("*.open"))
        wait_for(lambda: (s := read_status(service.data_dir)) and not s.oldest_at)
    return sum(rate.result() for rate in rates), max(lags)


def _paced_load(service: Service) -> float:
    """Post one client's share at a fixed rate; return how many logs a second it got stored."""
    pool = bodies.templates(BATCH)
    headers = {"Authorization": TOKEN, "Content-Type": "application/json"}
    connection = http.client.HTTPConnection(*service.address, timeout=TIMEOUT_SECONDS)
    start = time.perf_counter()
    number = 0
    while (passed := time.perf_counter() - start) < KEEP_UP_SECONDS:
        if number * BATCH > passed * KEEP_UP_LOGS_PER_SECOND / KEEP_UP_CLIENTS:
            time.sleep(0.002)
            continue
        body = pool[number % len(pool)].body(number)
        connection.request("POST", "/v1/drain", body, headers)
        response = connection.getresponse()
        response.read()
        if response.status != 200:
            raise RuntimeError(f"a batch was answered {response.status}")
        number += 1
    connection.close()
    return number * BATCH / passed


@contextmanager
def _idle(engine: ClickHouse, service: Service, is_beside: bool) -> Iterator[None]:
    """Run a forward, if requested, next to a service that seals no segment."""
    if not is_beside:
        yield
        return
    with clickhouse.Forward(service.data_dir.parent, engine.url, service.data_dir).start():
        wait_for(lambda: read_status(service.data_dir))
        yield


def _search(directory: Path, engine: ClickHouse) -> list[float]:
    """Return for some logs the seconds from their 200 until a query finds them."""
    place = Path(tempfile.mkdtemp(dir=directory))
    found: list[float] = []
    with (
        BareService(place, workers=1, segment_seconds=SEGMENT_SECONDS) as service,
        clickhouse.Forward(place, engine.url, service.data_dir).start(),
    ):
        stored: dict[str, float] = {}
        for number in range(SEARCHES):
            service.drain(make_batch(f"needle{number}"))
            stored[f"needle{number}"] = time.monotonic()
            deadline = time.monotonic() + SEARCH_EVERY_SECONDS
            while time.monotonic() < deadline:
                found += _poll(engine, stored)
        while stored:
            found += _poll(engine, stored)
    return found


def _poll(engine: ClickHouse, stored: dict[str, float]) -> list[float]:
    """Return the ages of those logs that a query finds now, and take them out."""
    time.sleep(0.05)
    rows = engine.rows(columns="message")
    now = time.monotonic()
    return [now - stored.pop(row["message"]) for row in rows if row["message"] in stored]
