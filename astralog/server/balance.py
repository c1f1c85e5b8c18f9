"""Balance connections between the workers, which all accept from the same socket.

Each worker publishes its CPU load and its connections in shared memory. A worker leaves a waiting
connection to another one with less load, and closes some busy connections after a request if its
load stays higher, so that their clients connect anew. tests/functional/test_balance.py has the
mark: the busiest of two workers uses at most 1.5 times the CPU of the other.
"""

import mmap
import time
from collections.abc import Iterator

#: Workers with a separate place in the shared memory; further ones share the last place.
MAX_WORKERS = 1024

#: Seconds between two ticks, at which a worker publishes its load.
TICK_SECONDS = 0.5

#: Seconds without a tick after which the other workers ignore a worker.
SILENT_SECONDS = 2.0

#: Seconds for which a connection is left to a less busy worker; seconds between two checks whether
#: it still waits; and seconds without leaving any after the others did not accept one.
LEAVE_SECONDS = 0.5
POLL_SECONDS = 0.001
ALONE_SECONDS = 1.0

#: Seconds without a check after which a waiting connection is another one than before.
OTHER_SECONDS = 0.125

#: The assumed load, in cores, of a connection that was just accepted. It halves every NEW_SECONDS,
#: while the CPU time of the connection begins to show.
NEW_LOAD = 0.1
NEW_SECONDS = 0.5

#: A connection that ends within SHORT_SECONDS is short. After more than MANY_SHORT recent ones, a
#: worker leaves none to others: that would delay each by a millisecond, and short connections
#: spread by themselves.
SHORT_SECONDS = 1.0
MANY_SHORT = 50

#: Loads are equal if they differ by less than EQUAL_LOAD cores or by a smaller share; numbers of
#: connections are equal if they differ by a smaller share.
EQUAL_LOAD = 0.05
EQUAL_SHARE = 1 / 16

#: A worker moves connections if it has at least MOVING_LOAD cores of load and MOVING_FACTOR times
#: the least load of the others. Then it waits MOVED_TICKS ticks for the loads to change.
MOVING_LOAD = 0.1
MOVING_FACTOR = 1.25
MOVED_TICKS = 3

#: The largest share of its active connections that a worker moves at once, but at least one. It
#: moves none for less than MIN_MOVES, since one would then reverse the difference.
MOVED_SHARE = 1 / 4
MIN_MOVES = 0.75

#: The numbers that a worker publishes: the time of its last tick, its CPU time per second, the load
#: of its new connections and the time of that number, and its number of connections.
FIELDS = SEEN_AT, CPU, NEW, NEW_AT, CONNECTIONS = range(5)


class Balance:
    """The places of all workers in shared memory, which the master creates."""

    def __init__(self) -> None:
        size = (MAX_WORKERS + 1) * len(FIELDS)
        self._numbers = memoryview(mmap.mmap(-1, size * 8)).cast("d")
        self._taken: set[int] = set()

    def join(self) -> "Share":
        """Return the share of a worker that is about to be forked."""
        free = (place for place in range(1, MAX_WORKERS) if place not in self._taken)
        place = next(free, MAX_WORKERS)
        self._taken.add(place)
        self._numbers[0] = max(self._taken)
        return Share(self._numbers, place)

    def leave(self, share: "Share") -> None:
        share.withdraw()
        self._taken.discard(share.place)


