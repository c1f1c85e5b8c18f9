"""The cost of an idempotency key: the same batches with and without one, in turns."""

import statistics
from collections.abc import Callable

from bench import load
from bench.results import Cell, Keyed
from bench.runs import ROUNDS, Runner, progress

#: Logs per batch and connections.
SIZES = ((500, 8), (100, 8))


def compare(runner: Runner) -> list[Keyed]:
    """Measure both sides at each size."""
    return [_compare(runner, batch, connections) for batch, connections in SIZES]


def _compare(runner: Runner, batch: int, connections: int) -> Keyed:
    plain, keyed = [], []
    for count in range(1, ROUNDS + 1):
        progress(f"with keys and without, {batch} a batch, round {count} of {ROUNDS}")
        plain.append(runner.cell(batch, connections))
        keyed.append(runner.cell(batch, connections, make=load.keyed_requests))
    return Keyed(
        plain,
        keyed,
        efficiency=_factor(keyed, plain, lambda cell: cell.logs_per_cpu_second),
        p99_factor=_factor(keyed, plain, lambda cell: cell.p99_ms),
    )


def _factor(keyed: list[Cell], plain: list[Cell], read: Callable[[Cell], float]) -> float:
    """Return the median of one side's figures in that of the other."""
    one, other = (statistics.median(map(read, side)) for side in (keyed, plain))
    return one / other
