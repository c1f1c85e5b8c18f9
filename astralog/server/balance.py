"""How connections are shared out among the workers, which all accept from the same socket."""

import mmap
import time
from collections.abc import Iterator

#: Workers that have a place of their own; any more share the last one.
MAX_WORKERS = 1024

#: Seconds between two ticks, at which a worker tells the others its load.
TICK_SECONDS = 0.5

#: A worker that did not tick for so long is not reckoned with.
SILENT_SECONDS = 2.0

#: Seconds that a connection is left to a worker with less load, between two looks at whether it is
#: still there, and without leaving any, where none took it.
LEAVE_SECONDS = 0.5
LOOK_SECONDS = 0.001
ALONE_SECONDS = 1.0

#: Load, in cores, of a connection that was just accepted. It fades, by half in so many seconds,
#: while the CPU time that the connection takes begins to show.
NEW_LOAD = 0.1
NEW_SECONDS = 0.5

#: A connection that ended within so many seconds was a short one. Where there were more of them of
#: late, a worker leaves none to another: it would take a millisecond from each, and they share
#: themselves out.
SHORT_SECONDS = 1.0
MANY_SHORT = 50

#: Loads that differ by less, or by a smaller share, are equal; so are numbers of connections that
#: differ by a smaller share.
EQUAL_LOAD = 0.05
EQUAL_SHARE = 1 / 16

#: A worker moves connections elsewhere where it has at least this load, and so many times the least
#: load of any other; after a move it waits so many ticks until that shows in the loads.
MOVING_LOAD = 0.1
MOVING_FACTOR = 1.25
MOVED_TICKS = 3

#: What a worker tells the others: when, its CPU time per second, the load of the connections that
#: are new, as it was at which time, and how many connections it has.
FIELDS = SEEN_AT, CPU, NEW, NEW_AT, CONNECTIONS = range(5)


class Balance:
    """The places of all workers, in memory that they share; the master makes it."""

    def __init__(self) -> None:
        size = (MAX_WORKERS + 1) * len(FIELDS)
        self._numbers = memoryview(mmap.mmap(-1, size * 8)).cast("d")
        self._taken: set[int] = set()

    def join(self) -> "Share":
        """Return the part of a worker that is about to start."""
        free = (place for place in range(1, MAX_WORKERS) if place not in self._taken)
        place = next(free, MAX_WORKERS)
        self._taken.add(place)
        self._numbers[0] = max(self._taken)
        return Share(self._numbers, place)

    def leave(self, share: "Share") -> None:
        """Free the place of a worker that has ended."""
        share.withdraw()
        self._taken.discard(share.place)


