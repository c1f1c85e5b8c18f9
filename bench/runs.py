"""The runs: start the service, load it, and read its measurements."""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench import bodies, foreign, load, measure, open_loop, options, otlp, stored
from bench.results import Cell, Flood, Foreign, Growth, Workers
from bench.service import BareService
from bench.turns import TURN_SECONDS, efficiency, median_ratio, order_of_turns, run_in_turns
from tests.support.processes import cpu_seconds
from tests.support.service import TOKEN, Service

WORKERS_LOADS = ((500, 16), (100, 8))
GROWTH_BATCH, GROWTH_CONNECTIONS = 500, 8
OPTIONS_BATCH, OPTIONS_CONNECTIONS = 500, 8

#: Workers in a cell of the table: they leave the load generator a core, and so their caches alone.
CELL_WORKERS = max(1, len(os.sched_getaffinity(0)) - 1)

#: Times that two sides of a comparison are run, alternating.
ROUNDS = 3

#: A service that takes less CPU than this in so many seconds has started.
IDLE_CPU_SECONDS = 0.01
IDLE_SECONDS = 0.5

#: Seconds between two looks at the peak memory of workers that may not live.
PEAK_EVERY_SECONDS = 0.2

FLOOD_CLIENTS = 500
FLOOD_BODY_BYTES = 10 * 1024 * 1024
FLOOD_SECONDS = 60.0  # and load.TIMEOUT_SECONDS more


