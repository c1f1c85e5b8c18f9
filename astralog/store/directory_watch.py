"""The names that come and go in a directory, or get another time, as inotify(7) tells them."""

import os
import struct
from pathlib import Path

from astralog.store.files import call_libc

#: Of linux/inotify.h.
_CREATE, _DELETE, _MOVED_FROM, _MOVED_TO = 0x100, 0x200, 0x40, 0x80
_ATTRIBUTES = 0x4  # as the time of modification, when somebody sets it
_ONLY_A_DIRECTORY = 0x01000000
_OVERFLOW = 0x4000

_MASK = _CREATE | _DELETE | _MOVED_FROM | _MOVED_TO | _ATTRIBUTES | _ONLY_A_DIRECTORY

#: An event without its name: the watch, what happened, a cookie, and the bytes of the name.
_EVENT = struct.Struct("iIII")

#: Bytes of events that are read at once, for some 200 names.
_READ_BYTES = 16 * 1024


class ChangesLost(Exception):
    """More changed than the system keeps for a watch; names are missing."""


class DirectoryWatch:
    """What changes in a directory from now on; raises OSError where no watch can be had."""

    def __init__(self, path: Path) -> None:
        self._fd = call_libc("inotify_init1", os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            call_libc("inotify_add_watch", self._fd, os.fsencode(path), _MASK)
        except OSError:
            self.close()
            raise

    def changes(self) -> set[str]:
        """Return some names that came, went or changed since the last call, none when that was all.

        Raises ChangesLost.
        """
        try:
            events = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return set()
        names = set()
        position = 0
        while position < len(events):
            _, mask, _, length = _EVENT.unpack_from(events, position)
            if mask & _OVERFLOW:
                raise ChangesLost
            position += _EVENT.size + length
            names.add(os.fsdecode(events[position - length : position].rstrip(b"\0")))
        return names

    def close(self) -> None:
        """End the watch."""
        os.close(self._fd)
