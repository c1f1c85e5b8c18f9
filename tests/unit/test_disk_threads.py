import threading
import time
import weakref
from collections.abc import Iterator

import gevent
import pytest

from astralog.deadlines import hub_time, yield_if_due
from astralog.threads import DiskThreads

#: Seconds to wait for what should come at once; an upper bound that a slow machine needs.
TIMEOUT_SECONDS = 10


@pytest.fixture
def threads() -> DiskThreads:
    """Return two threads."""
    threads = DiskThreads(2)
    threads.start()
    return threads


@pytest.fixture(autouse=True)
def timeout() -> Iterator[None]:
    with gevent.Timeout(TIMEOUT_SECONDS):
        yield


def fail() -> None:
    raise MemoryError("none left")


def test_a_call_returns_or_raises_as_the_function_does(threads: DiskThreads) -> None:
    """It runs in another thread; the call after a failure works."""
    assert threading.get_native_id() != threads.call(threading.get_native_id)
    with pytest.raises(MemoryError, match="none left"):
        threads.call(fail)
    assert threads.call(divmod, 7, 2) == (3, 1)


def test_others_are_served_while_calls_block(threads: DiskThreads) -> None:
    """The hub continues, and a call without a free thread waits for one."""
    opened = threading.Event()
    blocked = [gevent.spawn(threads.call, opened.wait, TIMEOUT_SECONDS) for _ in range(2)]
    third = gevent.spawn(threads.call, len, "abc")
    gevent.sleep(0.01)
    assert not any(greenlet.ready() for greenlet in (*blocked, third))
    opened.set()
    assert [True, True, 3] == [greenlet.get() for greenlet in (*blocked, third)]


def test_killed_caller_delays_no_other(threads: DiskThreads) -> None:
    """The result of its call is dropped, and the next caller gets its own."""
    opened = threading.Event()
    caller = gevent.spawn(threads.call, opened.wait, TIMEOUT_SECONDS)
    gevent.sleep(0.01)
    caller.kill()
    opened.set()
    assert [3, 4] == [threads.call(len, "a" * size) for size in (3, 4)]


def test_finished_call_is_freed(threads: DiskThreads) -> None:
    """The memory of a commit group is freed before the next one."""

    class Buffer:
        pass

    buffer = Buffer()
    held = weakref.ref(buffer)
    assert not threads.call(hasattr, buffer, "name")
    del buffer
    while held():  # the thread may be about to
        gevent.sleep(0.001)


def test_a_finished_call_interrupts_long_work(
    threads: DiskThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its caller, a client whose batch is stored, does not wait for the end of a time slice."""
    monkeypatch.setattr(hub_time, "work_seconds", 60 * TIMEOUT_SECONDS)
    opened = threading.Event()
    caller = gevent.spawn(threads.call, opened.wait, TIMEOUT_SECONDS)
    gevent.sleep(0.01)
    opened.set()
    end = time.monotonic() + TIMEOUT_SECONDS / 2
    while not caller.ready() and time.monotonic() < end:
        yield_if_due()
    assert caller.ready()
