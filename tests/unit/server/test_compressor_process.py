"""The process that compresses is replaced when it dies, and never takes the master along."""

import errno
import os
import signal
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from astralog.server import compressor_process
from astralog.server.compressor_process import CompressorProcess
from astralog.settings import Settings
from tests.support.service import wait_for


class Master:
    """gunicorn's master, as far as it reaps its children."""

    def __init__(self) -> None:
        self.app = SimpleNamespace(metrics_fd=None)
        self.reaped: list[int] = []

    def handle_chld(self) -> None:
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            self.reaped.append(pid)


def sleep_for_ever(*args: object) -> None:
    """Stand in for the process's work."""
    while True:
        time.sleep(1)


@pytest.fixture
def started(
    monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> Iterator[tuple[Master, list[int]]]:
    """Return a master whose process was started, and the list of those started so far."""
    pids: list[int] = []
    fork = os.fork

    def note_fork() -> int:
        pid = fork()
        pids.append(pid)
        return pid

    monkeypatch.setattr(os, "fork", note_fork)
    monkeypatch.setattr(compressor_process, "_run", sleep_for_ever)
    master = Master()
    compressor_process.start(master, settings)
    yield master, pids
    monkeypatch.setattr(compressor_process, "STOP_SECONDS", 0.0)
    compressor_process.stop(master)
    master.handle_chld()


def end(pid: int, number: signal.Signals) -> None:
    """End a child, and leave it to be reaped."""
    os.kill(pid, number)
    wait_for(lambda: os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT))


def replaced(master: Master) -> CompressorProcess:
    process: CompressorProcess = master.app.compressor
    process.replace_dead()
    return process


def test_one_that_died_is_replaced(
    started: tuple[Master, list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    """Gunicorn reaps it as it does any child, and the log says so."""
    master, pids = started
    replaced(master)
    assert 1 == len(pids)
    end(pids[0], signal.SIGKILL)
    replaced(master)
    assert [2, pids[:1]] == [len(pids), master.reaped]
    assert 1 == len(caplog.messages)


def test_one_that_gunicorn_reaped_before_is_replaced(started: tuple[Master, list[int]]) -> None:
    """As when it dies between the look at it and the look at all children."""
    master, pids = started
    end(pids[0], signal.SIGKILL)
    master.handle_chld()
    replaced(master)
    assert 2 == len(pids)


def test_process_that_cannot_be_started_is_tried_again_at_each_tick(
    started: tuple[Master, list[int]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One line says that it fails, and one that it works again."""
    master, pids = started
    end(pids[0], signal.SIGKILL)

    def fail() -> int:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fork", fail)
        replaced(master)
        compressor_process.start_missing(master)
    assert caplog.text.count("cannot start the process") == 1
    compressor_process.start_missing(master)
    compressor_process.start_missing(master)
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
        replaced(master)
    wait_for(lambda: os.waitid(os.P_PID, pids[1], os.WEXITED | os.WNOHANG | os.WNOWAIT))
