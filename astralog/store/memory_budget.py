"""How many bytes the requests of a worker may hold in memory, in all and per token."""

import logging
from collections.abc import Callable
from types import TracebackType
from typing import Self

from astralog import errors
from astralog.errors import Rejection
from astralog.settings import PREFIX

log = logging.getLogger(__name__)

#: Charged for each request on top of its bytes, for the objects that go with it.
OVERHEAD_BYTES = 1024

#: What one of several tokens may hold of the budget: the others always find a quarter of it free.
TOKEN_SHARE = 3 / 4

#: Times the budget that the only request may hold: the largest body that the settings allow, and
#: its lines, with what decoding it takes.
ALONE_SHARE = 3


class MemoryBudget:
    """A budget of `limit` bytes, from which each request reserves what it holds.

    While `are_tokens_several`, none of them may hold more than TOKEN_SHARE of it.
    """

    def __init__(self, limit: int, are_tokens_several: Callable[[], bool] = lambda: False) -> None:
        self.limit = limit
        self.token_limit = int(limit * TOKEN_SHARE)
        self._are_tokens_several = are_tokens_several
        self._reserved = 0
        self._held: dict[bytes, int] = {}  # by token, only those that hold something
        self._rejected = 0  # since the budget was last half free

    @property
    def reserved(self) -> int:
        """The bytes reserved now."""
        return self._reserved

    @property
    def is_full(self) -> bool:
        """Return whether the next request is likely to be rejected.

        A token that holds all that one of several may hold does not make the budget full.
        """
        is_above_share = self._reserved > self.token_limit
        return self._rejected > 0 and (is_above_share or not self._are_tokens_several())

    def reserve(self, more: int, token: bytes, size: int) -> None:
        """Reserve `more` bytes for a request of a token, which holds `size` bytes already.

        Raises what `check` raises.
        """
        reserved = self._reserved + more
        held = self._held.get(token, 0) + more
        if held > self.token_limit or reserved > self.limit:
            self.check(more, token, size)
        self._reserved = reserved
        self._held[token] = held

    def check(self, more: int, token: bytes, size: int) -> None:
        """Raise Rejection if `more` bytes cannot be reserved.

        `queue_full` if they do not fit now, `body_too_large` if they never will.
        """
        held = self._held.get(token, 0) + more
        if held > self.token_limit and self._are_tokens_several():
            raise self._exceeds_share(size + more)
        if self._reserved + more > self.limit:
            if size + more > ALONE_SHARE * self.limit + OVERHEAD_BYTES:
                raise Rejection(*errors.too_large_for_queue(size + more, self.limit))
            if self._reserved > size:
                raise self._full()

    def release(self, size: int, token: bytes) -> None:
        """Free reserved bytes of a token."""
        self._reserved -= size
        held = self._held.get(token, 0) - size
        if held:
            self._held[token] = held
        else:
            self._held.pop(token, None)
        if self._rejected and self._reserved <= self.limit // 2:
            log.warning("queue has room again: %d requests were rejected", self._rejected)
            self._rejected = 0

    def _exceeds_share(self, size: int) -> Rejection:
        """Return the rejection of a batch of `size` bytes, for which its token holds too much."""
        if size > self.token_limit:
            return Rejection(*errors.too_large_for_token(size, self.token_limit, self.limit))
        return Rejection(*errors.token_queue_full(self.token_limit, self.limit))

    def _full(self) -> Rejection:
        if not self._rejected:
            log.warning("queue full: %d bytes are held, %sQUEUE_BYTES", self._reserved, PREFIX)
        self._rejected += 1
        return Rejection(*errors.queue_full(self.limit))


class MemoryReservation:
    """The bytes that one request of a token holds, released when it ends.

    From the start it holds OVERHEAD_BYTES and `head_bytes`. Raises Rejection as `resize` does.
    """

    __slots__ = ("_budget", "_is_detached", "_overhead", "_size", "_token")

    def __init__(self, budget: MemoryBudget, token: bytes = b"", head_bytes: int = 0) -> None:
        self._budget = budget
        self._token = token
        self._size = self._overhead = OVERHEAD_BYTES + head_bytes
        self._is_detached = False
        budget.reserve(self._size, token, 0)

    def resize(self, size: int) -> None:
        """Hold `size` bytes instead.

        Raises Rejection if they do not fit, and holds what it held then: `queue_full`, or
        `body_too_large` if they do not fit into an empty queue either.
        """
        more = size + self._overhead - self._size
        if more > 0:
            self._budget.reserve(more, self._token, self._size)
        elif more:
            self._budget.release(-more, self._token)
        self._size += more

    def check(self, size: int) -> None:
        """Raise the Rejection that `resize` would raise, and hold what it held."""
        more = size + self._overhead - self._size
        if more > 0:
            self._budget.check(more, self._token, self._size)

    def detach(self) -> "MemoryReservation":
        """Return this reservation to a new owner, who releases it."""
        self._is_detached = True
        return self

    def release(self) -> None:
        """Release what is still held."""
        size, self._size = self._size, 0
        self._budget.release(size, self._token)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._is_detached:
            self.release()
