"""What several unit tests need: settings, an app that is stopped, and faults of the system.

`HYPOTHESIS_PROFILE=long pytest --timeout 0 tests/unit/intake/test_compiled_schema.py` tries 100,000
examples of each property, which takes half an hour; of requests it tries 2,000 an operation.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import greenlet
import hypothesis
import pytest
from flask import Flask
from flask.testing import FlaskClient

from astralog import log
from astralog.app import create_app
from astralog.settings import Settings
from tests.support.blocked_hub import HubMonitor
from tests.support.service import TOKEN, heed_signals

heed_signals()

hypothesis.settings.register_profile("quick", max_examples=200, deadline=None)
hypothesis.settings.register_profile(
    "long",
    max_examples=100_000,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


class Fault:
    """A function that fails for its first `times` calls, and works from then on."""

    def __init__(self, function: Callable[..., Any], number: int, times: float) -> None:
        self._function = function
        self._number = number
        self.times = times
        #: The file of each call, as `name (inode)`, which no later file shares.
        self.calls: list[str] = []

    def __call__(self, target: Any, *args: Any) -> Any:
        self.calls.append(_identity(target))
        if len(self.calls) <= self.times:
            raise OSError(self._number, os.strerror(self._number))
        return self._function(target, *args)


def _identity(target: int | os.PathLike[str] | str) -> str:
    if not isinstance(target, int):
        return str(target)
    return f"{os.readlink(f'/proc/self/fd/{target}')} ({os.fstat(target).st_ino})"


class Disk:
    """A disk whose free bytes and inodes a test sets; without inodes it has no limit of them."""

    def __init__(self, free: int) -> None:
        self.free = free
        self.total = 1 << 50
        self.inodes = 0
        self.free_inodes = 0
        self.flags = 0

    def statvfs(self, path: object) -> SimpleNamespace:
        """Answer as `os.statvfs` does, as far as the service asks."""
        return SimpleNamespace(
            f_bavail=self.free,
            f_frsize=1,
            f_blocks=self.total,
            f_flag=self.flags,
            f_files=self.inodes,
            f_favail=self.free_inodes,
            f_ffree=1 << 60,
            f_bfree=1 << 60,
            f_bsize=4096,
        )


@pytest.fixture(autouse=True)
def first_tracebacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test see the traceback that is logged once a minute."""
    monkeypatch.setattr(log, "_tracebacks", log._Tracebacks())


@pytest.fixture
def break_os(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Fault]:
    """Return what makes a function of `os` fail: `break_os("fdatasync", errno.EIO, times=1)`.

    `module` is where another function is, as of `files.rename_new`.
    """

    def break_function(
        name: str, number: int, times: float = float("inf"), module: Any = os
    ) -> Fault:
        fault = Fault(getattr(module, name), number, times)
        monkeypatch.setattr(module, name, fault)
        return fault

    return break_function


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """Return the disk that the service sees, with room on it."""
    fake = Disk(1 << 40)
    monkeypatch.setattr(os, "statvfs", fake.statvfs)
    return fake


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Return settings with a token, for a data directory of the test's own."""
    return Settings(data_dir=tmp_path, tokens=TOKEN, min_free_bytes=0)


@pytest.fixture
def hub_reports() -> Iterator[list[str]]:
    """Return the reports of blocked hubs so far; one that is left at the end fails the test."""
    reports: list[str] = []
    yield reports
    assert not reports, "".join(reports)


@pytest.fixture
def hub_monitor(hub_reports: list[str]) -> Iterator[HubMonitor]:
    """Return a monitor of the hub; it does not count the test's own greenlet, unless told so."""
    monitor = HubMonitor(hub_reports.append, exempt=greenlet.getcurrent())
    yield monitor
    monitor.stop()


@pytest.fixture
def make_app(hub_monitor: HubMonitor) -> Iterator[Callable[[Settings], Flask]]:
    """Return a `create_app` whose apps are stopped at the end of the test.

    An app that blocks the hub while it is called fails the test.
    """
    apps: list[Flask] = []

    def make(settings: Settings) -> Flask:
        app = create_app(settings)
        apps.append(app)
        app.wsgi_app = hub_monitor.count_exempt()(app.wsgi_app)  # type: ignore[method-assign]
        return app

    yield make
    for app in apps:
        app.extensions["astralog"].stop(1)
        app.extensions["astralog_rejections"].flush()  # not in the log of a later test


@pytest.fixture
def client(make_app: Callable[[Settings], Flask], settings: Settings) -> FlaskClient:
    """Return a client of a new app."""
    return make_app(settings).test_client()
