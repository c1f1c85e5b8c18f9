"""Limits on the values of an OTLP export: as objects, they take many times their bytes."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from astralog.deadlines import in_turns, yield_if_due
from astralog.errors import Rejection
from astralog.intake.decoder import LONG_BODY_COMMAS

#: Lists and maps that may lie in one another in a value. Beyond it, the log is invalid.
MAX_DEPTH = 30

#: Attributes of a record, a resource or a scope. Beyond it, the log is invalid, or the logs of the
#: resource or scope.
MAX_ATTRIBUTES = 10_000

#: Records, attributes and values within values that an export may hold: as many as JSON may have
#: commas. Beyond it: 413 `body_too_large`.
MAX_VALUES = LONG_BODY_COMMAS

#: Values between two checks of the clock; they take half a millisecond.
VALUES_PER_CHECK = 256

Item = TypeVar("Item")


class ValueBudget:
    """The values that an export may still hold; other clients are served while they are taken.

    Lists may be few and long, or many and short: the clock is checked within and between them.
    """

    def __init__(self) -> None:
        self._left = MAX_VALUES
        self._checked_at = MAX_VALUES  # the next check is due when fewer are left

    def take(self, values: Sequence[Item], most: int = MAX_VALUES) -> Iterable[Item]:
        """Count the items of a list, a map or attributes, and return them to be iterated over.

        Raises ValueError for more than `most`, which must be VALUES_PER_CHECK at least, and
        Rejection `body_too_large` beyond MAX_VALUES.
        """
        self._left -= len(values)
        if self._left >= self._checked_at:
            return values  # not more than `most`: a check is due after VALUES_PER_CHECK
        if len(values) > most:
            raise ValueError(f"There are more than {most} attributes.")
        self._check()
        return in_turns(values) if len(values) > VALUES_PER_CHECK else values

    def count(self, values: int) -> None:
        """Count values and check the clock; raises Rejection `body_too_large` as `take`."""
        self._left -= values
        self._check()

    def _check(self) -> None:
        """Serve other clients if it is time; raises Rejection if no value is left."""
        if self._left < 0:
            message = f"The export holds more than {MAX_VALUES} values; send smaller exports."
            raise Rejection("body_too_large", message)
        self._checked_at = max(self._left - VALUES_PER_CHECK, 0)
        yield_if_due()


def check_depth(depth: int) -> None:
    """Raise ValueError for a value that is nested too deep."""
    if depth > MAX_DEPTH:
        raise ValueError(f"A value is nested in more than {MAX_DEPTH} others.")
