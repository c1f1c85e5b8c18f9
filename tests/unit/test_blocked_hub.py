"""The monitor of blocked hubs reports blocking code and nothing else."""

import gc
import re
import time
from collections.abc import Callable, Iterator

import gevent
import pytest
from flask import Flask

from astralog.settings import Settings
from tests.support import blocked_hub
from tests.support.blocked_hub import HubMonitor, monitored_hub

LIMIT_SECONDS = 0.06

_QUADRATIC = re.compile(r"[ \t]*;")


@pytest.fixture
def reports() -> list[str]:
    """Return the list that receives the monitor's reports."""
    return []


@pytest.fixture
def monitor(reports: list[str]) -> Iterator[HubMonitor]:
    """Return a monitor of this thread's hub that ignores the test's own greenlet."""
    with monitored_hub(reports.append, LIMIT_SECONDS) as monitor:
        yield monitor


def burn(seconds: float = 3 * LIMIT_SECONDS, between: Callable[[], object] = bool) -> None:
    """Use CPU time in steps shorter than the limit."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        between()


def burn_until_sampled(monitor: HubMonitor, seconds: float = 3 * LIMIT_SECONDS) -> None:
    """Use CPU time until the monitor's thread has seen this code, which it may do late."""
    burn(seconds)
    end = time.monotonic() + 60
    while not monitor._stack and time.monotonic() < end:
        pass


def burn_in_one_call() -> None:
    """Use CPU time in calls that keep the interpreter's lock, the last one beyond the limit."""
    count, used = 1000, 0.0
    while used < LIMIT_SECONDS:
        before = time.thread_time()
        assert not _QUADRATIC.search(" " * count)
        used = time.thread_time() - before
        count *= 2


def test_objects_from_before_the_monitor_are_not_collected(reports: list[str]) -> None:
    """A full collection of all that thousands of tests have left takes 0.4 s of CPU."""
    earlier: list[object] = [[]]
    assert any(item is earlier for item in gc.get_objects())
    with monitored_hub(reports.append, LIMIT_SECONDS):
        assert not any(item is earlier for item in gc.get_objects())


@pytest.mark.parametrize("function", [burn, burn_in_one_call])
def test_a_greenlet_that_does_not_switch_is_reported(
    function: Callable[[], None], monitor: HubMonitor, reports: list[str]
) -> None:
    """There is one report, which names the running code."""
    gevent.spawn(function).join()
    [report] = reports
    assert function.__name__ in report


def test_a_callback_of_the_hub_is_reported(monitor: HubMonitor, reports: list[str]) -> None:
    """A callback that the loop calls directly blocks the hub too."""
    gevent.get_hub().loop.run_callback(burn_until_sampled, monitor)
    gevent.sleep(0.01)
    [report] = reports
    assert "burn_until_sampled" in report


def test_endless_loop_is_reported(monitor: HubMonitor, reports: list[str]) -> None:
    """The report does not wait for the next switch, which may never come."""

    def burn_until_reported() -> None:
        end = time.monotonic() + 60
        while not reports and time.monotonic() < end:
            pass

    gevent.spawn(burn_until_reported).join()
    [report] = reports
    assert "burn_until_reported" in report


@pytest.mark.parametrize("pause", [gevent.sleep, lambda: gevent.sleep(0.001)])
def test_greenlets_that_switch_are_not_reported(
    pause: Callable[[], object], monitor: HubMonitor, reports: list[str]
) -> None:
    """Their total CPU time does not count."""
    gevent.spawn(burn, between=pause).join()
    assert [] == reports


def test_time_without_cpu_is_not_reported(monitor: HubMonitor, reports: list[str]) -> None:
    """Wall time passes on a busy machine without CPU time of this process."""
    gevent.spawn(time.sleep, 3 * LIMIT_SECONDS).join()
    assert [] == reports


@pytest.mark.slow
def test_the_exempt_greenlet_is_counted_on_request(monitor: HubMonitor, reports: list[str]) -> None:
    """A test's own work is not the service's."""
    burn()
    gevent.sleep(0)
    with monitor.count_exempt():
        pass
    assert [] == reports
    with monitor.count_exempt():
        burn_until_sampled(monitor)
    burn()
    gevent.sleep(0)
    [report] = reports
    assert "burn_until_sampled" in report


@pytest.mark.slow
def test_a_view_that_blocks_is_reported(
    make_app: Callable[[Settings], Flask],
    settings: Settings,
    hub_monitor: HubMonitor,
    hub_reports: list[str],
) -> None:
    """The monitor also watches the apps of unit tests while they are called."""

    def view() -> str:
        burn_until_sampled(hub_monitor, 2 * blocked_hub.LIMIT_SECONDS)
        return ""

    app = make_app(settings)
    app.add_url_rule("/burn", view_func=view)
    assert 200 == app.test_client().get("/burn").status_code
    [report] = hub_reports
    assert "burn_until_sampled" in report
    hub_reports.clear()  # which would fail this test too
