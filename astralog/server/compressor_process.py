"""The process beside the workers that compresses sealed segments, at the lowest priority.

A thread of a worker would hold the interpreter while it waits for a turn of the CPU; a process of
its own lets requests wait for nothing.
"""

import contextlib
import gc
import logging
import os
import select
import signal
import sys
import time
from typing import Any, NoReturn

from gunicorn import util

from astralog.log import LogOnce
from astralog.settings import Settings
from astralog.store.compression import Compressor
from astralog.store.files import call_libc
from astralog.telemetry import slots
from astralog.telemetry.families import compression_families
from astralog.telemetry.prometheus import take_snapshot

log = logging.getLogger(__name__)

#: What the system calls the process.
NAME = "astralog-zstd"

#: Seconds until a process that died is followed by another one.
RESTART_SECONDS = 1.0

#: The master kills the process when it takes longer to stop.
STOP_SECONDS = 0.5

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)

#: What the master does at these is not for this process.
OTHER_SIGNALS = (
    *(signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2),
    *(signal.SIGTTIN, signal.SIGTTOU, signal.SIGWINCH),
)

LOWEST_NICE = 19

#: Of linux/prctl.h.
_SET_PARENT_DEATH_SIGNAL, _SET_NAME = 1, 15


class CompressorProcess:
    """The master's child that compresses; another one takes its place when it dies."""

    def __init__(self, server: Any, settings: Settings) -> None:
        """Belong to gunicorn's master, which is `server`."""
        self._server = server
        self._settings = settings
        self._handle_child_exit = server.handle_chld
        self._pidfd = -1
        self._failures = LogOnce(log)

    def start(self, pause_seconds: float = 0.0) -> None:
        """Start the process, which begins after a pause; the service also runs without it."""
        self._pidfd = -1
        master = os.getpid()
        pid = 0
        try:
            pid = os.fork()
            if not pid:
                _run(self._server, self._settings, master, pause_seconds)
            self._pidfd = os.pidfd_open(pid)
        except OSError as error:
            message = "cannot start the process that compresses segments: %s; trying again"
            self._failures.fail(error.errno, message, error.strerror)
            if pid:  # it cannot be watched, so it would run beside the next one
                os.kill(pid, signal.SIGKILL)
        else:
            self._failures.end("segments are compressed again")

    def start_missing(self) -> None:
        """Start the process if the last try failed; the master calls this at each tick."""
        if self._pidfd < 0:
            self.start()

    def replace_dead(self) -> None:
        """Do what gunicorn does when a child ends, and see whether it was this one."""
        status = self._exit_status()
        self._handle_child_exit()
        if status is not None:
            if status:
                log.error("the process that compresses died; another one takes its place")
            os.close(self._pidfd)
            self.start(RESTART_SECONDS)

    def stop(self) -> None:
        """End the process for good; what it had not finished is done again later."""
        self._server.handle_chld = self._server.handle_cld = self._handle_child_exit
        if self._pidfd < 0:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)
            if self._has_ended(STOP_SECONDS):
                break
        os.close(self._pidfd)
        self._pidfd = -1

    def _exit_status(self) -> int | None:
        """Return how the process ended, or the signal that killed it; None if it did not end."""
        if self._pidfd < 0:
            return None
        try:
            end = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:  # gunicorn has reaped it, when it reaped another one
            return int(signal.SIGKILL)
        return end.si_status if end else None

    def _has_ended(self, seconds: float) -> bool:
        """Return whether the process has ended, or does so in time."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(seconds * 1000))


def start(server: Any, settings: Settings) -> None:
    """Start the process, and have gunicorn's master replace it when it dies."""
    process = server.app.compressor = CompressorProcess(server, settings)
    server.handle_chld = server.handle_cld = process.replace_dead
    process.start()


def start_missing(server: Any) -> None:
    """Start the process if there is to be one and the last try failed."""
    process = getattr(server.app, "compressor", None)
    if process:
        process.start_missing()


def stop(server: Any) -> None:
    """Stop the process, where there is one."""
    process = getattr(server.app, "compressor", None)
    if process:
        process.stop()


def _run(server: Any, settings: Settings, master: int, pause_seconds: float) -> NoReturn:
    """Compress until a signal ends this process; it never goes back to what the master does."""
    status = 1
    try:
        _become_own_process(server, master)
        time.sleep(pause_seconds)
        _compress(settings, server.app.metrics_fd)
    except SystemExit:
        status = 0
    except BaseException:
        log.exception("compression failed")
    finally:
        os._exit(status)


def _become_own_process(server: Any, master: int) -> None:
    """Keep nothing of the master's but its log and the file of the metrics."""
    call_libc("prctl", _SET_NAME, NAME.encode())
    gc.freeze()  # what the master left as garbage must not close files by their old numbers
    for number in OTHER_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: sys.exit(0))
    util.set_owner_process(server.cfg.uid, server.cfg.gid, initgroups=server.cfg.initgroups)
    call_libc("prctl", _SET_PARENT_DEATH_SIGNAL, int(signal.SIGKILL))
    if os.getppid() != master:
        sys.exit(0)  # it died before the system was told
    _close_files_but(server.app.metrics_fd)
    _take_lowest_priority()


def _close_files_but(metrics_fd: int | None) -> None:
    """Close the sockets and whatever else the master has open."""
    first = sys.stderr.fileno() + 1
    end = os.sysconf("SC_OPEN_MAX")
    if metrics_fd is None:
        os.closerange(first, end)
    else:
        os.closerange(first, metrics_fd)
        os.closerange(metrics_fd + 1, end)


def _take_lowest_priority() -> None:
    """Run when nothing else would; its reads and writes then come last, too."""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, LOWEST_NICE)
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except OSError as error:
        log.warning("segments are not compressed at the lowest priority: %s", error.strerror)


def _compress(settings: Settings, metrics_fd: int | None) -> None:
    compressor = Compressor(settings.data_dir)
    try:
        slot = None if metrics_fd is None else slots.claim(metrics_fd)
        families = compression_families(compressor.counts)
        while True:
            pause = compressor.step()
            if slot:
                with contextlib.suppress(OSError):  # the next time may do
                    slot.publish(take_snapshot(families))
            time.sleep(pause)
    finally:
        compressor.close()