class Share:
    """One worker's share of the load, and its view of the others."""

    def __init__(self, numbers: "memoryview[float]", place: int) -> None:
        """Use a place in the shared numbers; the first number is the highest place in use."""
        self._numbers = numbers
        self.place = place
        self._start = place * len(FIELDS)
        self._cpu = self._cpu_seconds = 0.0
        self._ticked_at = time.monotonic()
        self._rest_ticks = 0
        self._short = self._short_at = 0.0
        self._looked_at = self._left_since = self._alone_until = 0.0
        #: Grows by one with every tick.
        self.tick_number = 0
        self._active = 0  # connections used since the last tick
        self._moves = 0  # connections to close before the next tick
        self._publish(SEEN_AT, self._ticked_at)

    def start(self) -> None:
        """Start measuring, in the worker's own process."""
        self._cpu_seconds, self._ticked_at = time.process_time(), time.monotonic()
        self._publish(SEEN_AT, self._ticked_at)

    def withdraw(self) -> None:
        """Make the other workers ignore this one."""
        for field in FIELDS:
            self._publish(field, 0.0)

    def opened(self) -> float:
        """Count a connection that was accepted, and return the time."""
        now = time.monotonic()
        self._count(1, NEW_LOAD, now)
        return now

    def closed(self, opened_at: float) -> None:
        """Count the end of a connection that was opened at that time."""
        now = time.monotonic()
        self._count(-1, -_faded(NEW_LOAD, now - opened_at), now)
        if now - opened_at < SHORT_SECONDS:
            self._short = _faded(self._short, now - self._short_at) + 1
            self._short_at = now

    def leaves(self) -> bool:
        """Return whether this worker leaves a waiting connection to another worker."""
        now = time.monotonic()
        if _faded(self._short, now - self._short_at) > MANY_SHORT:
            return False
        better = None if now < self._alone_until else self._better(now)
        if better is None:
            return False
        is_other = now - self._looked_at > OTHER_SECONDS
        is_accepted = self._numbers[better + NEW_AT] > self._left_since  # the last one
        if is_other or is_accepted:
            self._left_since = now
        self._looked_at = now
        if now - self._left_since > LEAVE_SECONDS:  # the other is too busy to accept it
            self._alone_until = now + ALONE_SECONDS
            return False
        return True

    def is_moved(self) -> bool:
        """Count a connection used in this tick; return whether it must move to another worker.

        A connection calls this at most once per tick.
        """
        self._active += 1
        if self._moves:
            self._moves -= 1
            return True
        return False

    def tick(self) -> None:
        """Publish this worker's load, and decide how many connections to move."""
        now, cpu_seconds = time.monotonic(), time.process_time()
        cpu = (cpu_seconds - self._cpu_seconds) / (now - self._ticked_at)
        self._cpu_seconds, self._ticked_at = cpu_seconds, now
        self._cpu = (self._cpu + cpu) / 2
        self._publish(CPU, self._cpu)
        self._publish(SEEN_AT, now)
        self._moves = self._count_moves(now)
        self.tick_number += 1
        self._active = 0

    def _count_moves(self, now: float) -> int:
        if self._rest_ticks:
            self._rest_ticks -= 1
            return 0
        least = min((self._load(other, now) for other in self._others(now)), default=None)
        if least is None or self._active < 2 or self._cpu < max(MOVING_LOAD, MOVING_FACTOR * least):
            return 0
        each = self._cpu / self._active
        too_many = (self._cpu - least) / each / 2
        if too_many < MIN_MOVES:
            return 0
        self._rest_ticks = MOVED_TICKS
        return max(1, int(min(too_many, self._active * MOVED_SHARE)))

    def _better(self, now: float) -> int | None:
        """Return the place of a worker with less load, or with equal load and fewer connections."""
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
        """Yield the places of the other workers that have ticked recently."""
        size = len(FIELDS)
        for start in range(size, (int(self._numbers[0]) + 1) * size, size):
            if start != self._start and self._numbers[start + SEEN_AT] > now - SILENT_SECONDS:
                yield start

    def _count(self, connections: int, load: float, now: float) -> None:
        """Add to the number of connections, and to the load of the new ones."""
        self._publish(NEW, max(0.0, self._new_load(self._start, now) + load))
        self._publish(NEW_AT, now)
        self._publish(CONNECTIONS, self._numbers[self._start + CONNECTIONS] + connections)

    def _load(self, start: int, now: float) -> float:
        return float(self._numbers[start + CPU]) + self._new_load(start, now)

    def _new_load(self, start: int, now: float) -> float:
        return _faded(self._numbers[start + NEW], now - self._numbers[start + NEW_AT])

    def _publish(self, field: int, number: float) -> None:
        self._numbers[self._start + field] = number


def _faded(load: float, seconds: float) -> float:
    return float(load * 0.5 ** (seconds / NEW_SECONDS))