class Runner:
    """Runs of a fixed length, on the disk of `directory`."""

    def __init__(self, directory: Path, executor: Executor, seconds: float) -> None:
        self._directory = directory
        self._executor = executor
        self.seconds = seconds
        self._warm_up_seconds = min(1.0, seconds / 2)
        self._codec = measure.Yardstick(measure.codec_cpu_per_log)
        self._disk = measure.Yardstick(
            lambda size: measure.disk_bytes_per_second(directory, size) / 1e6
        )

    def cells(self, sizes: list[tuple[int, int]]) -> list[Cell]:
        """Measure batch sizes and connections, the yardsticks before and after each."""
        cells = []
        for count, (batch, connections) in enumerate(sizes, 1):
            progress(f"cell {count} of {len(sizes)}: {batch} a batch, {connections} connections")
            self._take_yardsticks(batch)
            cells.append(self.cell(batch, connections))
            self._take_yardsticks(batch)
        for cell in cells:
            cell.codec_us_per_log = self._codec.median(cell.batch) * 1e6
            cell.disk_mb_per_second = self._disk.median(_mean_body_bytes(cell.batch))
        return cells

    def _take_yardsticks(self, batch: int) -> None:
        self._codec.take(batch)
        self._disk.take(_mean_body_bytes(batch))

    def workers(self) -> list[Workers]:
        """Compare one worker with two under each load."""
        return [self._workers(batch, connections) for batch, connections in WORKERS_LOADS]

    def _workers(self, batch: int, connections: int) -> Workers:
        one, two = [], []
        for count in range(1, ROUNDS + 1):
            progress(f"one worker and two, {batch} logs, round {count} of {ROUNDS}")
            one.append(self.cell(batch, connections, workers=1))
            two.append(self.cell(batch, connections, workers=2))
        throughput = [statistics.median(c.logs_per_second for c in side) for side in (one, two)]
        per_cpu = [statistics.median(c.logs_per_cpu_second for c in side) for side in (one, two)]
        return Workers(one, two, throughput[1] / throughput[0], per_cpu[1] / per_cpu[0])

    def growth(self) -> Growth:
        """Compare the CPU for a log early and late in a segment."""
        progress("growth: five fifths of one segment")
        with self.service(segment_bytes=2**40) as service:
            outcome = self.load(service, GROWTH_BATCH, GROWTH_CONNECTIONS, [self.seconds / 2] * 5)
            check = check_disk(service, GROWTH_BATCH, outcome)
        phases = outcome.phases[1:]
        fifths = [_cpu_us(phase, GROWTH_BATCH) for phase in phases]
        return Growth(
            fifths_us=fifths,
            fifths_logs=sum(phase.acknowledged for phase in phases) * GROWTH_BATCH,
            fifths_factor=fifths[-1] / fifths[0],
            check=check,
        )

    def cpu_us_beside(
        self, beside: Callable[[Service], AbstractContextManager[object]]
    ) -> tuple[float, stored.Check]:
        """Return the CPU time per log, in µs, with something else running."""
        with self.service() as service, beside(service):
            outcome = self.load(service, GROWTH_BATCH, GROWTH_CONNECTIONS, [self.seconds])
            check = check_disk(service, GROWTH_BATCH, outcome)
        return _cpu_us(outcome.phases[-1], GROWTH_BATCH), check

    def flood(self) -> Flood:
        """Let many clients send the largest body at once, one request each."""
        progress(f"flood: {FLOOD_CLIENTS} clients with the largest body")
        batch = bodies.largest_batch(FLOOD_BODY_BYTES)
        with self.service() as service:
            plan = load.Plan(
                address=service.address,
                token=TOKEN,
                pids=[],
                batch=batch,
                connections=FLOOD_CLIENTS,
                phase_seconds=[FLOOD_SECONDS],
                requests=FLOOD_CLIENTS,
            )
            pids = service.worker_pids()
            peaks = [0.0]
            future = self._executor.submit(load.run, plan)
            while not future.done():
                wait([future], PEAK_EVERY_SECONDS)
                peaks += map(measure.peak_mib, service.worker_pids())
            lost = len(set(pids) - set(service.worker_pids()))
            outcome = future.result()
            check = check_disk(service, batch, outcome)
        return Flood(
            clients=FLOOD_CLIENTS,
            body_bytes=bodies.templates(batch)[0].body_bytes,
            seconds=outcome.phases[0].seconds,
            answers=dict(outcome.phases[0].answers),
            peak_mib=max(peaks),
            workers_lost=lost,
            check=check,
        )

    def options(self) -> Cell:
        """Measure logs that the query fills in, and whose unknown fields it moves."""
        progress("options: NDJSON with defaults and unknown fields")
        return self.cell(OPTIONS_BATCH, OPTIONS_CONNECTIONS, make=options.requests)

    def foreign(self) -> list[Foreign]:
        """Compare senders as they are with NDJSON drain, in turns on two services."""
        found = {form: Foreign(form, OPTIONS_BATCH, OPTIONS_CONNECTIONS) for form in foreign.FORMS}
        for number in range(ROUNDS):
            for form, sender in found.items():
                progress(f"senders: {form}, round {number + 1} of {ROUNDS}")
                self._compare(sender, number)
        return list(found.values())

    def _compare(self, sender: Foreign, number: int) -> None:
        turns = max(round(self.seconds / TURN_SECONDS), 2)
        makes = (load.ndjson_requests, foreign.FORMS[sender.form])
        with ExitStack() as stack:
            services = [stack.enter_context(self.service(workers=1)) for _ in makes]
            plans = [
                self._plan(
                    service, sender.batch, sender.connections, [TURN_SECONDS] * turns, make=make
                )
                for service, make in zip(services, makes, strict=True)
            ]
            order = order_of_turns(number, turns)
            outcomes = self._executor.submit(run_in_turns, plans, order).result()
            for service, outcome in zip(services, outcomes, strict=True):
                sender.checks.append(check_disk(service, sender.batch, outcome))
        drain, own = (outcome.phases[1:] for outcome in outcomes)
        sender.ratios.append(median_ratio(efficiency, own, drain))
        sender.cpu_us_per_log.append(_median_us(own, sender.batch))
        sender.drain_cpu_us_per_log.append(_median_us(drain, sender.batch))

    def otlp(self) -> Cell:
        """Measure exports of OpenTelemetry in protobuf."""
        progress("otlp: exports in protobuf")
        return self.cell(OPTIONS_BATCH, OPTIONS_CONNECTIONS, make=otlp.requests)

    def cell(self, batch: int, connections: int, workers: int = CELL_WORKERS, **plan: Any) -> Cell:
        """Measure a load; `plan` has its parameters except the sizes."""
        with self.service(workers=workers) as service:
            outcome = self.load(service, batch, connections, [self.seconds], **plan)
            pids = service.worker_pids()
            peak = max(map(measure.peak_mib, pids))
            check = check_disk(service, batch, outcome)
        phase = outcome.phases[-1]
        logs = phase.acknowledged * batch
        return Cell(
            batch=batch,
            connections=connections,
            workers=len(pids),
            seconds=phase.seconds,
            requests=phase.acknowledged,
            logs_per_second=logs / phase.seconds,
            mb_per_second=phase.body_bytes / phase.seconds / 1e6,
            p50_ms=measure.percentile(phase.latencies, 50) * 1e3,
            p99_ms=measure.percentile(phase.latencies, 99) * 1e3,
            cpu_us_per_log=_cpu_us(phase, batch),
            cpu_us_per_request=_cpu_us(phase, 1),
            logs_per_cpu_second=logs / phase.server_cpu,
            server_cores=phase.server_cpu / phase.seconds,
            load_cores=phase.load_cpu / phase.seconds,
            peak_mib=peak,
            answers=dict(sum((p.answers for p in outcome.phases), start=type(phase.answers)())),
            check=check,
        )

    def _plan(
        self,
        service: Service,
        batch: int,
        connections: int,
        phase_seconds: list[float],
        **more: Any,
    ) -> load.Plan:
        return load.Plan(
            address=service.address,
            token=TOKEN,
            pids=[service.process.pid, *service.worker_pids()],
            batch=batch,
            connections=connections,
            phase_seconds=[self._warm_up_seconds, *phase_seconds],
            **more,
        )

    def load(
        self,
        service: Service,
        batch: int,
        connections: int,
        phase_seconds: list[float],
        **more: Any,
    ) -> load.Outcome:
        """Drive the service, a warm-up phase first; `more` is of the plan."""
        plan = self._plan(service, batch, connections, phase_seconds, **more)
        outcome = self._executor.submit(open_loop.run if plan.rate else load.run, plan).result()
        for phase in outcome.phases:
            if not phase.acknowledged:
                answers = dict(phase.answers)
                raise RuntimeError(f"nothing was acknowledged: {answers}\n{service.log()[-5000:]}")
        return outcome

    @contextmanager
    def service(self, **settings: object) -> Iterator[Service]:
        """Start the service with its default settings but for those given; files go after it."""
        settings = {"workers": None, "min_free_bytes": None, **settings}
        with (
            tempfile.TemporaryDirectory(dir=self._directory) as directory,
            BareService(Path(directory), **settings) as service,
        ):
            wait_until_idle(service)
            yield service


