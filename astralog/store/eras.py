"""Which segments came while this process watched their directory, and in which order.

Names tell the order of segments, as long as the clock is not set back. What comes is younger than
all that was there, whatever the clock shows: a name that says otherwise begins a new era.
"""

from collections.abc import Collection

from astralog.clock import STEP_SECONDS, boot_time
from astralog.store.names import SegmentName

#: The era of segments that are named ahead of the clock: they count as the oldest.
AHEAD_ERA = 0

#: The era of those that were there before this process started.
FOUND_ERA = 1

#: The era of those that were started since, and of what comes until the clock is set back.
FIRST_ERA = 2


class Eras:
    """The segments that came, from when they are open until they are sealed."""

    def __init__(self) -> None:
        self._era = FIRST_ERA
        self._last = ""  # the last name of this era
        self._writing: dict[SegmentName, int] = {}  # segments that may be written to: era
        self._found: set[SegmentName] = set()  # those that were open before
        self._recovered: set[SegmentName] = set()  # of these, those of dead processes

    def note_found(self, segment: SegmentName, era: int) -> None:
        """Note a segment that was open before; its process may be dead."""
        self._found.add(segment)
        self._writing[segment] = era
        self.note_name(segment)

    def note_name(self, segment: SegmentName) -> None:
        """Note that a segment is there, whoever made it."""
        self._last = max(self._last, segment)

    def note_open(self, segment: SegmentName) -> None:
        """Note that a segment is open, or was until now."""
        if segment in self._writing or segment in self._recovered:
            return
        if self._last and SegmentName(self._last).start - segment.start > STEP_SECONDS:
            self._era += 1
            self._last = ""
        self._writing[segment] = self._era
        self.note_name(segment)

    def note_recovered(self, segment: SegmentName) -> None:
        """Note that a segment was sealed for a dead process.

        If it was open before, it is not known when it was last written to.
        """
        if segment in self._found:
            self._recovered.add(segment)
            self._writing.pop(segment, None)

    def seal(self, segment: SegmentName) -> tuple[float, int] | None:
        """Return when a segment was sealed that came, by CLOCK_BOOTTIME, and its era.

        That is now, at the first call; None for a segment that was sealed before.
        """
        era = self._writing.pop(segment, None)
        return None if era is None else (boot_time(), era)

    def forget_all_but(self, segments: Collection[SegmentName]) -> None:
        """Forget the segments that were removed before they were sealed."""
        self._writing = {name: era for name, era in self._writing.items() if name in segments}
