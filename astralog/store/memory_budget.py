"""The memory budget of a worker, from which each request reserves its bytes."""

import logging
from collections.abc import Callable

from astralog import errors
from astralog.errors import Rejection
from astralog.settings import PREFIX

log = logging.getLogger(__name__)

#: Charged for each request in addition to its bytes, for the objects that represent it.
OVERHEAD_BYTES = 1024

#: Share of the budget that one of several tokens may use; a quarter remains for the others.
TOKEN_SHARE = 3 / 4

#: Multiple of the budget that a request may use if it is alone: for the largest allowed body,
#: its lines, and the memory for decoding it.
ALONE_SHARE = 3

#: The key of the WSGI environ with the size of the request's head, which its reservation includes.
HEAD_BYTES_KEY = "astralog.head_bytes"


class MemoryBudget:
    """Bytes that the requests of a worker share.

    All requests together may reserve at most `limit` bytes; a request that is alone, ALONE_SHARE
    times as many. While `are_tokens_several`, the requests of one token may reserve at most
    TOKEN_SHARE of `limit`, whether they are alone or not.
    """

    def __init__(self, limit: int, are_tokens_several: Callable[[], bool] = lambda: False) -> None:
        self.limit = limit
        self.token_limit = int(limit * TOKEN_SHARE)
        self._are_tokens_several = are_tokens_several
        #: Bytes that all requests have reserved.
        self.reserved = 0
        self._reserved_by: dict[bytes, int] = {}  # tokens that have reserved none are left out
        self._rejected = 0  # since the budget was last half free

    @property
    def is_full(self) -> bool:
        """Return whether the next request will probably be rejected.

        A token that has used up its share alone does not make the budget full.
        """
        is_above_share = self.reserved > self.token_limit
        return self._rejected > 0 and (is_above_share or not self._are_tokens_several())

    def reserve(self, token: bytes, old_size: int, new_size: int) -> None:
        """Grow a request of a token from `old_size` to `new_size` bytes; raises as `check` does."""
        self.check(token, old_size, new_size)
        more = new_size - old_size
        self.reserved += more
        self._reserved_by[token] = self._reserved_by.get(token, 0) + more

    def check(self, token: bytes, old_size: int, new_size: int) -> None:
        """Raise Rejection if a request of a token may not grow to `new_size` bytes.

        Its code is `queue_full` if they do not fit now, `body_too_large` if they never will.
        """
        more = new_size - old_size
        exceeds_share = self._reserved_by.get(token, 0) + more > self.token_limit
        if exceeds_share and self._are_tokens_several():
            if new_size > self.token_limit:
                cause = errors.too_large_for_token(new_size, self.token_limit, self.limit)
            else:
                cause = errors.token_queue_full(self.token_limit, self.limit)
            raise Rejection(*cause)
        if self.reserved + more <= self.limit:
            return
        alone_limit = ALONE_SHARE * self.limit
        if new_size > alone_limit + OVERHEAD_BYTES:
            raise Rejection(*errors.too_large_for_queue(new_size, alone_limit))
        is_alone = self.reserved <= old_size
        if not is_alone:
            raise self._full()

    def release(self, token: bytes, size: int) -> None:
        """Free `size` bytes that a request of a token has reserved."""
        self.reserved -= size
        token_total = self._reserved_by.get(token, 0) - size
        if token_total:
            self._reserved_by[token] = token_total
        else:
            self._reserved_by.pop(token, None)
        if self._rejected and self.reserved <= self.limit // 2:
            log.warning("write queue has room again: %d requests were rejected", self._rejected)
            self._rejected = 0

    def _full(self) -> Rejection:
        if not self._rejected:
            log.warning(
                "write queue full: %d bytes are reserved (%sQUEUE_BYTES)", self.reserved, PREFIX
            )
        self._rejected += 1
        return Rejection(*errors.queue_full(self.limit))


class MemoryReservation:
    """The memory reserved by one request of a token; it is released at the request's end.

    From the start it has OVERHEAD_BYTES and `head_bytes`. Raises Rejection as `resize` does.
    """

    __slots__ = ("_budget", "_is_detached", "_overhead", "_size", "_token")

    def __init__(self, budget: MemoryBudget, token: bytes = b"", head_bytes: int = 0) -> None:
        self._budget = budget
        self._token = token
        self._overhead = OVERHEAD_BYTES + head_bytes
        self._size = self._overhead  # in total
        self._is_detached = False
        budget.reserve(token, 0, self._size)

    def resize(self, size: int) -> None:
        """Change the reservation to `size` bytes in addition to the overhead.

        If they do not fit, it is left as it was and raises Rejection: `queue_full`, or
        `body_too_large` if they would not fit into an empty queue either.
        """
        old_size, new_size = self._size, self._overhead + size
        if new_size > old_size:
            self._budget.reserve(self._token, old_size, new_size)
        elif new_size < old_size:
            self._budget.release(self._token, old_size - new_size)
        self._size = new_size

    def check(self, size: int) -> None:
        """Raise the Rejection that `resize` would raise; change nothing."""
        new_size = self._overhead + size
        if new_size > self._size:
            self._budget.check(self._token, self._size, new_size)

    def detach(self) -> None:
        """Keep the bytes beyond the request's end, until the queue calls `release`."""
        self._is_detached = True

    def release(self) -> None:
        size, self._size = self._size, 0
        self._budget.release(self._token, size)

    def close(self) -> None:
        """Release all bytes at the request's end, unless the reservation is detached."""
        if not self._is_detached:
            self.release()