def progress(text: str) -> None:
    """Report the current step on stderr."""
    print(text, file=sys.stderr, flush=True)


def wait_until_idle(service: Service) -> None:
    """Wait until all workers have started, so that each takes its share of the connections."""
    pids = [service.process.pid, *service.worker_pids()]
    before, used = 0.0, cpu_seconds(pids)
    while used - before > IDLE_CPU_SECONDS:
        time.sleep(IDLE_SECONDS)
        before, used = used, cpu_seconds(pids)


def _mean_body_bytes(batch: int) -> int:
    return int(statistics.mean(template.body_bytes for template in bodies.templates(batch)))


def _cpu_us(phase: load.Phase, logs_per_request: int) -> float:
    """Return the server's CPU for one log, in µs."""
    return phase.server_cpu * 1e6 / (phase.acknowledged * logs_per_request)


def _median_us(phases: list[load.Phase], logs_per_request: int) -> float:
    return statistics.median(_cpu_us(phase, logs_per_request) for phase in phases)


def check_disk(service: Service, batch: int, outcome: load.Outcome) -> stored.Check:
    """Check the disk while the service still runs: acknowledged logs need no stop.

    Unacknowledged batches may still be stored later.
    """
    progress("  checking the disk")
    if outcome.rejected or outcome.unanswered:
        service.stop()
    return stored.check(service.files(), batch, outcome)
