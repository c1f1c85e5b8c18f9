"""Remove the oldest sealed segments beyond what is to be kept."""

import contextlib
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from astralog.settings import Settings
from astralog.store import files
from astralog.store.segment_index import SegmentIndex

log = logging.getLogger(__name__)

#: Some file systems show only later what was freed. Then nothing more is removed for the sake of
#: the free disk for so many seconds, or everything would be.
SETTLE_SECONDS = 60.0

#: Return whether a sealed segment, by its name without a suffix, may be removed.
MayRemove = Callable[[str], bool]


class Retention:
    """What the settings keep, applied to the sealed segments of a directory, oldest first."""

    def __init__(self, settings: Settings, may_remove: MayRemove) -> None:
        self._directory = settings.data_dir
        self._bytes = settings.retain_bytes
        self._seconds = settings.retain_seconds
        self._free_bytes = settings.retain_free_bytes
        self._may_remove = may_remove
        self._settled_at = 0.0
        self._logged_error = ""
        self.removed_segments = 0

    def remove_excess(self, sealed: SegmentIndex, total: int, free: int) -> Iterator[None]:
        """Remove what is beyond the size, the free disk or the age to keep, a segment a step.

        `total` are the bytes of all segments, `free` those of the disk. The first segment that may
        not or cannot be removed keeps all later ones.
        """
        excess = self._excess(total, free)
        removed: Counter[str] = Counter()
        last = None
        while (name := sealed.oldest()) and (reason := self._reason(name, excess)):
            before = files.space(self._directory).free
            if not (self._may_remove(name) and self._remove(name)):
                break
            size = sealed.remove(name)
            excess = {key: left - size for key, left in excess.items()}
            removed[reason] += 1
            last = name
            if reason == "free disk" and files.space(self._directory).free < before + size // 2:
                self._settled_at = time.monotonic() + SETTLE_SECONDS
            yield
        if last:
            reasons = ", ".join(f"{count} beyond the {reason}" for reason, count in removed.items())
            log.info("removed segments up to %s: %s to keep", last, reasons)

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
        for path in self._forms(name):
            with contextlib.suppress(FileNotFoundError):
                return path.stat().st_mtime < oldest_kept
        return True  # it is gone; removing it finds that out

    def _remove(self, name: str) -> bool:
        """Remove a segment in all its forms; return whether it is gone."""
        count = 0
        for path in self._forms(name):
            try:
                os.unlink(path)
                count += 1
            except FileNotFoundError:  # it never had this form, or somebody else removed it
                continue
            except OSError as error:
                text = f"cannot remove {path.name}: {error.strerror}"
                if self._logged_error != text:
                    self._logged_error = text
                    log.error(text)
                return False
        self.removed_segments += bool(count)
        return True

    def _forms(self, name: str) -> list[Path]:
        return [self._directory / (name + suffix) for suffix in files.SEALED_FORMS]
