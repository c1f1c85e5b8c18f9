"""The cost of a directory of many sealed segments, with retention and compression, against none.

They are compressed already, and new ones are sealed every 10 s, as is recommended for search.
"""

import os
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from socket import IPPROTO_TCP, TCP_NODELAY, create_connection, socket
from tempfile import TemporaryDirectory

from astralog.store.compression import LEVEL
from bench import bodies, load, measure, stored
from bench.results import Beside, Segments
from bench.runs import progress
from bench.service import BareService
from tests.support.metrics import read_samples
from tests.support.processes import cpu_seconds
from tests.support.service import TOKEN, Service, one_form_each

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

SEALED_SEGMENTS = 100_000
SEALED_PREFIX = "2000"  # before any segment of the run

#: The steady load: 1,000 logs per second, well below the capacity of one connection.
REQUESTS_PER_SECOND = 100
BATCH = 10
CONNECTIONS = 8

#: Times that the two sides are run, side by side.
ROUNDS = 3

#: Requests that one side gets before the other one's turn: other load of the machine affects both.
TURN_REQUESTS = 50

#: Limits that no segment exceeds, so that the retention looks at them and removes none.
RETENTION = {"retain_bytes": 2**50, "retain_seconds": 10**9, "retain_free_bytes": 1}
FOR_SEARCH = {"segment_seconds": 10, "compress": "zstd"}

#: The time of a phase in those of a cell of the table: a p99 takes many requests.
LOAD_FACTOR, IDLE_FACTOR = 6, 2

#: Seconds between two polls of the service.
POLL_SECONDS = 0.25

#: Seconds until an answer is given up.
TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True)
class Plan:
    """A steady load of so many requests to each of two services, in turns."""

    addresses: tuple[tuple[str, int], tuple[str, int]]
    requests: int


def compare(directory: Path, executor: Executor, seconds: float) -> Segments:
    """Measure the service in an empty directory and in one with SEALED_SEGMENTS."""
    pairs = []
    with TemporaryDirectory(dir=directory) as path:
        _make_sealed(Path(path) / "full" / "data")
        for count in range(1, ROUNDS + 1):
            progress(f"{SEALED_SEGMENTS} sealed segments, round {count} of {ROUNDS}")
            pairs.append(_measure(Path(path), executor, seconds))
            shutil.rmtree(Path(path) / "empty")
            for own in _own_files(Path(path) / "full" / "data"):
                own.unlink()
    return Segments(
        count=SEALED_SEGMENTS,
        logs_per_second=REQUESTS_PER_SECOND * BATCH,
        empty=[empty for empty, _ in pairs],
        full=[full for _, full in pairs],
        p99_factor=statistics.median(full.p99_ms / empty.p99_ms for empty, full in pairs),
        idle_percent=statistics.median(f.idle_cores - e.idle_cores for e, f in pairs) * 100,
    )


def _measure(directory: Path, executor: Executor, seconds: float) -> list[Beside]:
    """Run a service of each kind and return their results, the empty directory first."""
    (directory / "empty").mkdir()
    os.sync()  # what was left to the disk would hold up the syncs that are measured
    with ExitStack() as stack:
        services = []
        known = []
        for name, count in (("empty", 0), ("full", SEALED_SEGMENTS)):
            settings = {"workers": None, "min_free_bytes": None, **RETENTION, **FOR_SEARCH}
            service = BareService(directory / name, **settings)
            services.append(stack.enter_context(service))
            known.append((_wait_until_known(service, count), cpu_seconds(_pids(service))))
        plan = Plan(
            (services[0].address, services[1].address),
            int(REQUESTS_PER_SECOND * seconds * LOAD_FACTOR) // 2,
        )
        outcomes = executor.submit(run, plan).result()
        idle = _idle_cores(services, seconds * IDLE_FACTOR)
        return [_beside(*parts) for parts in zip(services, known, outcomes, idle, strict=True)]


def _own_files(data_dir: Path) -> list[Path]:
    """Return the segments that a service made, not those that were there before."""
    return [path for path in data_dir.iterdir() if not path.name.startswith(SEALED_PREFIX)]


