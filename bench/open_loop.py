"""A load at fixed times, whether or not the service keeps up; run in a separate process.

A closed loop sends after each response: it keeps the service busy, and so hides the cost of a
single request, and the wait of one that arrives while the service is stalled.
"""

import select
import time
from collections import deque

from bench import bodies
from bench.client import TIMEOUT_SECONDS, Client
from bench.load import Load, Outcome, Phase, Plan

HEALTH_HEAD = "GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def health_requests(batch: int, token: str) -> list[bodies.Template]:
    """Return the request of a load balancer, which has no logs."""
    return [bodies.Template(b"", 0, HEALTH_HEAD)]


def run(plan: Plan) -> Outcome:
    """Run a plan at its rate; a request's latency counts from its due time.

    The caller does so in a separate process.
    """
    return OpenLoop(plan).run()


class OpenLoop(Load):
    """Connections in turns, and the times of the requests that no connection is free for."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._idle = deque(self._clients.values())
        self._late: deque[float] = deque()

    def _send(self, phase: Phase, seconds: float) -> None:
        start = time.perf_counter()
        count = round(seconds * self._plan.rate)
        end = start + seconds + TIMEOUT_SECONDS
        scheduled = 0
        while scheduled < count or self._under_way:
            now = time.perf_counter()
            if now > end:
                break
            while scheduled < count and (due := start + scheduled / self._plan.rate) <= now:
                self._late.append(due)
                scheduled += 1
            self._begin_late()
            pause = start + scheduled / self._plan.rate - now if scheduled < count else end - now
            self._wait(pause, phase)

    def _wait(self, seconds: float, phase: Phase) -> None:
        """Process events within the time; epoll's own wait is in whole milliseconds."""
        if select.select([self._poll], [], [], max(seconds, 0))[0]:
            self._serve_all(0, phase)

    def _begin_late(self) -> None:
        while self._late and self._idle:
            client = self._idle.popleft()
            self._begin(client)
            client.started = self._late.popleft()

    def _go_on(self, client: Client) -> None:
        self._idle.append(client)
        self._begin_late()
