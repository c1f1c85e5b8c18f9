"""The master survives failed forks, workers that fail to start, and pauses of the machine."""

import errno
import os
import time
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer

from astralog.server.balance import Share
from astralog.server.master import Master, read_state
from astralog.server.worker import MasterState
from astralog.settings import Settings
from tests.support.fake_system import Clock


class Heartbeat:
    """A worker's heartbeat file, in memory."""

    def __init__(self) -> None:
        self.updated_at = time.monotonic()
        self.is_closed = False

    def last_update(self) -> float:
        return self.updated_at

    def close(self) -> None:
        self.is_closed = True


class Worker:
    """A worker without a process."""

    def __init__(self, age: int) -> None:
        self.age = age
        self.aborted = self.is_told_to_stop = False
        self.tmp = Heartbeat()
        self.share: Share

    def inherit(self, state: MasterState) -> None:
        self.share = state.balance.join()


class Forks:
    """A replacement for gunicorn's fork, which fails as long as a test wants."""

    def __init__(self) -> None:
        self.master: Any = None
        self.fail = False
        self.tried: list[Worker] = []

    def spawn(self) -> int:
        """Start a worker as gunicorn does, without a process."""
        master = self.master
        master.worker_age += 1
        worker = Worker(master.worker_age)
        self.tried.append(worker)
        master.prepare(worker)
        if self.fail:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        pid = 1000 + worker.age
        master.WORKERS[pid] = worker
        return pid


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> Forks:
    """Return the replacement that starts workers; killed ones end at once."""
    forks = Forks()
    monkeypatch.setattr(Arbiter, "spawn_worker", forks.spawn)
    monkeypatch.setattr(Arbiter, "kill_worker", lambda master, pid, _: master.WORKERS.pop(pid))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    return forks


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return the clock of the master and its workers."""
    return Clock(monkeypatch)


@pytest.fixture
def master(settings: Settings, forks: Forks, clock: Clock) -> Any:
    """Return a master of two workers."""
    made: Any = object.__new__(Arbiter)
    forks.master = made
    made.cfg = SimpleNamespace(
        enable_backlog_metric=False,
        nworkers_changed=lambda *args: None,
    )
    made.log = SimpleNamespace(debug=lambda *a, **k: None, critical=lambda *a: None)
    made.WORKERS, made.worker_age, made.timeout, made.pid = {}, 0, 30, os.getpid()
    made._num_workers, made._last_logged_active_worker_count = 2, None
    return Master.adopt(made, read_state(settings))


def serve(master: Any) -> None:
    """Let workers serve, and the master notice it at a tick."""
    master.manage_workers()
    master.murder_workers()


def test_failed_fork_is_tried_again_at_each_tick(
    master: Any, forks: Forks, caplog: pytest.LogCaptureFixture
) -> None:
    forks.fail = True
    for _ in range(3):
        master.manage_workers()
    assert len(forks.tried) == 6
    assert all(worker.tmp.is_closed for worker in forks.tried)
    assert {worker.share.place for worker in forks.tried} == {1}
    forks.fail = False
    master.manage_workers()
    assert len(master.WORKERS) == 2
    assert caplog.messages == [
        "cannot start a worker: Resource temporarily unavailable; trying again each second",
        "workers can be started again",
    ]


def test_reload_without_forks_replaces_the_workers_later(master: Any, forks: Forks) -> None:
    master.manage_workers()
    old = set(master.WORKERS)
    forks.fail = True
    master.handle_hup()
    master.manage_workers()
    assert set(master.WORKERS) == old
    forks.fail = False
    master.manage_workers()
    assert len(master.WORKERS) == 2
    assert old.isdisjoint(master.WORKERS)


def test_surplus_worker_is_stopped_once(
    master: Any, forks: Forks, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    monkeypatch.setattr(Arbiter, "kill_worker", lambda self, pid, _: told.append(pid))
    master.manage_workers()
    old = set(master.WORKERS)
    master.handle_hup()
    for _ in range(3):
        master.manage_workers()
    assert sorted(told) == sorted(old)
    assert len(forks.tried) == 4


@pytest.mark.parametrize(("paused_seconds", "are_killed"), [(0, True), (40, False)])
def test_pause_of_all_processes_kills_no_worker(
    master: Any,
    forks: Forks,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    paused_seconds: int,
    are_killed: bool,
) -> None:
    killed: list[int] = []
    monkeypatch.setattr(Arbiter, "kill_worker", lambda self, pid, _: killed.append(pid))
    serve(master)
    for worker in forks.tried:
        worker.tmp.updated_at -= 40 - paused_seconds
    clock.now += paused_seconds + 1
    master.murder_workers()
    assert bool(killed) == are_killed
    for _ in range(32):
        clock.now += 1
        master.murder_workers()
    assert killed  # they hang


@pytest.fixture
def halts(master: Any, monkeypatch: pytest.MonkeyPatch) -> list[HaltServer]:
    """Return errors, each of a worker that fails to start."""
    halts: list[HaltServer] = []

    def reap(self: Any) -> None:
        if halts:
            self.WORKERS.popitem()
            raise halts.pop()

    monkeypatch.setattr(Arbiter, "reap_workers", reap)
    return halts


def test_worker_that_fails_at_the_first_start_ends_the_service(
    master: Any, halts: list[HaltServer], forks: Forks
) -> None:
    master.manage_workers()
    for worker in forks.tried:
        worker.tmp.updated_at = time.time()  # as gunicorn makes the file
    master.murder_workers()
    halts.append(HaltServer("Worker failed to boot.", 3))
    with pytest.raises(HaltServer):
        master.reap_workers()


def test_worker_that_fails_later_is_replaced_after_a_while(
    master: Any, halts: list[HaltServer], forks: Forks, clock: Clock
) -> None:
    serve(master)
    lost = list(master.WORKERS.values())
    halts += [HaltServer("Worker failed to boot.", 3)] * 2
    master.reap_workers()
    assert not halts
    assert all(worker.tmp.is_closed for worker in lost)
    master.manage_workers()
    assert len(forks.tried) == 2
    clock.now += 6
    master.manage_workers()
    assert len(forks.tried) == 4
    assert {worker.share.place for worker in master.WORKERS.values()} == {1, 2}


def test_upgrade_without_a_fork_changes_nothing(
    master: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: Any) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(Arbiter, "reexec", fail)
    master.reexec()
    assert "cannot start another master: " in caplog.text


# --- Metrics


def test_next_master_continues_the_metrics(
    master: Any, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    master.cfg.env_orig = {}
    master.pass_metrics_on()
    monkeypatch.setattr(os, "environ", master.cfg.env_orig)
    assert read_state(settings).metrics_fd == master.state.metrics_fd
    assert master.cfg.env_orig == {}
