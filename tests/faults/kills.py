"""kill -9 at random moments under load."""

import os
import signal
import time
from collections.abc import Callable, Iterator

from tests.faults.bench import Bench, under_load, wait_for_more
from tests.faults.table import Row
from tests.support.protocols import DRAIN, FOREIGN, Protocol
from tests.support.service import Service, wait_for

#: Rounds on one data directory, before its files are tallied.
ROUNDS_A_DIRECTORY = 12

#: Longest time between the service's first batch and a kill.
LONGEST_LIFE_SECONDS = 0.3


Kill = Callable[[Bench, Service], None]


def run(bench: Bench, rounds: int) -> Iterator[Row]:
    """Kill a worker, the master and everything in turn, `rounds` times in all.

    And everything a few times under the load of each other protocol.
    Workers take seconds to find their master gone, so that there are fewer such rounds.
    """
    rows: dict[Kill, Row] = {
        _kill_worker: Row("kill -9 of a worker"),
        _kill_master: Row("kill -9 of the master"),
        _kill_all: Row("kill -9 of everything at once"),
    }
    left: dict[Kill, int] = {_kill_worker: rounds // 2, _kill_master: max(1, rounds // 6)}
    left[_kill_all] = rounds - sum(left.values())
    yield from rows.values()  # they fill up together, and what they have stays if one fails
    foreign = {name: Row(f"kill -9 of everything at once, {name}") for name in FOREIGN}
    yield from foreign.values()
    for name, row in foreign.items():
        if bench.has_time:
            _campaign(bench, row, _kill_all, max(1, rounds // 20), FOREIGN[name])
    while any(left.values()) and bench.has_time:
        for kill, row in rows.items():
            count = min(left[kill], ROUNDS_A_DIRECTORY)
            left[kill] -= count
            if count and bench.has_time:
                _campaign(bench, row, kill, count)


def _campaign(bench: Bench, row: Row, kill: Kill, rounds: int, protocol: Protocol = DRAIN) -> None:
    directory = bench.make_directory()
    service = Service(directory, workers=2, segment_bytes=300_000)
    has_keys = protocol is DRAIN
    with under_load(bench, row, service, threads=6, has_keys=has_keys, protocol=protocol) as load:
        wait_for_more(load, 1, row)
        for _ in range(rounds):
            service.wait_for_workers()
            time.sleep(bench.random.uniform(0, LONGEST_LIFE_SECONDS))
            killed_at = time.monotonic()
            kill(bench, service)
            wait_for_more(load, 1, row, killed_at)
            row.tried += 1
        wait_for_more(load, 20, row)
    bench.remove(directory)


def _kill_worker(bench: Bench, service: Service) -> None:
    os.kill(bench.random.choice(service.worker_pids()), signal.SIGKILL)


def _kill_master(bench: Bench, service: Service) -> None:
    service.signal(signal.SIGKILL)
    service.wait()
    wait_for(lambda: not service.pids())
    service.start()


def _kill_all(bench: Bench, service: Service) -> None:
    service.kill()
    service.start()
