"""The compressor: the process that compresses sealed segments, at the lowest priority.

A thread of a worker would hold the interpreter lock while it waits for the CPU; a separate process
delays no request. It is a fork of the master, so that it runs the code that was started, even if
the files have changed since, and shares the master's memory.
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
from gunicorn.arbiter import Arbiter

from astralog.log import LogOnce
from astralog.settings import Settings
from astralog.store.compression import Compressor
from astralog.store.files import call_libc, end_with_parent
from astralog.telemetry import slots
from astralog.telemetry.families import compression_families
from astralog.telemetry.prometheus import take_snapshot

log = logging.getLogger(__name__)

#: The process's name, as ps shows it.
NAME = "astralog-zstd"

#: Seconds after which the successor of a dead process begins.
RESTART_SECONDS = 1.0

#: The master kills the process when it takes longer to stop.
STOP_SECONDS = 0.5

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)

LOWEST_NICE = 19

#: From linux/prctl.h.
_SET_NAME = 15


class CompressorProcess:
    """The child process of the master that compresses; the master replaces it if it dies."""

    def __init__(self, settings: Settings, metrics_fd: int, cfg: Any) -> None:
        """Compress with these settings; the process runs as the user of gunicorn's `cfg`."""
        self._settings = settings
        self._metrics_fd = metrics_fd
        self._cfg = cfg
        self._pidfd = -1
        self._pause_seconds = 0.0
        self._is_stopped = False
        self._failures = LogOnce(log)

    def start_missing(self) -> None:
        """Start the process unless it runs; the master calls this at each tick.

        A failure is logged; the service also runs without the process.
        """
        if self._pidfd >= 0 and self._has_ended(0):
            log.error("the compressor died; starting another one")
            self._forget()
            self._pause_seconds = RESTART_SECONDS
        if self._pidfd >= 0 or self._is_stopped:
            return
        master = os.getpid()
        pid = 0
        try:
            pid = os.fork()
            if not pid:
                self._run(master)
            self._pidfd = os.pidfd_open(pid)
        except OSError as error:
            message = "cannot start the compressor: %s; trying again"
            self._failures.fail(error.errno, message, error.strerror)
            if pid:  # it cannot be watched, so it would run beside the next one
                os.kill(pid, signal.SIGKILL)
        else:
            self._failures.end("segments are compressed again")

    def stop(self) -> None:
        """End the process for good; its unfinished work is repeated later."""
        self._is_stopped = True
        if self._pidfd < 0:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)
            if self._has_ended(STOP_SECONDS):
                break
        self._forget()

    def _forget(self) -> None:
        os.close(self._pidfd)
        self._pidfd = -1

    def _has_ended(self, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    # --- In the process

    def _run(self, master: int) -> NoReturn:
        """Compress until a signal ends this process; never return to the master's code."""
        status = 1
        try:
            _separate(self._cfg, master, self._metrics_fd)
            time.sleep(self._pause_seconds)
            _compress(self._settings, self._metrics_fd)
        except SystemExit:
            status = 0
        except BaseException:
            log.exception("compression failed")
        finally:
            os._exit(status)


def _separate(cfg: Any, master: int, metrics_fd: int) -> None:
    """Drop all of the master's state except its log and the file of the metrics."""
    call_libc("prctl", _SET_NAME, NAME.encode())
    gc.freeze()  # the master's garbage must not close files by their old numbers
    for number in Arbiter.SIGNALS:  # those that the master handles
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: sys.exit(0))
    util.set_owner_process(cfg.uid, cfg.gid, initgroups=cfg.initgroups)
    end_with_parent(master)
    # The sockets and all other open files of the master.
    os.closerange(sys.stderr.fileno() + 1, metrics_fd)
    os.closerange(metrics_fd + 1, os.sysconf("SC_OPEN_MAX"))
    _take_lowest_priority()


def _take_lowest_priority() -> None:
    """Use only idle CPU time and idle disk time."""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, LOWEST_NICE)
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except OSError as error:
        log.warning("cannot lower the priority of the compressor: %s", error.strerror)


def _compress(settings: Settings, metrics_fd: int) -> None:
    compressor = Compressor(settings.data_dir)
    try:
        slot = slots.claim(metrics_fd)
        families = compression_families(compressor.counts)
        while True:
            pause = compressor.step()
            with contextlib.suppress(OSError):  # the next one may succeed
                slot.publish(take_snapshot(families))
            time.sleep(pause)
    finally:
        compressor.close()
