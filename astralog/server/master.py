"""gunicorn's master, which survives failed forks and pauses of the machine."""

import logging
import math
import os
import time

from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer

from astralog.log import LogOnce
from astralog.server import compressor_process, inheritance
from astralog.server.worker import Worker
from astralog.settings import Settings

log = logging.getLogger(__name__)

#: Seconds until the next try to replace a worker that failed while it started.
BOOT_RETRY_SECONDS = 5.0


class Master(Arbiter):  # type: ignore[misc]
    """The process that starts the workers, kills those that hang, and replaces those that ended.

    gunicorn's own master ends the service if one fork fails or a worker fails to start, and after
    a pause (SIGSTOP, a suspended machine) it kills healthy workers.
    """

    _settings: Settings

    # Starting workers
    _forks: LogOnce
    _unstarted: Worker | None
    _reloaded_age: int
    _has_served: bool
    _retry_at: float

    # Killing workers
    _checked_at: float
    _resumed_at: float

    @classmethod
    def adopt(cls, server: Arbiter, settings: Settings) -> None:
        """Turn gunicorn's master, which its command line has made, into one of these."""
        server.__class__ = cls
        server._settings = settings
        server._forks = LogOnce(log)
        server._unstarted = None
        server._reloaded_age = 0
        server._has_served = False
        server._retry_at = server._resumed_at = -math.inf
        server._checked_at = math.inf

    # --- Starting workers

    def note_unstarted(self, worker: Worker) -> None:
        """Note the worker that is about to be forked; it is freed if the fork fails."""
        self._unstarted = worker

    def spawn_worker(self) -> int | None:
        """Fork a worker and return its pid, or None if that failed; the next tick tries again."""
        master = os.getpid()
        try:
            pid: int = super().spawn_worker()
        except OSError as error:
            if os.getpid() != master:
                raise
            message = "cannot start a worker: %s; trying again each second"
            self._forks.fail(error.errno, message, error.strerror)
            if self._unstarted is not None:
                self._free(self._unstarted)
            return None
        finally:
            self._unstarted = None
        self._forks.end("workers can be started again")
        return pid

    def _free(self, worker: Worker) -> None:
        """Free the heartbeat file and the place of a worker that has no process."""
        worker.tmp.close()
        self.cfg.child_exit(self, worker)

    def manage_workers(self) -> None:
        """Start missing workers and stop surplus ones; gunicorn calls this at each tick."""
        compressor_process.start_missing(self)
        if time.monotonic() >= self._retry_at:
            self._replace_old()
            super().manage_workers()

    def _replace_old(self) -> None:
        """Start a worker for each one that the last reload could not replace."""
        old = sum(worker.age <= self._reloaded_age for worker in self.WORKERS.values())
        missing = self.num_workers - (len(self.WORKERS) - old)
        for _ in range(min(old, missing)):
            if self.spawn_worker() is None:
                break

    # --- Ending workers

    def murder_workers(self) -> None:
        """Kill workers that hang; gunicorn calls this at each tick.

        If the master itself was paused, each worker first gets the whole timeout again.
        """
        now = time.monotonic()
        if now - self._checked_at > self.timeout / 2:
            self._resumed_at = now
        self._checked_at = now
        self._has_served = self._has_served or any(map(_has_served, self.WORKERS.values()))
        if now - self._resumed_at > self.timeout:
            super().murder_workers()

    def reap_workers(self) -> None:
        """Collect workers that ended; once a worker has served, none that fails to start halts.

        A worker may fail to start for lack of memory or threads, while others serve.
        """
        before = dict(self.WORKERS)
        try:
            super().reap_workers()
        except HaltServer as error:
            if not self._has_served:
                raise
            log.error("%s Trying again in %d seconds.", error.reason, BOOT_RETRY_SECONDS)
            self._retry_at = time.monotonic() + BOOT_RETRY_SECONDS
            for pid in before.keys() - self.WORKERS.keys():
                self._free(before[pid])
            self.reap_workers()  # the others that ended

    # --- Signals

    def handle_hup(self) -> None:
        """Read tokens and certificate again, and replace the workers."""
        try:
            inheritance.reload(self, self._settings)
        except (OSError, RuntimeError) as error:  # gunicorn's, about its PID file
            log.error("the reload is not complete: %s", error)

    def reload(self) -> None:
        """Replace the workers; those that cannot be replaced now are replaced at a later tick."""
        self._reloaded_age = self.worker_age
        super().reload()

    def reexec(self) -> None:
        """Start the next master (SIGUSR2); if that fails, this one serves on."""
        master = os.getpid()
        try:
            super().reexec()
        except Exception as error:
            log.error("cannot start another master: %s", error)
            if os.getpid() != master:
                os._exit(1)  # the copy of this master must do nothing else


def _has_served(worker: Worker) -> bool:
    """Return whether a worker has begun to serve; before, its file's time is the wall clock's."""
    try:
        return bool(worker.tmp.last_update() <= time.monotonic())
    except (OSError, ValueError):
        return False
