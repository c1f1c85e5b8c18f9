"""Remove the oldest sealed segments, as the settings say."""

import logging
import os
import time
from pathlib import Path

from astralog.store.files import OPEN_SUFFIX, SEALED_SUFFIX

log = logging.getLogger(__name__)


def retain(directory: Path, total_bytes: int, age_seconds: float) -> int:
    """Remove the oldest sealed segments beyond a total size and an age; 0 keeps all.

    Returns how many were removed. The total counts open segments too, which are never removed.
    """
    if not (total_bytes or age_seconds):
        return 0
    removed = 0
    sealed = {path: _stat(path) for path in sorted(directory.glob("*" + SEALED_SUFFIX))}
    total = sum(stat.st_size for stat in sealed.values() if stat)
    total += sum(s.st_size for path in directory.glob("*" + OPEN_SUFFIX) if (s := _stat(path)))
    oldest_kept = time.time() - age_seconds
    for path, stat in sealed.items():
        if stat is None:
            continue
        too_much = total_bytes and total > total_bytes
        too_old = age_seconds and stat.st_mtime < oldest_kept
        if not (too_much or too_old):
            break
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            log.error("cannot remove %s: %s", path.name, error.strerror)
            break
        removed += 1
        total -= stat.st_size
        log.info("removed %s: beyond the %s to keep", path.name, "size" if too_much else "age")
    return removed


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:  # another process sealed or removed it
        return None
