"""gunicorn's master: start the workers with its state, reload, and stop.

It survives failed forks and pauses of the machine.
"""

import logging
import math
import os
import signal
import ssl
import time
from typing import Any

from gevent.ssl import SSLContext
from gunicorn.app.wsgiapp import WSGIApplication
from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer

from astralog.auth import Tokens
from astralog.log import LogOnce
from astralog.server.balance import Balance
from astralog.server.compressor import STOP_SIGNALS, CompressorProcess
from astralog.server.worker import MasterState, Worker
from astralog.settings import PREFIX, InvalidSettings, Settings
from astralog.telemetry import slots

log = logging.getLogger(__name__)

#: Seconds until the next try to replace a worker that failed while it started.
BOOT_RETRY_SECONDS = 5.0


class Application(WSGIApplication):
    """gunicorn's application for `astralog serve`, without its command line and settings file."""

    def load_config(self) -> None:
        self.app_uri = "astralog.app:create_app()"
        self.load_config_from_file("python:astralog.server.gunicorn_settings")


def run() -> None:
    Application().run()


# --- The state that workers inherit


def read_state(settings: Settings) -> MasterState:
    """Read the tokens and the certificate, and open the workers' shared memory.

    Raises InvalidSettings if the tokens or the certificate are unusable.
    """
    return MasterState(
        settings=settings,
        tokens=Tokens(settings),
        tls=read_certificate(settings),
        balance=Balance(),
        metrics_fd=slots.open_shared_file(os.environ),
        started_at=time.time(),
    )


def read_certificate(settings: Settings) -> Any | None:
    """Return the TLS context of the settings' certificate, None without a certificate.

    Raises InvalidSettings if the certificate or its key is unusable.
    """
    if not settings.tls_cert:
        return None
    for name, path in (("TLS_CERT", settings.tls_cert), ("TLS_KEY", settings.tls_key)):
        try:
            open(path, "rb").close()
        except OSError as error:
            raise InvalidSettings([f"{PREFIX}{name}: {path}: {error.strerror}."]) from None
    context = SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # Each renegotiation costs a handshake, and a client may ask for any number of them.
    context.options |= ssl.OP_NO_RENEGOTIATION
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password=_no_password)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        problem = f"{PREFIX}TLS_CERT and {PREFIX}TLS_KEY: Not a certificate and its key: {reason}."
        raise InvalidSettings([problem]) from None
    return context


def _no_password() -> str:
    """Reject an encrypted key; OpenSSL would prompt for its password on the terminal."""
    raise ValueError("the key is encrypted")


# --- The process


class Master(Arbiter):
    """The process that starts the workers, kills those that hang, and replaces those that ended.

    gunicorn's own master ends the service if one fork fails or a worker fails to start, and after
    a pause (SIGSTOP, a suspended machine) it kills healthy workers.
    """

    state: MasterState
    compressor: CompressorProcess | None = None

    # Starting workers
    _forks: LogOnce
    _unstarted: Worker | None = None
    _reloaded_age = 0
    _has_served = False
    _retry_at = -math.inf

    # Killing workers
    _checked_at = math.inf
    _resumed_at = -math.inf

    @classmethod
    def adopt(cls, server: Arbiter, state: MasterState) -> "Master":
        """Turn the master that gunicorn has made into one of this class."""
        server.__class__ = cls
        server.state = state
        if state.settings.compress != "none":
            server.compressor = CompressorProcess(state.settings, state.metrics_fd, server.cfg)
        server._forks = LogOnce(log)
        master: Master = server
        return master

    # --- Starting workers

    def prepare(self, worker: Worker) -> None:
        """Give the state to a worker before its fork; it is freed if the fork fails."""
        worker.inherit(self.state)
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
        self.note_exit(worker)

    def note_exit(self, worker: Worker) -> None:
        self.state.balance.leave(worker.share)

    def manage_workers(self) -> None:
        """Start missing workers and stop surplus ones, the oldest first; called at each tick."""
        if self.compressor:
            self.compressor.start_missing()
        if time.monotonic() >= self._retry_at:
            self._replace_old()
            super().manage_workers()

    def _replace_old(self) -> None:
        """Replace each worker that was started before the last reload."""
        old = sum(worker.age <= self._reloaded_age for worker in self.WORKERS.values())
        missing = self.num_workers - (len(self.WORKERS) - old)
        for _ in range(min(old, missing)):
            if self.spawn_worker() is None:
                break

    # --- Ending workers

    def kill_worker(self, pid: int, sig: int) -> None:
        """Send a signal to a worker; SIGTERM only once, since a second may interrupt its stop."""
        worker = self.WORKERS.get(pid)
        if worker and sig == signal.SIGTERM:
            if worker.is_told_to_stop:
                return
            worker.is_told_to_stop = True
        super().kill_worker(pid, sig)

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
        """Reap workers that ended; after the first worker has served, failed starts do not halt.

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
        """Read the tokens and the certificate again, and replace the workers (SIGHUP).

        If anything is faulty, nothing changes: the workers know the newest usable tokens. No code
        and no setting is read again.
        """
        settings = self.state.settings
        try:
            tls = read_certificate(settings)
            tokens = Tokens(settings, self.state.tokens.rates)  # no burst anew
        except InvalidSettings as error:
            log.error("not reloaded, nothing changed: %s", "; ".join(error.problems))
            return
        self.state.tls, self.state.tokens = tls, tokens
        self._reloaded_age = self.worker_age  # the next tick, which follows, replaces them
        log.info("reloaded tokens and certificate, replacing all workers")

    def reexec(self) -> None:
        """Start the next master (SIGUSR2); if that fails, this one continues."""
        master = os.getpid()
        try:
            super().reexec()
        except Exception as error:
            log.error("cannot start another master: %s", error)
            if os.getpid() != master:
                os._exit(1)  # the copy of this master must do nothing else

    def pass_metrics_on(self) -> None:
        """Let the next master, which this process becomes, continue the metrics."""
        slots.pass_on(self.state.metrics_fd, self.cfg.env_orig)

    def finish(self) -> None:
        """End the compressor, and log the stop; called when all workers are gone."""
        if self.compressor:
            self.compressor.stop()
        log.info("stopped")


def _has_served(worker: Worker) -> bool:
    """Return whether a worker has begun to serve; before, the time of its file is wall time."""
    try:
        return bool(worker.tmp.last_update() <= time.monotonic())
    except (OSError, ValueError):
        return False


# --- Signals during a worker's start


def end_booting_workers_at_stops() -> None:
    """End a worker that is still starting at a signal to stop.

    Between its fork and gunicorn's own handlers, a worker has the master's handlers, which do
    nothing there: it would serve on until it is killed.
    """
    os.register_at_fork(
        before=lambda: _mask_stops(signal.SIG_BLOCK),
        after_in_parent=lambda: _mask_stops(signal.SIG_UNBLOCK),
        after_in_child=_end_at_stops,
    )


def _mask_stops(how: int) -> None:
    signal.pthread_sigmask(how, STOP_SIGNALS)


def _end_at_stops() -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: os._exit(0))
    _mask_stops(signal.SIG_UNBLOCK)
