"""The compressor process is replaced when it dies, and does not affect the master."""

import errno
import os
import signal
import time
from collections.abc import Iterator

import pytest

from astralog.server import compressor
from astralog.server.compressor import CompressorProcess
from astralog.settings import Settings
from tests.support.service import wait_for


class Master:
    """A master that starts the process, and reaps its children as gunicorn does."""

    def __init__(self, settings: Settings) -> None:
        self.process = CompressorProcess(settings, -1, None)
        self.reaped: list[int] = []

    def reap(self) -> None:
        """Reap all children that ended."""
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            self.reaped.append(pid)

    def tick(self) -> None:
        """Do the master's work for an ended child."""
        self.reap()
        self.process.start_missing()


def sleep_forever(*args: object) -> None:
    """Replace the work of the process."""
    while True:
        time.sleep(1)


@pytest.fixture
def started(
    monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> Iterator[tuple[Master, list[int]]]:
    """Return a master that has started the process, and the pids of the processes so far."""
    pids: list[int] = []
    fork = os.fork

    def note_fork() -> int:
        pid = fork()
        pids.append(pid)
        return pid

    monkeypatch.setattr(os, "fork", note_fork)
    monkeypatch.setattr(CompressorProcess, "_run", sleep_forever)
    master = Master(settings)
    master.process.start_missing()
    yield master, pids
    monkeypatch.setattr(compressor, "STOP_SECONDS", 0.0)
    master.process.stop()
    master.reap()


def end(pid: int, number: signal.Signals) -> None:
    """End a child, and leave it to be reaped."""
    os.kill(pid, number)
    wait_for(lambda: os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT))


def test_dead_process_is_replaced(
    started: tuple[Master, list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    master, pids = started
    master.tick()
    assert len(pids) == 1
    end(pids[0], signal.SIGKILL)
    master.tick()
    assert len(pids) == 2
    assert master.reaped == pids[:1]
    assert len(caplog.messages) == 1


def test_process_that_gunicorn_reaped_first_is_replaced(started: tuple[Master, list[int]]) -> None:
    """It may die between the two checks."""
    master, pids = started
    end(pids[0], signal.SIGKILL)
    master.reap()
    master.tick()
    assert len(pids) == 2


def test_stopped_process_is_not_replaced(started: tuple[Master, list[int]]) -> None:
    master, pids = started
    master.process.stop()
    master.tick()
    assert len(pids) == 1


def test_process_that_cannot_be_started_is_tried_again_at_each_tick(
    started: tuple[Master, list[int]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One line reports the failure, and one its end."""
    master, pids = started
    end(pids[0], signal.SIGKILL)

    def fail() -> int:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fork", fail)
        master.tick()
        master.tick()
    assert caplog.text.count("cannot start the compressor") == 1
    master.tick()
    master.tick()
    assert len(pids) == 2
    assert caplog.text.count("segments are compressed again") == 1


def test_process_that_cannot_be_watched_is_ended(
    started: tuple[Master, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    master, pids = started
    end(pids[0], signal.SIGKILL)

    def fail(pid: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pidfd_open", fail)
        master.tick()
    wait_for(lambda: os.waitid(os.P_PID, pids[1], os.WEXITED | os.WNOHANG | os.WNOWAIT))
