"""How evenly two workers share a load, over many starts."""

from bench.results import Shares
from bench.runs import Runner, check_disk, progress
from tests.support.processes import cpu_seconds

#: Logs per batch and connections.
SIZES = ((1, 8), (1, 32), (100, 8), (100, 32), (500, 8), (500, 32))
WORKERS = 2

#: Times that the service is started for each of them, and seconds of load after each.
STARTS = 3
SECONDS = 1.0


def compare(runner: Runner) -> list[Shares]:
    """Start two workers repeatedly, and compare their shares of a load."""
    results = []
    for batch, connections in SIZES:
        progress(f"shares of {WORKERS} workers: {batch} a batch, {connections} connections")
        results.append(Shares(batch, connections))
        for _ in range(STARTS):
            _measure(runner, results[-1])
    return results


def _measure(runner: Runner, shares: Shares) -> None:
    """Load the service from its start on, without a warm-up that would even things out."""
    with runner.service(workers=WORKERS) as service:
        pids = service.worker_pids()
        before = [cpu_seconds([pid]) for pid in pids]
        outcome = runner.load(service, shares.batch, shares.connections, [SECONDS])
        used = [cpu_seconds([pid]) - cpu for pid, cpu in zip(pids, before, strict=True)]
        shares.factors.append(max(used) / min(used))
        shares.checks.append(check_disk(service, shares.batch, outcome))
