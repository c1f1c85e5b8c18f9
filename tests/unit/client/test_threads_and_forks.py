"""Logging in programs with threads and forks."""

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from astralog_logging import AstraLogHandler
from tests.support.fake_service import FakeService, Stall, reject
from tests.support.loggers import log, make_logger
from tests.support.programs import FORK_BESIDE_THREADS
from tests.support.service import wait_for

pytestmark = pytest.mark.filterwarnings(FORK_BESIDE_THREADS)

MakeHandler = Callable[..., AstraLogHandler]


def test_many_threads_may_log(service: FakeService, make_handler: MakeHandler) -> None:
    """Each log of each thread arrives once, in the thread's order."""
    sender = make_handler(batch_logs=50)
    logger = make_logger(sender)

    def log(name: str) -> None:
        for number in range(500):
            logger.info("%s %d", name, number)

    threads = [threading.Thread(target=log, args=(name,)) for name in "abcdefgh"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sender.flush(30)
    assert 1 == sum(thread.name == "astralog" for thread in threading.enumerate())
    for name in "abcdefgh":
        sent = [message for message in service.messages if message.startswith(name)]
        assert [f"{name} {number}" for number in range(500)] == sent


@pytest.fixture
def without_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Let no handler start a thread, as at the interpreter's exit, until the patch is undone."""
    start = threading.Thread.start

    def fail(thread: threading.Thread) -> None:
        if thread.name == "astralog":
            raise RuntimeError("can't create new thread at interpreter shutdown")
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        yield patch


def test_without_threads_a_flush_sends(
    service: FakeService,
    make_handler: MakeHandler,
    without_threads: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """If no thread can be started, the calling thread sends, and keeps logs that it cannot send."""
    sender = make_handler(batch_logs=2)
    log(sender, *"abc")
    service.answers.append(reject(503, "queue_full"))
    assert sender.flush(30)
    assert "" == capsys.readouterr().err
    log(sender, "d")
    service.answers += [reject(503, "queue_full")] * 1000
    assert not sender.flush(0.2)
    service.answers.clear()
    without_threads.undo()
    log(sender, "e")
    assert sender.flush(30)
    assert {"a", "b", "c", "d", "e"} == set(service.messages)
    assert (5, 0, 0) == (sender.stored, sender.rejected, sender.dropped)


def test_no_thread_is_started_while_the_interpreter_ends(
    service: FakeService, make_handler: MakeHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to Python 3.11 the attempt would never return; a flush sends then."""
    monkeypatch.setattr("sys.is_finalizing", lambda: True)
    sender = make_handler()
    log(sender, "a")
    assert sender._sender.thread is None
    assert sender.flush(30)
    assert ["a"] == service.messages


@pytest.mark.usefixtures("without_threads")
def test_without_threads_a_flush_is_bounded(
    service: FakeService, make_handler: MakeHandler
) -> None:
    """Neither a stall nor a Retry-After delays the program's own thread beyond the timeout."""
    sender = make_handler(timeout_seconds=3600)
    log(sender, "a")
    assert sender.flush(600)
    stall = Stall()
    service.answers.append(stall)
    log(sender, "b")
    assert not sender.flush(0.2)
    stall.is_over.set()
    service.answers.append(reject(503, "queue_full", Retry_After="3600"))
    assert not sender.flush(0.2)
    assert sender.flush(30)
    assert ["a", "b", "b", "b"] == service.messages


@pytest.mark.parametrize("is_sending", [False, True])
def test_fork_sends_only_its_own_logs(
    service: FakeService, make_handler: MakeHandler, is_sending: bool
) -> None:
    """Each process sends its own logs once, over its own connection."""
    sender = make_handler(timeout_seconds=60)
    logger = make_logger(sender)
    logger.info("before")
    assert sender.flush(30)
    stall = Stall()
    if is_sending:
        service.answers.append(stall)
    logger.info("parent")
    if is_sending:
        sender.flush(0)
        wait_for(lambda: len(service.requests) == 2)
    child = os.fork()
    if not child:
        status = 1
        try:
            logger.info("child")
            is_done = sender.flush(30)
            status = 0 if is_done and sender.stored == 1 else 2
        finally:
            os._exit(status)
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    stall.is_over.set()
    assert sender.flush(30)
    assert {"before": 1, "parent": 1, "child": 1} == Counter(service.messages)
    peers = {message: sent.peer for sent in service.requests for message in sent.messages}
    assert peers["before"] == peers["parent"] != peers["child"]


def test_child_closes_its_parents_connection(
    service: FakeService, make_handler: MakeHandler
) -> None:
    """The service sees the parent's connection end with the parent, also if children live on."""
    sender = make_handler()
    log(sender, "a")
    assert sender.flush(30)
    child = os.fork()
    if not child:
        os._exit(open_sockets())
    assert open_sockets() - 1 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    log(sender, "b")
    assert sender.flush(30)
    assert 1 == len({sent.peer for sent in service.requests})


def open_sockets() -> int:
    """Return the number of open sockets of this process."""
    links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    return sum(os.readlink(link).startswith("socket:") for link in links if os.path.islink(link))


@pytest.mark.slow
def test_fork_while_other_threads_log(service: FakeService, make_handler: MakeHandler) -> None:
    """A child can log whatever other threads were doing at the fork."""
    sender = make_handler(batch_logs=10)
    logger = make_logger(sender)
    is_over = threading.Event()

    def log() -> None:
        while not is_over.is_set():
            logger.info("thread")

    thread = threading.Thread(target=log)
    thread.start()
    try:
        for number in range(30):
            child = os.fork()
            if not child:
                logger.info("child %d", number)
                os._exit(0 if sender.flush(30) else 1)
            assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        is_over.set()
        thread.join()
    sent = Counter(message for message in service.messages if message != "thread")
    assert {f"child {number}": 1 for number in range(30)} == sent


def test_a_closed_handler_stays_closed_in_a_child(
    service: FakeService, make_handler: MakeHandler
) -> None:
    """A fork does not open a closed handler."""
    sender = make_handler()
    sender.close()
    child = os.fork()
    if not child:
        make_logger(sender).info("a")
        os._exit(0 if sender.dropped == 1 else 1)
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert [] == service.messages
