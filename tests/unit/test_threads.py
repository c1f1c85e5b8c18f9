import contextlib
import gc
import threading
import weakref

import gevent
import pytest
from gevent.threadpool import ThreadPool

from astralog import threads
from astralog.errors import Rejection
from astralog.threads import OneAtATime, call_in_thread, spawn_in_thread


class Weighty:
    """An object with a deletion that a test observes."""


def fail(weighty: Weighty) -> None:
    assert weighty
    raise MemoryError("none left")


def test_call_returns_the_result_of_the_function() -> None:
    """The function runs in another thread."""
    pool = ThreadPool(1)
    assert call_in_thread(pool, threading.get_native_id) != threading.get_native_id()
    assert call_in_thread(pool, divmod, 7, 2) == (3, 1)


def test_an_exception_reaches_its_caller_and_is_not_printed(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A thread of gevent prints each traceback, even if the caller handles the exception."""
    pool = ThreadPool(1)
    for _ in range(3):
        with pytest.raises(MemoryError, match="none left"):
            call_in_thread(pool, fail, Weighty())
    spawn_in_thread(pool, fail, Weighty()).wait()
    assert capfd.readouterr().err == ""


def test_an_exception_leaves_no_cycle_behind() -> None:
    """The objects in its frames are freed at once, not by the garbage collector."""
    weighty = Weighty()
    held = weakref.ref(weighty)
    pool = ThreadPool(1)
    gc.disable()
    try:
        with contextlib.suppress(MemoryError):
            call_in_thread(pool, fail, weighty)
        del weighty
        call_in_thread(pool, len, "")  # the thread has let go of its last call by now
        assert held() is None
    finally:
        gc.enable()


class FullSystem(ThreadPool):  # type: ignore[misc]  # it has no types
    """A pool of a process that may start no thread for now."""

    is_full = True

    def _add_thread(self) -> None:
        if self.is_full:
            raise RuntimeError("can't start new thread")
        super()._add_thread()


def test_a_call_without_a_thread_is_not_queued() -> None:
    """The pool of gevent would run it later, although its caller has been told that it failed."""
    pool = FullSystem(1)
    with pytest.raises(OSError, match="No thread can be started"):
        spawn_in_thread(pool, len, "")
    assert len(pool) == 0
    pool.is_full = False
    assert call_in_thread(pool, len, "abc") == 3


def test_reader_is_rejected_if_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its place in the line is free again."""
    monkeypatch.setattr(threads, "ThreadPool", FullSystem)
    calls = OneAtATime("search_busy")
    with pytest.raises(Rejection, match="No thread can be started") as rejected:
        calls.run(len, "")
    assert rejected.value.code == "search_busy"
    monkeypatch.setattr(FullSystem, "is_full", False)
    assert calls.run(len, "abc") == 3


def test_a_call_is_rejected_after_its_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Later ones run once the slot is free."""
    monkeypatch.setattr(threads, "WAIT_SECONDS", 0.01)
    slot = OneAtATime("search_busy")
    is_free = threading.Event()
    first = gevent.spawn(slot.run, is_free.wait)
    gevent.sleep()
    with pytest.raises(Rejection) as rejected, gevent.Timeout(10):
        slot.run(int)
    assert rejected.value.code == "search_busy"
    is_free.set()
    first.get()
    assert slot.run(int) == 0


def test_calls_of_several_clients_alternate() -> None:
    """A search that takes many slots does not delay another one by more than its own."""
    slot = OneAtATime("search_busy")
    order: list[str] = []

    def call(name: str) -> None:
        for _ in range(4):
            slot.run(order.append, name)

    gevent.joinall([gevent.spawn(call, name) for name in "abc"], raise_error=True)
    assert order == ["a", "b", "c"] * 4
