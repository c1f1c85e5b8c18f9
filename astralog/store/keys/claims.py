"""The keys whose batches are under way in this process."""

from collections.abc import Callable
from typing import Protocol

from astralog.store.keys.records import Key

#: What becomes of a batch that is stored already.
REPLAYED = "replayed"


class Claim:
    """A key that nobody else may store until it is released.

    `verdict` is what becomes of the batch where it is not to be stored: REPLAYED, or the code that
    rejects it.
    """

    __slots__ = ("_is_detached", "_is_held", "_release", "epoch", "key", "verdict")

    def __init__(self, key: Key, epoch: int, release: Callable[[Key], None]) -> None:
        self.key = key
        self.epoch = epoch  # of the locks
        self.verdict: str | None = None
        self._release = release
        self._is_detached = False
        self._is_held = False

    @property
    def is_replayed(self) -> bool:
        """Whether the batch was stored by an earlier try."""
        return self.verdict == REPLAYED

    @property
    def rejection_code(self) -> str | None:
        """The code that rejects the batch, None where it is stored."""
        return None if self.is_replayed else self.verdict

    def detach(self) -> None:
        """Leave the release to the commit of the batch, which may last longer than the request."""
        self._is_detached = True

    def close(self) -> None:
        """End the request: release the key unless it is left to a commit."""
        if not self._is_detached:
            self.release()

    def hold(self) -> None:
        """Keep the key beyond the commit, whose lines may still come back."""
        self._is_held = True

    def release(self) -> None:
        """Let others store the key, unless it is held."""
        if not self._is_held:
            self._release(self.key)

    def release_held(self) -> None:
        """Let others store a key that was held."""
        self._is_held = False
        self._release(self.key)


class KeyedBatch(Protocol):
    """A batch of a commit group, which may have a key."""

    lines: bytes
    claim: Claim | None