class Share:
    """What one worker has of the load, and what it knows of the others'."""

    def __init__(self, numbers: "memoryview[float]", place: int) -> None:
        """Take a place in what the workers share: its numbers, the highest place first."""
        self._numbers = numbers
        self.place = place
        self._start = place * len(FIELDS)
        self._cpu = self._cpu_seconds = 0.0
        self._ticked_at = time.monotonic()
        self._rest_ticks = 0
        self._short = self._short_at = 0.0
        self._looked_at = self._left_since = self._alone_until = 0.0
        #: Grows by one with every tick; `active` counts the connections used since the last one.
        self.tick_number = 0
        self.active = 0
        #: Connections that are to go elsewhere, until the next tick.
        self.moves = 0
        self._tell(SEEN_AT, self._ticked_at)

    def start(self) -> None:
        """Begin, in the worker's own process."""
        self._cpu_seconds, self._ticked_at = time.process_time(), time.monotonic()
        self._tell(SEEN_AT, self._ticked_at)

    def withdraw(self) -> None:
        """Tell the others not to reckon with this worker."""
        for field in FIELDS:
            self._tell(field, 0.0)

    def opened(self) -> float:
        """Take note of a connection that was accepted, and return when that was."""
        now = time.monotonic()
        self._count(1, NEW_LOAD, now)
        return now

    def closed(self, opened_at: float) -> None:
        """Take note that a connection has ended, which was opened at that time."""
        now = time.monotonic()
        self._count(-1, -_faded(NEW_LOAD, now - opened_at), now)
        if now - opened_at < SHORT_SECONDS:
            self._short = _faded(self._short, now - self._short_at) + 1
            self._short_at = now

    def leaves(self) -> bool:
        """Return whether a connection that waits to be accepted is left to another worker."""
        now = time.monotonic()
        if _faded(self._short, now - self._short_at) > MANY_SHORT:
            return False
        better = None if now < self._alone_until else self._better(now)
        if better is None:
            return False
        # It is another connection, or the last one was taken.
        if (
            now - self._looked_at > LEAVE_SECONDS / 4
            or self._numbers[better + NEW_AT] > self._left_since
        ):
            self._left_since = now
        self._looked_at = now
        if now - self._left_since > LEAVE_SECONDS:  # the other is too busy to take it
            self._alone_until = now + ALONE_SECONDS
            return False
        return True

    def tick(self) -> None:
        """Tell the others this worker's load, and see how many connections are to go elsewhere."""
        now, cpu_seconds = time.monotonic(), time.process_time()
        cpu = (cpu_seconds - self._cpu_seconds) / (now - self._ticked_at)
        self._cpu_seconds, self._ticked_at = cpu_seconds, now
        self._cpu = (self._cpu + cpu) / 2
        self._tell(CPU, self._cpu)
        self._tell(SEEN_AT, now)
        self.moves = self._count_moves(now)
        self.tick_number += 1
        self.active = 0

    def _count_moves(self, now: float) -> int:
        """Return how many connections are to go elsewhere, so that the loads become equal."""
        if self._rest_ticks:
            self._rest_ticks -= 1
            return 0
        least = min((self._load(other, now) for other in self._others(now)), default=None)
        if least is None or self.active < 2 or self._cpu < max(MOVING_LOAD, MOVING_FACTOR * least):
            return 0
        each = self._cpu / self.active
        too_many = (self._cpu - least) / each / 2
        if too_many < 0.75:  # to move one would only change sides
            return 0
        self._rest_ticks = MOVED_TICKS
        return max(1, min(int(too_many), self.active // 4))

    def _better(self, now: float) -> int | None:
        """Return where a worker is that has less load, or an equal load and fewer connections."""
        load = self._load(self._start, now)
        connections = self._numbers[self._start + CONNECTIONS]
        for start in self._others(now):
            other = self._load(start, now)
            slack = max(EQUAL_LOAD, other * EQUAL_SHARE)
            fewer = connections / (1 + EQUAL_SHARE) > self._numbers[start + CONNECTIONS]
            if load > other + slack or (load > other - slack and fewer):
                return start
        return None

    def _others(self, now: float) -> Iterator[int]:
        """Yield where the other workers are that are to be reckoned with."""
        size = len(FIELDS)
        for start in range(size, (int(self._numbers[0]) + 1) * size, size):
            if start != self._start and self._numbers[start + SEEN_AT] > now - SILENT_SECONDS:
                yield start

    def _count(self, connections: int, load: float, now: float) -> None:
        """Add to the number of connections, and to the load of those that are new."""
        self._tell(NEW, max(0.0, self._new_load(self._start, now) + load))
        self._tell(NEW_AT, now)
        self._tell(CONNECTIONS, self._numbers[self._start + CONNECTIONS] + connections)

    def _load(self, start: int, now: float) -> float:
        return float(self._numbers[start + CPU]) + self._new_load(start, now)

    def _new_load(self, start: int, now: float) -> float:
        return _faded(self._numbers[start + NEW], now - self._numbers[start + NEW_AT])

    def _tell(self, field: int, number: float) -> None:
        self._numbers[self._start + field] = number


def _faded(load: float, seconds: float) -> float:
    """Return what is left of what counted when it was new."""
    return float(load * 0.5 ** (seconds / NEW_SECONDS))
