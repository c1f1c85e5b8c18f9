"""How many bytes of bodies and batches may be in memory at once."""

import logging
from types import TracebackType
from typing import Self

from astralog.errors import Rejection

log = logging.getLogger(__name__)

#: Charged for each request on top of its bytes, for the objects that go with it.
OVERHEAD_BYTES = 1024


class MemoryBudget:
    """A budget of `limit` bytes, from which each request reserves what it holds."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._reserved = 0
        self._rejected = 0  # since the budget was last half free

    @property
    def reserved(self) -> int:
        """The bytes reserved now."""
        return self._reserved

    @property
    def is_full(self) -> bool:
        """Return whether the next request is likely to be rejected."""
        return self._rejected > 0

    def reserve(self, size: int) -> None:
        """Reserve bytes; raises Rejection `queue_full` where they do not fit."""
        if self._reserved + size > self.limit + OVERHEAD_BYTES:
            if not self._rejected:
                log.warning("queue full: %d bytes wait for the disk", self._reserved)
            self._rejected += 1
            raise Rejection("queue_full", "Too much waits for the disk already; try again.")
        self._reserved += size

    def release(self, size: int) -> None:
        """Free reserved bytes."""
        self._reserved -= size
        if self._rejected and self._reserved <= self.limit // 2:
            log.warning("queue has room again: %d requests were rejected", self._rejected)
            self._rejected = 0


class MemoryReservation:
    """The bytes of one request, released when it ends."""

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self._size = 0
        self.resize(0)

    def resize(self, size: int) -> None:
        """Hold `size` bytes instead; raises Rejection `queue_full` where more do not fit."""
        more = size + OVERHEAD_BYTES - self._size
        if more > 0:
            self._budget.reserve(more)
        else:
            self._budget.release(-more)
        self._size += more

    def detach(self) -> int:
        """Leave the bytes to the caller, who releases them, and return how many they are."""
        size, self._size = self._size, 0
        return size

    def release(self) -> None:
        """Release what is still held."""
        self._budget.release(self.detach())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()
