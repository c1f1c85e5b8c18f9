"""Keys of batches that were rejected, but whose lines may still come back."""

from collections.abc import Iterable

from gevent.monkey import get_original

from astralog.store.keys.claims import Claim
from astralog.store.storage import Storage


class HeldClaims:
    """Claims that stay until their lines are cut, synced and sealed; any thread may use it."""

    def __init__(self) -> None:
        self._claims: list[tuple[Storage, Claim]] = []
        self._mutex = get_original("threading", "Lock")()

    def hold(self, storage: Storage, claims: Iterable[Claim]) -> None:
        """Hold claims whose lines the storage could not take back yet."""
        with self._mutex:
            for claim in claims:
                claim.hold()
                self._claims.append((storage, claim))

    def release_settled(self) -> None:
        """Release those whose lines cannot come back any more."""
        with self._mutex:
            settled = [(s, claim) for s, claim in self._claims if not s.has_unsettled()]
            self._claims = [held for held in self._claims if held not in settled]
        for _, claim in settled:
            claim.release_held()

    def has_uncut(self) -> bool:
        """Return whether lines of any are in a segment that is held open."""
        with self._mutex:
            return any(storage.has_uncut for storage, _ in self._claims)
