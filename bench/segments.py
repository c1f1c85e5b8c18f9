"""What a directory of many sealed segments costs, retention on, beside an empty one."""

import os
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from socket import IPPROTO_TCP, TCP_NODELAY, create_connection, socket
from tempfile import TemporaryDirectory

from bench import bodies, load, measure, stored
from bench.results import Beside, Segments
from bench.runs import progress
from tests.support.metrics import read_samples
from tests.support.service import TOKEN, Service

SEALED_SEGMENTS = 100_000
SEALED_PREFIX = "2000"  # before any segment of the run

#: The steady load: 1,000 logs a second, well below what one connection could send.
REQUESTS_PER_SECOND = 100
BATCH = 10
CONNECTIONS = 8

#: Times that the two sides are run, alternating.
ROUNDS = 3

#: Limits that no segment exceeds, so that the retention looks at them and removes none.
RETENTION = {"retain_bytes": 2**50, "retain_seconds": 10**9, "retain_free_bytes": 1}

#: The time of a phase in those of a cell of the table: a p99 takes many requests.
PHASE_FACTOR = 2

#: Seconds between two looks at what the service knows.
LOOK_SECONDS = 0.25

#: Seconds until an answer is given up.
TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True)
class Plan:
    """A steady load: `requests` of them from number `first` on, at REQUESTS_PER_SECOND."""

    address: tuple[str, int]
    first: int
    requests: int


def compare(directory: Path, executor: Executor, seconds: float) -> Segments:
    """Measure the service in an empty directory and beside SEALED_SEGMENTS, alternating."""
    empty, full = [], []
    for count in range(1, ROUNDS + 1):
        progress(f"{SEALED_SEGMENTS} sealed segments, round {count} of {ROUNDS}")
        empty.append(_measure(directory, executor, seconds, 0))
        full.append(_measure(directory, executor, seconds, SEALED_SEGMENTS))
    p99s = [statistics.median(beside.p99_ms for beside in side) for side in (empty, full)]
    idle = [statistics.median(beside.idle_cores for beside in side) for side in (empty, full)]
    return Segments(
        count=SEALED_SEGMENTS,
        logs_per_second=REQUESTS_PER_SECOND * BATCH,
        empty=empty,
        full=full,
        p99_factor=p99s[1] / p99s[0],
        idle_percent=(idle[1] - idle[0]) * 100,
    )


def _measure(directory: Path, executor: Executor, seconds: float, count: int) -> Beside:
    with TemporaryDirectory(dir=directory) as path:
        service = Service(Path(path), workers=None, min_free_bytes=None, **RETENTION)
        _make_sealed(service.data_dir, count)
        with service:
            return _measure_service(service, executor, seconds, count)


def _measure_service(service: Service, executor: Executor, seconds: float, count: int) -> Beside:
    """Put the load on a service that has just started, and again when it knows its segments."""
    pids = [service.process.pid, *service.worker_pids()]
    requests = int(REQUESTS_PER_SECOND * seconds)
    starting = executor.submit(run, Plan(service.address, 0, requests))
    known_seconds = _wait_until_known(service, count)
    known_cpu = measure.cpu_seconds(pids)
    first = starting.result()
    steady = executor.submit(run, Plan(service.address, requests, PHASE_FACTOR * requests)).result()
    before = measure.cpu_seconds(pids)
    time.sleep(PHASE_FACTOR * seconds)
    idle = (measure.cpu_seconds(pids) - before) / (PHASE_FACTOR * seconds)
    sent = first.sent + steady.sent
    outcome = load.Outcome([], sent, set(), first.unanswered | steady.unanswered)
    paths = [path for path in service.files() if not path.name.startswith(SEALED_PREFIX)]
    return Beside(
        known_seconds=known_seconds,
        known_cpu=known_cpu,
        starting_p99_ms=_p99_ms(first),
        p99_ms=_p99_ms(steady),
        idle_cores=idle,
        peak_mib=max(map(measure.peak_mib, pids)),
        check=stored.check(paths, BATCH, outcome),
    )


def _wait_until_known(service: Service, count: int) -> float:
    """Return how long the service takes until it knows so many sealed segments."""
    started_at = time.perf_counter()
    known = -1.0
    while known < count:
        time.sleep(LOOK_SECONDS)
        samples = read_samples(service.request("GET", "/metrics").raw.decode())
        known = samples.get("segments sealed", -1.0)
    return time.perf_counter() - started_at


def _p99_ms(outcome: load.Outcome) -> float:
    return measure.percentile(outcome.phases[0].latencies, 99) * 1e3


def _make_sealed(directory: Path, count: int) -> None:
    """Make the data directory with sealed segments of one line each."""
    directory.mkdir()
    line = bodies.templates(1)[0].body(0).removeprefix(b'{"logs":[').removesuffix(b"]}") + b"\n"
    for number in range(count):
        name = f"{SEALED_PREFIX}0101T{number:06d}.000000Z-1.ndjson"
        (directory / name).write_bytes(line)
    os.sync()  # what this run and the last one left to the disk would hold up the syncs measured


def run(plan: Plan) -> load.Outcome:
    """Send a steady load; the caller does so in a process of its own.

    A request's latency counts from the moment at which it was due, whether or not the one before
    it had been answered.
    """
    bodies.templates(BATCH, load.HEAD.format(token=TOKEN))  # made once, before anything is due
    phase = load.Phase()
    unanswered: set[int] = set()
    start = time.perf_counter()
    threads = [
        threading.Thread(target=_send_some, args=(plan, place, start, phase, unanswered.add))
        for place in range(CONNECTIONS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return load.Outcome([phase], plan.requests, set(), unanswered)


def _send_some(
    plan: Plan, place: int, start: float, phase: load.Phase, note_unanswered: Callable[[int], None]
) -> None:
    """Send every CONNECTIONS-th request, each when it is due."""
    templates = bodies.templates(BATCH, load.HEAD.format(token=TOKEN))
    connection = create_connection(plan.address, TIMEOUT_SECONDS)
    connection.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
    with connection:
        for number in range(place, plan.requests, CONNECTIONS):
            due = start + number / REQUESTS_PER_SECOND
            time.sleep(max(due - time.perf_counter(), 0))
            sequence = plan.first + number
            body = b"".join(templates[sequence % len(templates)].request(sequence))
            if _is_accepted(connection, body):
                phase.latencies.append(time.perf_counter() - due)
            else:
                note_unanswered(sequence)


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
