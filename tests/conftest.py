"""Shared by the unit tests: settings, an app that is stopped, and faults of the system.

`HYPOTHESIS_PROFILE=long pytest --timeout 0 tests/unit/intake/test_compiled_schema.py` tries 100,000
examples of each property, which takes half an hour; of requests it tries 2,000 per operation. The
profile `quick`, which `make test-quick` uses, tries a tenth of the examples.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from flask import Flask
from flask.testing import FlaskClient

from astralog import log
from astralog.app import create_app, services_of
from astralog.settings import Settings
from tests.support.blocked_hub import LIMIT_SECONDS, HubMonitor, monitored_hub
from tests.support.fake_system import BreakOs, Disk, Fault
from tests.support.launcher import defer_url_builders
from tests.support.service import TOKEN, heed_signals

# Set as in many containers, it hides the output that Python fails to write as it ends.
os.environ.pop("PYTHONUNBUFFERED", None)

heed_signals()
defer_url_builders()

hypothesis.settings.register_profile("default", max_examples=200, deadline=None)
hypothesis.settings.register_profile("quick", max_examples=20, deadline=None)
hypothesis.settings.register_profile(
    "long",
    max_examples=100_000,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(autouse=True)
def first_tracebacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test see the traceback that is logged once per minute."""
    monkeypatch.setattr(log, "_tracebacks", {})


@pytest.fixture
def break_os(monkeypatch: pytest.MonkeyPatch) -> BreakOs:
    """Return a function that makes one of `os` fail: `break_os("fdatasync", errno.EIO, times=1)`.

    `module` is the module of another function, as of `files.rename_new`.
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
    """Return the service's disk, with free space."""
    fake = Disk(1 << 40)
    monkeypatch.setattr(os, "statvfs", fake.statvfs)
    return fake


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Return settings with a token, for the test's own data directory."""
    return Settings(data_dir=tmp_path, tokens=TOKEN, min_free_bytes=0)


@pytest.fixture
def hub_reports() -> Iterator[list[str]]:
    """Return the reports of blocked hubs so far; a remaining one fails the test."""
    reports: list[str] = []
    yield reports
    assert not reports, "".join(reports)


@pytest.fixture
def hub_monitor(hub_reports: list[str]) -> Iterator[HubMonitor]:
    """Return a monitor of the hub, which ignores the test's own greenlet unless asked."""
    with monitored_hub(hub_reports.append, LIMIT_SECONDS) as monitor:
        yield monitor


@pytest.fixture
def make_app(hub_monitor: HubMonitor) -> Iterator[Callable[[Settings], Flask]]:
    """Return a `create_app` whose apps are stopped at the end of the test.

    An app that blocks the hub while it is called fails the test.
    """
    apps: list[Flask] = []

    def make(settings: Settings) -> Flask:
        app = create_app(settings)
        apps.append(app)
        # Flask documents this assignment.
        app.wsgi_app = hub_monitor.count_exempt()(app.wsgi_app)  # type: ignore[method-assign]
        return app

    yield make
    for app in apps:
        services_of(app).queue.stop(1)
        services_of(app).rejections.flush()  # not in the log of a later test


@pytest.fixture
def client(make_app: Callable[[Settings], Flask], settings: Settings) -> FlaskClient:
    """Return a client of a new app."""
    return make_app(settings).test_client()
