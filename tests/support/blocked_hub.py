"""Notice code that blocks a hub: every greenlet of a worker waits while one of them computes.

A hub counts as blocked if its thread uses more than LIMIT_SECONDS of its own CPU time between two
switches of greenlets, or rounds of its loop. Its CPU time does not depend on what else the machine
does. Run as a script with gunicorn's arguments, this serves as gunicorn does, and each worker
appends its reports to the file that BLOCKED_HUB_FILE names:

    BLOCKED_HUB_FILE=blocked.log python tests/support/blocked_hub.py wsgi:app
"""

import gc
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import gevent
import greenlet
from gevent.monkey import get_original

LIMIT_SECONDS = 0.3

#: Seconds between two looks at a hub; its stack is taken when half of the limit has passed.
SAMPLE_SECONDS = 0.05

FILE_VARIABLE = "BLOCKED_HUB_FILE"

#: These shall neither switch greenlets nor wait for the hub that is watched.
_sleep = get_original("time", "sleep")
_start_thread = get_original("_thread", "start_new_thread")
_get_ident = get_original("_thread", "get_ident")


class HubMonitor:
    """Watches the hub of the thread that creates it, until it is stopped.

    `report` gets the text of each report, from any thread. Work of the greenlet `exempt` is not
    counted.
    """

    def __init__(
        self,
        report: Callable[[str], None],
        exempt: greenlet.greenlet | None = None,
        limit_seconds: float = LIMIT_SECONDS,
    ) -> None:
        self._report = report
        self._exempt = exempt
        self._limit = limit_seconds
        self._ident = _get_ident()
        self._clock = time.pthread_getcpuclockid(self._ident)
        self._current = greenlet.getcurrent()
        self._function: object = None  # that the current greenlet runs, which forgets it at its end
        self._stack = ""
        self._is_reported = False
        self._is_stopped = False
        self._since = time.thread_time()
        self._watcher = gevent.get_hub().loop.prepare(ref=False)
        self._watcher.start(self._end_period)
        self._traced_before = greenlet.settrace(self._trace)
        _start_thread(self._sample_forever, ())

    def stop(self) -> None:
        """Stop; call this in the same thread."""
        self._is_stopped = True
        greenlet.settrace(self._traced_before)
        self._watcher.stop()

    @contextmanager
    def count_exempt(self) -> Iterator[None]:
        """Count the work of the exempt greenlet during the block, if called in it."""
        if self._exempt is not greenlet.getcurrent():
            yield
            return
        exempt, self._exempt = self._exempt, None
        self._start_period()
        try:
            yield
        finally:
            self._end_period()
            self._exempt = exempt

    def _trace(self, event: str, args: tuple[greenlet.greenlet, greenlet.greenlet]) -> None:
        """Record the work until this switch. Source: greenlet's documents, "Tracing"."""
        self._end_period(args[0])
        self._current = args[1]
        self._function = getattr(args[1], "_run", None)

    def _end_period(self, origin: greenlet.greenlet | None = None) -> None:
        now = time.thread_time()
        if now - self._since > self._limit:
            self._notice(now - self._since, origin.gr_frame if origin else None)
        self._start_period(now)

    def _start_period(self, now: float | None = None) -> None:
        self._stack = ""
        self._is_reported = False
        self._since = time.thread_time() if now is None else now

    def _notice(self, seconds: float, frame: FrameType | None) -> None:
        """Report a hub that is blocked, once per period."""
        if self._is_reported or self._current is self._exempt:
            return
        self._is_reported = True
        stack = self._stack or f"(at its end)\n{_format(frame)}"
        what = f"a hub was blocked for {seconds:.2f} s of CPU, or longer, by {self._current}"
        self._report(f"{what}, running {self._function}:\n{stack}\n")

    def _sample_forever(self) -> None:
        """Sample the stack of a hub while it is blocked; also report one that stays blocked."""
        while not self._is_stopped:
            _sleep(SAMPLE_SECONDS)
            since = self._since
            used = time.clock_gettime(self._clock) - since
            if used > self._limit / 2 and not self._stack:
                stack = _format(sys._current_frames().get(self._ident))
                if since == self._since:
                    self._stack = stack
            if used > 2 * self._limit and since == self._since:
                self._notice(used, None)


@contextmanager
def monitored_hub(report: Callable[[str], None], limit_seconds: float) -> Iterator[HubMonitor]:
    """Watch the hub of a process of tests, except for the caller's own greenlet.

    Objects that exist already are exempt from garbage collection from now on: to look at all that
    thousands of tests have left took up to 0.45 s of CPU, which counted as a blocked hub.
    """
    gc.collect()
    gc.freeze()
    monitor = HubMonitor(report, greenlet.getcurrent(), limit_seconds)
    try:
        yield monitor
    finally:
        monitor.stop()


def _format(frame: FrameType | None) -> str:
    return "".join(traceback.format_stack(frame)) if frame else "(no stack)"


def append_report(text: str) -> None:
    """Append a report to the reports' file."""
    fd = os.open(os.environ[FILE_VARIABLE], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def serve() -> None:
    """Serve as gunicorn's own command does, with a monitor in each worker once it is ready."""
    from gunicorn.app.wsgiapp import WSGIApplication  # noqa: PLC0415  # of the checkout that is run

    class Monitored(WSGIApplication):  # type: ignore[misc]
        def load_config(self) -> None:
            super().load_config()
            initialize: Callable[[Any], None] = self.cfg.post_worker_init

            def initialize_and_watch(worker: Any) -> None:
                initialize(worker)
                HubMonitor(append_report)

            self.cfg.set("post_worker_init", initialize_and_watch)

    Monitored().run()


if __name__ == "__main__":
    if sys.path[0] == os.path.dirname(__file__):
        del sys.path[0]  # this directory's modules are not for the service
    serve()
