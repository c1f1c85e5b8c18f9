"""Decode bodies as the service does, without a service: for unit tests and the fuzzers."""

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from math import inf
from typing import NoReturn
from unittest.mock import patch

from astralog.errors import Rejection
from astralog.intake import batch, logs
from astralog.intake.batch import decode_json, decode_lines
from astralog.intake.decoder import Context, Slots
from astralog.intake.options import NO_OPTIONS, Options
from astralog.store.memory_budget import MemoryReservation
from astralog.store.queue import Batch


def make_context(
    projects: Collection[str] | None = None,
    options: Options = NO_OPTIONS,
    slots: Slots | None = None,
    deadline: float = inf,
    reservation: MemoryReservation | None = None,
) -> Context:
    """Return the context of a request; without `slots` or a `reservation`, it has its own."""
    return Context(projects, options, slots or Slots(), deadline, reservation or Room())


class Room(MemoryReservation):
    """Memory that records its reservations, and ends at `limit`."""

    def __init__(self, limit: float = inf) -> None:
        self.limit = limit
        self.sizes: list[int] = []

    def resize(self, size: int) -> None:
        """Hold this number of bytes; raises Rejection beyond the limit."""
        self.sizes.append(size)
        self.check(size)

    def check(self, size: int) -> None:
        """Raise the same as `resize`."""
        if size > self.limit:
            raise Rejection("queue_full", "No room.")


def encode_batch(body: bytes, projects: Collection[str] | None = None) -> Batch:
    """Return the batch in a JSON body."""
    return decode_json(body, make_context(projects)).batch


def encode_lines(body: bytes, projects: Collection[str] | None = None) -> Batch:
    """Return the batch in an NDJSON body."""
    return decode_lines(body, make_context(projects)).batch


def _reject(*args: object) -> NoReturn:
    raise ValueError


@contextmanager
def marshmallow_alone() -> Iterator[None]:
    """Leave every log to marshmallow during the block, without the compiled decoder."""
    with ExitStack() as stack:
        for module in (batch, logs):
            stack.enter_context(patch.object(module, "load", _reject))
        yield
