"""Steady rates far below capacity: the cost of a single request."""

from typing import Any

from bench import measure, open_loop
from bench.rate_results import Rate
from bench.runs import Runner, check_disk, progress

#: Logs per second, logs per batch, workers and sync; without logs, requests for /health.
ROWS = (
    (1000, 0, 1, "always"),
    (1000, 1, 1, "always"),
    (1000, 1, 2, "always"),
    (1000, 1, 1, "never"),
    (10_000, 100, 1, "always"),
    (10_000, 100, 2, "always"),
    (100_000, 500, 1, "always"),
    (100_000, 500, 2, "always"),
)
CONNECTIONS = 16


def measure_rates(runner: Runner) -> list[Rate]:
    """Measure each row in turn."""
    return [_measure(runner, *row) for row in ROWS]


def _measure(runner: Runner, logs_per_second: int, batch: int, workers: int, sync: str) -> Rate:
    progress(f"rate: {logs_per_second} logs/s, {batch} a batch, {workers} workers, sync {sync}")
    plan: dict[str, Any] = {"rate": logs_per_second / max(batch, 1)}
    if not batch:
        plan["make"] = open_loop.health_requests
    with runner.service(workers=workers, sync=sync) as service:
        outcome = runner.load(service, batch, CONNECTIONS, [runner.seconds], **plan)
        check = check_disk(service, batch, outcome)
    phase = outcome.phases[-1]
    p50_ms, p99_ms, p999_ms = (
        measure.percentile(phase.latencies, percent) * 1e3 for percent in (50, 99, 99.9)
    )
    return Rate(
        logs_per_second=logs_per_second,
        batch=batch,
        workers=workers,
        sync=sync,
        cpu_us_per_request=phase.server_cpu * 1e6 / phase.acknowledged,
        p50_ms=p50_ms,
        p99_ms=p99_ms,
        p999_ms=p999_ms,
        load_cores=phase.load_cpu / phase.seconds,
        check=check,
    )
