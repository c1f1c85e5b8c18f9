"""Small changes to gunicorn and the process work as they say."""

import errno
import os
import resource
import time
from pathlib import Path

import pytest
from gunicorn.config import Config
from gunicorn.workers import base
from gunicorn.workers.workertmp import WorkerTmp

from astralog.server.tuning import (
    Heartbeat,
    keep_heartbeats_in_memory,
    make_heartbeat,
    raise_open_files_limit,
)
from tests.support.fake_system import BreakOs


@pytest.fixture
def cfg() -> Config:
    """Return gunicorn's settings."""
    return Config()


def test_the_master_sees_when_a_worker_was_last_alive(cfg: Config) -> None:
    """The time is the monotonic clock's, by which gunicorn counts."""
    heartbeat = make_heartbeat(cfg)
    before = time.monotonic()
    heartbeat.notify()
    assert before - 0.001 <= heartbeat.last_update() <= time.monotonic()
    os.utime(heartbeat.fileno(), (7, 7))
    assert 7 == heartbeat.last_update()
    heartbeat.close()


def test_a_closed_heartbeat_is_gone(cfg: Config) -> None:
    """The master takes OSError for a worker that is gone, and may close twice."""
    heartbeat = make_heartbeat(cfg)
    fd = heartbeat.fileno()
    heartbeat.close()
    heartbeat.close()
    with pytest.raises(OSError, match="Bad file"):
        heartbeat.last_update()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


def test_the_worker_owns_its_heartbeat(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the owner may set a file's time, and workers may run as another user."""
    owners: list[tuple[int, int, int]] = []
    monkeypatch.setattr(os, "fchown", lambda *owner: owners.append(owner))
    cfg.set("user", 1234)
    cfg.set("group", 1235)
    heartbeat = make_heartbeat(cfg)
    assert [(heartbeat.fileno(), 1234, 1235)] == owners
    heartbeat.close()


def test_no_directory_is_asked_for_a_file(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker starts although its directory for temporary files is gone."""
    monkeypatch.setattr(base, "WorkerTmp", base.WorkerTmp)
    keep_heartbeats_in_memory()
    cfg.set("worker_tmp_dir", "/proc")
    worker = base.Worker(1, 2, [], None, 30, cfg, None)
    assert isinstance(worker.tmp, Heartbeat)
    worker.tmp.close()


def test_a_system_without_memory_files_takes_a_directory(
    cfg: Config, tmp_path: Path, break_os: BreakOs
) -> None:
    """Gunicorn's own heartbeat is better than none."""
    break_os("memfd_create", errno.EPERM)
    cfg.set("worker_tmp_dir", str(tmp_path))
    heartbeat = make_heartbeat(cfg)
    assert isinstance(heartbeat, WorkerTmp)
    heartbeat.close()


def test_limit_of_open_files_is_raised_to_the_hard_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda what: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda what, both: limits.append(both))
    raise_open_files_limit()
    assert [(4096, 4096)] == limits
