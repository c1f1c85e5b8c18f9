"""Clients that post batches in turn and record the outcome of each."""

import contextlib
import http.client
import itertools
import threading
import time
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from types import TracebackType
from typing import Any, Self

from tests.support.keyed_load import KEYED_START, PACE_SECONDS, PAUSE_SECONDS, KeyedLoad
from tests.support.numbered_batches import count_lines
from tests.support.protocols import DRAIN, Protocol
from tests.support.service import (
    TIMEOUT_SECONDS,
    Service,
    segment_pid,
    wait_for,
    wait_for_growth,
)

#: Batches after which a client takes a new connection, which another worker may get.
KEPT_BATCHES = 20

#: Logs of a batch at most.
LARGEST_BATCH = 40

#: Codes with which a batch is rejected although it may still be stored.
UNDECIDED_CODES = ("commit_timeout",)


class Load:
    """Threads that post batches to a service over kept connections, from `with` to its end.

    Each batch has an id of its own and is posted once, whatever comes back, so that a batch found
    twice is the service's fault. The batches have 1 to `largest` logs, and ids from `start` on.

    They are sent in a `protocol`. Beside them, `keyed` threads send batches with a key each until
    these are stored; they count apart, in the attribute `keyed`, and `is_patient` is theirs.
    """

    def __init__(
        self,
        service: Service,
        threads: int = 8,
        largest: int = LARGEST_BATCH,
        start: int = 0,
        keyed: int = 0,
        is_patient: bool = False,
        protocol: Protocol = DRAIN,
    ) -> None:
        self._service = service
        self._protocol = protocol
        self._largest = largest
        self._stopping = threading.Event()
        self._may_post = threading.Event()
        self._may_post.set()
        self._lock = threading.Lock()
        self._numbers = itertools.count(start)
        self.acknowledged: dict[int, int] = {}  # id of the batch -> how many logs it has
        self.rejected: dict[int, str] = {}  # id of the batch -> code
        self.messages: set[str] = set()  # of the rejections
        self.unanswered: set[int] = set()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]
        keyed_start = KEYED_START + start
        self.keyed = KeyedLoad(service, keyed, largest, keyed_start, is_patient, self.note_post)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        self.keyed.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Let each client finish its request, and return when all are done."""
        self._stopping.set()
        self.keyed.stopping.set()
        for thread in self._threads:
            thread.join(2 * TIMEOUT_SECONDS)
            assert not thread.is_alive(), "a client waits for an answer in vain"
        self.keyed.stop()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Let each client finish its request, and post no more while the block runs."""
        with self._lock:
            self._may_post.clear()
        wait_for(lambda: not self.unanswered)
        try:
            with self.keyed.paused():
                yield
        finally:
            self._may_post.set()

    def wait_for_acknowledged(self, count: int) -> None:
        """Return when `count` more batches are acknowledged; a slow disk may take its time."""
        wait_for_growth(lambda: len(self.acknowledged), count)

    def wait_for_every_worker(self) -> None:
        """Return when every worker has a segment, and so has started to serve."""
        wait_for(self._has_every_worker_stored)

    def _has_every_worker_stored(self) -> bool:
        pids = set(self._service.worker_pids())
        writers = set(map(segment_pid, self._service.files()))
        return len(pids) == self._service.workers and pids <= writers

    @contextlib.contextmanager
    def watch_in_flight(self) -> Iterator[set[int]]:
        """Yield a set that has, at the block's end, the ids that were in flight during it."""
        with self._lock:
            in_flight = set(self.unanswered)
            settled = {*self.acknowledged, *self.rejected}
        yield in_flight
        with self._lock:
            in_flight |= {*self.unanswered, *self.acknowledged, *self.rejected} - settled

    def check(
        self, logs: Iterable[dict[str, Any]], undecided: Container[int] = frozenset()
    ) -> None:
        """Check that of the stored logs each acknowledged batch is there whole, and none twice.

        A batch that was rejected for good must not be there at all. An `undecided` one, which who
        stands between may have posted again because nobody answered it, may be there twice.
        """
        lines = count_lines(logs)
        twice = [line for line, count in lines.items() if count > 1 and line[0] not in undecided]
        assert [] == twice
        found = Counter(batch for batch, _ in lines)
        lost = {id: size for id, size in self.acknowledged.items() if found[id] != size}
        assert {} == lost, "acknowledged batches that are not there whole"
        stored = {id: code for id, code in self.rejected.items() if found[id]}
        assert {} == {id: code for id, code in stored.items() if code not in UNDECIDED_CODES}

    def _run(self) -> None:
        while not self._stopping.is_set():
            connection = self._service.open_connection(TIMEOUT_SECONDS)
            with contextlib.closing(connection):
                try:
                    self._post_some(connection)
                except (OSError, http.client.HTTPException):
                    time.sleep(PAUSE_SECONDS)

    def _post_some(self, connection: http.client.HTTPConnection) -> None:
        for _ in range(KEPT_BATCHES):
            if not self._stopping.is_set():
                is_accepted = self._post(connection)
                time.sleep(PACE_SECONDS if is_accepted else PAUSE_SECONDS)

    def _post(self, connection: http.client.HTTPConnection) -> bool:
        """Send the next batch; return whether it was stored."""
        number = next(self._numbers)
        size = number % self._largest + 1
        if connection.sock is None:
            connection.connect()
        self._may_post.wait()
        with self._lock:
            if not self._may_post.is_set():
                return False
            self.unanswered.add(number)
        self.note_post(number, connection.sock.getsockname()[1])
        protocol = self._protocol
        body = protocol.make_body(number, size)
        connection.request("POST", protocol.path, body, protocol.headers)
        response = connection.getresponse()
        text = response.read().decode()
        with self._lock:
            self.note_answer(number, size, response.status, protocol.read_answer(text))
            self.unanswered.discard(number)
            return number in self.acknowledged

    def note_post(self, number: int, port: int) -> None:
        """Record a batch that is about to be posted from a port."""

    def note_answer(self, number: int, size: int, status: int, body: dict[str, Any]) -> None:
        """Record the outcome of a batch; only one thread at a time does so."""
        if status == self._protocol.accepted_status:
            self.acknowledged[number] = size
        else:
            self.rejected[number] = body["code"]
            self.messages.add(body["message"])
