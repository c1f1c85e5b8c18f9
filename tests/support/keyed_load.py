"""Clients that send every batch with a key, again and again until it is stored."""

import contextlib
import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from tests.support.keyed_client import KeyedClient, Try
from tests.support.numbered_batches import count_lines
from tests.support.service import TIMEOUT_SECONDS, Service

#: The first number of a batch with a key, beyond those of the batches without one.
KEYED_START = 1 << 48

#: Seconds between two batches of a client: about half the clients wait for a response then, so that
#: a fault hits some of them.
PACE_SECONDS = 0.01

#: Seconds after a rejection or a broken connection.
PAUSE_SECONDS = 0.02

#: Of so many batches one is sent again after it was acknowledged.
AGAIN_EVERY = 12

NotePost = Callable[[int, int], None]


class KeyedLoad:
    """Threads that post batches with keys until they get 200, with interruptions.

    With `is_patient`, a client waits for every response, and sends no stored batch again.
    `note_post` gets the batch and the port of each request.
    """

    def __init__(
        self,
        service: Service,
        threads: int,
        largest: int = 40,
        start: int = KEYED_START,
        is_patient: bool = False,
        note_post: NotePost = lambda number, port: None,
    ) -> None:
        self._service = service
        self._largest = largest
        self._is_patient = is_patient
        self._note_post = note_post
        self._numbers = itertools.count(start)
        self._lock = threading.Lock()
        self._may_post = threading.Event()
        self._may_post.set()
        self.stopping = threading.Event()
        self.acknowledged: dict[int, int] = {}  # number of the batch -> how many logs it has
        self.undecided: dict[int, int] = {}  # the same of those that are not acknowledged yet
        self.tries = 0
        self.replayed = 0  # 200 with Idempotency-Replayed
        self.codes: Counter[str] = Counter()  # of the rejections
        self.messages: set[str] = set()  # the same
        self.faults: Counter[str] = Counter()  # what the contract does not allow
        self.slowest_seconds = 0.0  # until an answer
        self._threads = [
            threading.Thread(target=self._run, args=[f"{start} {number}"], daemon=True)
            for number in range(threads)
        ]

    def start(self) -> None:
        """Start the clients."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let each client see its batch stored, for a while, and return when all are done."""
        self.stopping.set()
        for thread in self._threads:
            thread.join(3 * TIMEOUT_SECONDS)
            assert not thread.is_alive(), "a client waits for an answer in vain"

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Start no batch during the block; started ones are stored before."""
        self._may_post.clear()
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while self.undecided and time.monotonic() < deadline:
            time.sleep(PAUSE_SECONDS)
        try:
            yield
        finally:
            self._may_post.set()

    @property
    def sent_again(self) -> int:
        """The requests after the first one of each batch."""
        return self.tries - len(self.acknowledged) - len(self.undecided)

    def _run(self, seed: str) -> None:
        chance = random.Random(seed)
        client = KeyedClient(self._service, self, self._largest, chance)
        while not self.stopping.is_set():
            if self._may_post.wait(PAUSE_SECONDS):
                self._deliver(client, next(self._numbers))
                time.sleep(PACE_SECONDS)
                if not self._is_patient and client.remembered and not chance.randrange(AGAIN_EVERY):
                    client.close()
                    self._send_until_stored(client, chance.choice(client.remembered))
        client.close()

    def _deliver(self, client: KeyedClient, number: int) -> None:
        """Send a batch until it is stored."""
        with self._lock:
            self.undecided[number] = number % self._largest + 1
        if not self._is_patient:
            client.misbehave(number)
        if self._send_until_stored(client, number):
            with self._lock:
                self.acknowledged[number] = self.undecided.pop(number)
            client.remember(number)

    def _send_until_stored(self, client: KeyedClient, number: int) -> bool:
        deadline = None
        while True:
            answer = client.post(number)
            if answer and answer.status == 200:
                return True
            if self.stopping.is_set():
                deadline = deadline or time.monotonic() + TIMEOUT_SECONDS
                if time.monotonic() > deadline:
                    return False
            time.sleep(PAUSE_SECONDS)

    def note_try(self, number: int, port: int) -> None:
        """Record a batch that is about to be posted from a port."""
        self._note_post(number, port)
        with self._lock:
            self.tries += 1

    def note_answer(self, answer: Try, seconds: float) -> None:
        """Record a response and its error."""
        with self._lock:
            self.slowest_seconds = max(self.slowest_seconds, seconds)
            self.replayed += answer.is_replayed
            if answer.status != 200:
                self.codes[answer.code] += 1
                self.messages.add(answer.message)
        if answer.fault:
            self.note_fault(answer.fault)

    def note_fault(self, fault: str) -> None:
        """Record an error."""
        with self._lock:
            self.faults[fault] += 1

    def check(self, logs: Iterable[dict[str, Any]]) -> None:
        """Check that each batch is stored completely and once, and that no response was wrong.

        Logs without a key may be among them.
        """
        found = find_faults(self, count_lines(logs))
        assert ({}, [], [], []) == (self.faults, found.lost, found.doubled, found.parts)
        assert {} == self.undecided, "batches that were never answered 200"


class Found(NamedTuple):
    """The batches of a load that are not stored correctly."""

    lost: list[int]
    doubled: list[int]
    parts: list[int]


def find_faults(load: KeyedLoad, lines: Counter[tuple[int, int]]) -> Found:
    """Compare the stored lines with a load: each line of each batch by its number of copies."""
    sizes = load.acknowledged | load.undecided
    found = Counter(batch for batch, _ in lines)
    lost = [batch for batch in load.acknowledged if not found[batch]]
    twice = {batch for (batch, _), count in lines.items() if count > 1 and batch in sizes}
    parts = [batch for batch, size in sizes.items() if found[batch] not in (0, size)]
    return Found(lost, sorted(twice), parts)