def _pids(service: Service) -> list[int]:
    compressor = service.compressor_pid()
    return [service.process.pid, *service.worker_pids(), *([compressor] if compressor else [])]


def _idle_cores(services: Sequence[Service], seconds: float) -> list[float]:
    """Return the CPU seconds that each service takes in a second without a load."""
    before = [cpu_seconds(_pids(service)) for service in services]
    time.sleep(seconds)
    after = [cpu_seconds(_pids(service)) for service in services]
    return [(now - then) / seconds for now, then in zip(after, before, strict=True)]


def _beside(
    service: Service, known: tuple[float, float], outcome: load.Outcome, idle: float
) -> Beside:
    peak_mib = max(map(measure.peak_mib, _pids(service)))
    service.stop()  # so that no file is compressed while it is read
    own = one_form_each(path for path in service.files() if not path.name.startswith(SEALED_PREFIX))
    return Beside(
        known_seconds=known[0],
        known_cpu=known[1],
        p99_ms=measure.percentile(outcome.phases[0].latencies, 99) * 1e3,
        idle_cores=idle,
        peak_mib=peak_mib,
        check=stored.check(own, BATCH, outcome),
    )


def _wait_until_known(service: Service, count: int) -> float:
    """Return how long the service takes until it knows so many sealed segments."""
    started_at = time.perf_counter()
    known = -1.0
    while known < count:
        time.sleep(POLL_SECONDS)
        samples = read_samples(service.request("GET", "/metrics").raw.decode())
        known = samples.get("segments sealed", -1.0)
    return time.perf_counter() - started_at


def _make_sealed(directory: Path) -> None:
    """Make a data directory with SEALED_SEGMENTS of one line each."""
    directory.mkdir(parents=True)
    line = bodies.templates(1)[0].body(0).removeprefix(b'{"logs":[').removesuffix(b"]}") + b"\n"
    packed = zstd.compress(line, LEVEL)
    for number in range(SEALED_SEGMENTS):
        name = f"{SEALED_PREFIX}0101T000000.{number:06d}Z-1.ndjson.zst"
        (directory / name).write_bytes(packed)


def run(plan: Plan) -> list[load.Outcome]:
    """Send a steady load; the caller does so in a separate process.

    A request's latency counts from its due time, whether or not the one before it had been
    answered.
    """
    bodies.templates(BATCH, load.HEAD.format(token=TOKEN))  # made once, before anything is due
    outcomes = [load.Outcome([load.Phase()], plan.requests, set(), set()) for _ in plan.addresses]
    start = time.perf_counter()
    threads = [  # none serves both sides, or one that is late would make the other one late too
        threading.Thread(target=_send_some, args=(plan, side, first, start, outcomes[side]))
        for side in range(len(plan.addresses))
        for first in range(CONNECTIONS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def _due_seconds(side: int, sequence: int) -> float:
    """Return when a request is due, from the start: the sides have their turns one by one."""
    turn, place = divmod(sequence, TURN_REQUESTS)
    return ((2 * turn + side) * TURN_REQUESTS + place) / REQUESTS_PER_SECOND


def _send_some(plan: Plan, side: int, first: int, start: float, outcome: load.Outcome) -> None:
    """Send one side every CONNECTIONS-th request, each when it is due."""
    templates = bodies.templates(BATCH, load.HEAD.format(token=TOKEN))
    with create_connection(plan.addresses[side], TIMEOUT_SECONDS) as connection:
        connection.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
        for sequence in range(first, plan.requests, CONNECTIONS):
            due = start + _due_seconds(side, sequence)
            request = b"".join(templates[sequence % len(templates)].request(sequence))
            time.sleep(max(due - time.perf_counter(), 0))
            if _is_accepted(connection, request):
                outcome.phases[0].latencies.append(time.perf_counter() - due)
            else:
                outcome.unanswered.add(sequence)


def _is_accepted(connection: socket, request: bytes) -> bool:
    """Send a request, and return whether it was answered 200."""
    try:
        connection.sendall(request)
        response = HTTPResponse(connection)
        response.begin()
        response.read()
    except (OSError, HTTPException):
        return False
    return response.status == 200
