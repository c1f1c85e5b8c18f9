"""Measure the Python client: the cost of a log for the program, and logs per second.

Run with the client importable: `PYTHONPATH=clients/python python -m bench.python_client`.
"""

import logging
import logging.handlers
import os
import queue
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from astralog_logging import AstraLogHandler
from bench import measure
from bench.service import BareService
from tests.support.processes import cpu_seconds
from tests.support.service import TOKEN, Service

#: Logs of a round, and rounds, of which the median counts; the queue holds a round.
ROUND_LOGS = 20_000
ROUNDS = 15

#: Logs sent as fast as they can be, in each of a few runs.
RUN_LOGS = 200_000
RUNS = 3


def main() -> None:
    """Print both as Markdown."""
    machine = measure.machine()
    print("{cpu}, {cores} cores, Linux {kernel}, Python {python}.\n".format(**machine))
    with tempfile.TemporaryDirectory() as name, BareService(Path(name)) as service:
        url = f"http://127.0.0.1:{service.address[1]}"
        print("| µs in the logging thread | " + " | ".join(_handlers(url)) + " |")
        print("|---|" + "---:|" * len(_handlers(url)))
        for label, log in LOGS.items():
            costs = [_cost(make(), log) for make in _handlers(url).values()]
            print(f"| {label} | " + " | ".join(f"{cost * 1e6:.1f}" for cost in costs) + " |")
        print("\n| run | logs/s | CPU µs per log, program | CPU µs per log, service |")
        print("|---|---:|---:|---:|")
        for number in range(1, RUNS + 1):
            print(f"| {number} | {_throughput(url, service)} |")


class _Nothing(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        """Do nothing, so that only the cost of `logging` itself remains."""


def _handlers(url: str) -> dict[str, Callable[[], logging.Handler]]:
    """Return a factory for each measured handler."""
    return {
        "logging itself": _Nothing,
        "AstraLogHandler": lambda: _astralog(url),
        "QueueHandler": lambda: logging.handlers.QueueHandler(queue.SimpleQueue()),
        "FileHandler": lambda: logging.FileHandler(os.devnull),
    }


def _astralog(url: str) -> AstraLogHandler:
    return AstraLogHandler(
        url, token=TOKEN, project_id="org-xyz", service="bench", queue_bytes=1 << 30
    )


def _log(logger: logging.Logger) -> None:
    logger.info("order %d of %s paid", 7, "org-xyz")


def _log_with_extra(logger: logging.Logger) -> None:
    logger.info("paid", extra={"user_id": 123, "ip": "1.1.1.1", "items": ["a", "b"]})


def _log_with_traceback(logger: logging.Logger) -> None:
    try:
        raise ValueError("no such order")
    except ValueError:
        logger.exception("failed")


LOGS: dict[str, Callable[[logging.Logger], None]] = {
    "a message with two arguments": _log,
    "three fields of `extra`": _log_with_extra,
    "an exception": _log_with_traceback,
}


def _cost(handler: logging.Handler, log: Callable[[logging.Logger], None]) -> float:
    """Return the CPU seconds that a log takes of the thread that logs."""
    logger = logging.Logger("shop.orders")
    logger.addHandler(handler)
    costs = []
    for _ in range(ROUNDS):
        start = time.thread_time()
        for _ in range(ROUND_LOGS):
            log(logger)
        costs.append((time.thread_time() - start) / ROUND_LOGS)
        handler.flush()
    handler.close()
    return statistics.median(costs)


def _throughput(url: str, service: Service) -> str:
    """Log as fast as one thread can, until all is stored."""
    handler = _astralog(url)
    logger = logging.Logger("shop.orders")
    logger.addHandler(handler)
    service_cpu = cpu_seconds(service.pids())
    cpu, start = time.process_time(), time.monotonic()
    for _ in range(RUN_LOGS):
        _log(logger)
    handler.flush(600)
    seconds = time.monotonic() - start
    cpu = time.process_time() - cpu
    service_cpu = cpu_seconds(service.pids()) - service_cpu
    assert handler.stored == RUN_LOGS
    handler.close()
    per_log = [f"{value / RUN_LOGS * 1e6:.1f}" for value in (cpu, service_cpu)]
    return f"{RUN_LOGS / seconds:,.0f} | {' | '.join(per_log)}"


if __name__ == "__main__":
    main()
