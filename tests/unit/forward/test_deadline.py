"""A call ends at its deadline, whatever it does, and leaves no timer behind."""

import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from astralog.forward import clickhouse as deadline
from astralog.forward.clickhouse import call_within


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Check that the test's own timer is active again; pytest-timeout has one."""
    handler = signal.getsignal(signal.SIGALRM)
    was_armed = bool(signal.getitimer(signal.ITIMER_REAL)[0])
    yield
    assert signal.getsignal(signal.SIGALRM) is handler
    assert bool(signal.getitimer(signal.ITIMER_REAL)[0]) == was_armed


def test_result_and_exception_pass() -> None:
    """A call that ends in time behaves as without a deadline."""
    assert call_within(60, lambda: 7) == 7
    with pytest.raises(KeyError):
        call_within(60, {}.popitem)


def test_call_ends_at_its_deadline() -> None:
    """The exception names the seconds, and has no other cause."""
    with pytest.raises(TimeoutError, match=r"^no complete answer within 0\.05 s$") as raised:
        call_within(0.05, lambda: time.sleep(600))
    assert raised.value.__context__ is None


def test_dripping_answer_ends() -> None:
    """Each byte arrives within the socket's own timeout."""
    ours, theirs = socket.socketpair()
    ours.settimeout(60)
    is_over = threading.Event()

    def drip() -> None:
        while not is_over.wait(0.02):
            theirs.send(b"x")

    thread = threading.Thread(target=drip)
    thread.start()
    with ours, theirs:
        with pytest.raises(TimeoutError):
            call_within(0.2, lambda: ours.makefile("rb").readline())
        is_over.set()
        thread.join()


def test_deadline_passes_broad_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that ignores its own exceptions does not stop it."""
    monkeypatch.setattr(deadline, "REPEAT_SECONDS", 0.5)

    def go_on() -> None:
        for _ in range(100):
            try:
                time.sleep(0.05)
            except Exception:
                continue

    with pytest.raises(TimeoutError):
        call_within(0.05, go_on)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_lost_signal_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception raised in a finalizer is lost; the next one is not."""
    monkeypatch.setattr(deadline, "REPEAT_SECONDS", 0.5)
    slept: list[float] = []

    class Slow:
        def __del__(self) -> None:
            slept.append(time.monotonic())
            time.sleep(5)

    def finalize() -> None:
        Slow()
        time.sleep(5)

    with pytest.raises(TimeoutError):
        call_within(0.05, finalize)
    assert len(slept) == 1


def test_signal_that_comes_too_late_changes_nothing() -> None:
    """Between the end of the call and of the timer, a signal is ignored."""
    alarm = deadline._Alarm()
    alarm.is_armed = False
    alarm(signal.SIGALRM, None)
