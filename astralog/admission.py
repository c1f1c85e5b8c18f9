"""Admission: how many bytes of bodies and batches may be in memory at once."""

import logging
from types import TracebackType
from typing import Self

from astralog.errors import Refusal

log = logging.getLogger(__name__)

#: Charged for each request on top of its bytes, for the objects that go with it.
OVERHEAD_BYTES = 1024


class Admission:
    """A budget of `limit` bytes, from which each request reserves what it holds."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._reserved = 0
        self._refused = 0  # since the budget was last half free

    @property
    def reserved(self) -> int:
        """The bytes reserved now."""
        return self._reserved

    @property
    def is_full(self) -> bool:
        """Tell whether the next request is likely to be refused."""
        return self._refused > 0

    def take(self, size: int) -> None:
        """Reserve bytes; raises Refusal `queue_full` where they do not fit."""
        if self._reserved + size > self._limit + OVERHEAD_BYTES:
            if not self._refused:
                log.warning("queue full: %d bytes wait for the disk", self._reserved)
            self._refused += 1
            raise Refusal("queue_full", "Too much waits for the disk already; try again.")
        self._reserved += size

    def give_back(self, size: int) -> None:
        """Free reserved bytes."""
        self._reserved -= size
        if self._refused and self._reserved <= self._limit // 2:
            log.warning("queue has room again: %d requests were refused", self._refused)
            self._refused = 0


class Reservation:
    """The bytes of one request, given back when it ends."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._size = 0
        self.resize(0)

    def resize(self, size: int) -> None:
        """Hold `size` bytes instead; raises Refusal `queue_full` where more do not fit."""
        more = size + OVERHEAD_BYTES - self._size
        if more > 0:
            self._admission.take(more)
        else:
            self._admission.give_back(-more)
        self._size += more

    def hand_over(self) -> int:
        """Leave the bytes to the caller, who gives them back, and return how many they are."""
        size, self._size = self._size, 0
        return size

    def release(self) -> None:
        """Give back what is still held."""
        self._admission.give_back(self.hand_over())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()
