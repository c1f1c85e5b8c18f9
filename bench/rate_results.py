"""The figures of steady rates, and the marks that they are held against."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.stored import Check

#: CPU µs of a request of one worker, by logs per second, logs per batch (0 for /health) and sync.
LIMITS_US = {
    (1000, 1, "always"): 350,
    (1000, 1, "never"): 250,
    (1000, 0, "always"): 110,
    (10_000, 100, "always"): 1100,
}

#: The limit for two workers, as a factor of the CPU of one.
WORKERS_FACTOR = 1.15

HEADINGS = (
    "logs/s",
    "logs per batch",
    "workers",
    "sync",
    "CPU µs/request",
    "CPU µs/log",
    "p50 ms",
    "p99 ms",
    "p99.9 ms",
)


@dataclass
class Rate:
    """Requests at fixed times; a latency counts from the moment at which its request was due."""

    logs_per_second: int  # requests per second where a batch is 0: those are for /health
    batch: int
    workers: int
    sync: str
    cpu_us_per_request: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    load_cores: float
    check: Check

    @property
    def key(self) -> tuple[int, int, str]:
        """The parameters that it shares with a row of other workers."""
        return self.logs_per_second, self.batch, self.sync

    @property
    def row(self) -> tuple[str, ...]:
        """Its row of the table."""
        cpu_us = self.cpu_us_per_request
        return (
            f"{self.logs_per_second:,}" if self.batch else f"{self.logs_per_second:,} x /health",
            f"{self.batch}" if self.batch else "",
            f"{self.workers}",
            self.sync,
            f"{cpu_us:.0f}",
            f"{cpu_us / self.batch:.2f}" if self.batch else "",
            f"{self.p50_ms:.2f}",
            f"{self.p99_ms:.2f}",
            f"{self.p999_ms:.2f}",
        )


def rate_marks(rates: Sequence[Rate]) -> Iterator[tuple[str, float, float, bool]]:
    """Yield each mark as `results.Mark` has it: name, value, limit, and whether it is at most."""
    alone = {rate.key: rate for rate in rates if rate.workers == 1}
    for key, rate in alone.items():
        if key in LIMITS_US:
            name = f"{_name(rate)}: CPU µs per request"
            yield name, rate.cpu_us_per_request, LIMITS_US[key], True
    for rate in rates:
        if rate.workers == 2 and rate.key in alone:
            factor = rate.cpu_us_per_request / alone[rate.key].cpu_us_per_request
            yield f"{_name(rate)}, two workers: CPU relative to one", factor, WORKERS_FACTOR, True


def _name(rate: Rate) -> str:
    what = f"logs, {rate.batch} per batch" if rate.batch else "requests for /health"
    return f"{rate.logs_per_second:,} {what} per second, sync {rate.sync}"
