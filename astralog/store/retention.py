"""Remove the oldest sealed segments beyond what is to be kept."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator

from astralog.settings import PREFIX, Settings
from astralog.store import files, sealed
from astralog.store.segment_index import SegmentIndex

log = logging.getLogger(__name__)

#: Some file systems show only later what was freed. Then nothing more is removed for the sake of
#: the free disk for so many seconds, or everything would be.
SETTLE_SECONDS = 60.0

#: Seconds between two lines that tell of segments which were removed undelivered.
UNDELIVERED_LOG_SECONDS = 60.0

#: Return whether a sealed segment may be removed, by its name.
MayRemove = Callable[[str], bool]


class Retention:
    """What the settings keep, applied to the sealed segments of a directory, oldest first.

    What `may_remove` spares is kept, but for the sake of the free disk where a setting says so.
    """

    def __init__(self, settings: Settings, may_remove: MayRemove) -> None:
        self._directory = settings.data_dir
        self._bytes = settings.retain_bytes
        self._seconds = settings.retain_seconds
        self._free_bytes = settings.retain_free_bytes
        is_forwarded = bool(settings.clickhouse_url)
        self._takes_spared = is_forwarded and settings.retain_undelivered == "until_full"
        if self._takes_spared:
            self._free_bytes = max(self._free_bytes, settings.min_free_bytes)
        self._may_remove = may_remove
        self._settled_at = 0.0
        self._logged_error = ""
        self._undelivered = UndeliveredLog(self._free_bytes)
        self.removed_segments = 0
        self.removed_undelivered_segments = 0

    def remove_excess(self, index: SegmentIndex, total: int, free: int) -> Iterator[None]:
        """Remove what is beyond the size, the free disk or the age to keep, a segment a step.

        `total` are the bytes of all segments, `free` those of the disk. The first segment that may
        not or cannot be removed keeps all later ones.
        """
        excess = self._excess(total, free)
        removed: Counter[str] = Counter()
        last = None
        while (name := index.oldest()) and (reason := self._reason(name, excess)):
            before = files.space(self._directory).free
            is_spared = not self._may_remove(name)
            if (is_spared and not self._is_floor_reached(excess)) or not self._remove(name):
                break
            size = index.remove(name)
            if is_spared:
                self.removed_undelivered_segments += 1
                self._undelivered.note(name, size)
            excess = {key: left - size for key, left in excess.items()}
            removed[reason] += 1
            last = name
            if reason == "free disk" and files.space(self._directory).free < before + size // 2:
                self._settled_at = time.monotonic() + SETTLE_SECONDS
            yield
        self._undelivered.show()
        if last:
            reasons = ", ".join(f"{count} beyond the {reason}" for reason, count in removed.items())
            log.info("removed segments up to %s: %s to keep", last, reasons)

    def _is_floor_reached(self, excess: dict[str, int]) -> bool:
        """Return whether even what is not delivered makes room for what comes."""
        return self._takes_spared and excess.get("free disk", 0) > 0

    def _excess(self, total: int, free: int) -> dict[str, int]:
        """Return how many bytes are too many, for each reason that counts bytes."""
        excess = {}
        if self._bytes:
            excess["size"] = total - self._bytes
        if self._free_bytes and time.monotonic() >= self._settled_at:
            excess["free disk"] = self._free_bytes - free
        return excess

    def _reason(self, name: str, excess: dict[str, int]) -> str | None:
        """Return why the oldest segment is not to be kept, None where it is."""
        for reason, left in excess.items():
            if left > 0:
                return reason
        return "age" if self._seconds and self._is_too_old(name) else None

    def _is_too_old(self, name: str) -> bool:
        oldest_kept = time.time() - self._seconds
        try:
            return sealed.stat_sealed(self._directory, name).st_mtime < oldest_kept
        except FileNotFoundError:
            return True  # it is gone; removing it finds that out

    def _remove(self, name: str) -> bool:
        """Remove a segment in all its forms; return whether it is gone."""
        try:
            self.removed_segments += bool(files.remove_sealed(self._directory, name))
        except OSError as error:
            text = f"cannot remove {name}: {error.strerror}"
            if self._logged_error != text:
                self._logged_error = text
                log.error(text)
            return False
        return True


class UndeliveredLog:
    """Tells of segments that were removed before they were delivered, at most once a minute."""

    def __init__(self, free_bytes: int) -> None:
        """Name the free disk for whose sake they go."""
        self._free_bytes = free_bytes
        self._count = self._bytes = 0
        self._last = ""
        self._next_at = time.monotonic()

    def note(self, name: str, size: int) -> None:
        """Take one more into the next line."""
        self._count += 1
        self._bytes += size
        self._last = name

    def show(self) -> None:
        """Log the line when it is due."""
        if not self._count or time.monotonic() < self._next_at:
            return
        log.error(
            "removed %d segments, %d bytes, up to %s BEFORE THEY WERE DELIVERED, "
            "as %sRETAIN_UNDELIVERED says: less than %d bytes of disk were free",
            self._count,
            self._bytes,
            self._last,
            PREFIX,
            self._free_bytes,
        )
        self._count = self._bytes = 0
        self._next_at = time.monotonic() + UNDELIVERED_LOG_SECONDS
