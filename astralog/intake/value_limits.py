"""Limits on the values of a body: as objects, they take many times their bytes."""

import re
from collections.abc import Iterable, Sequence
from typing import TypeVar

from astralog.deadlines import in_turns, yield_if_due
from astralog.errors import Rejection

#: Values that a body longer than a piece may hold, each of which has a comma, and records,
#: attributes and values within values that an export may hold. Beyond it: 413 `body_too_large`.
MAX_VALUES = 750_000

#: Commas, and so values, that a log longer than a piece may hold.
LONG_LOG_COMMAS = 100_000

#: Integers of so many digits that a log longer than a piece may hold; each takes up to 0.5 ms.
LONG_INTEGER_DIGITS = 1000
LONG_LOG_INTEGERS = 200

_LONG_INTEGER = re.compile(rb"[-,:\[\s][0-9]{%d}" % LONG_INTEGER_DIGITS)

#: Lists and maps that may lie in one another in a value. Beyond it, the log is invalid.
MAX_DEPTH = 30

#: Attributes of a record, a resource or a scope. Beyond it, the log is invalid, or the logs of the
#: resource or scope.
MAX_ATTRIBUTES = 10_000

#: Values between two checks of the clock; they take half a millisecond.
VALUES_PER_CHECK = 256

Item = TypeVar("Item")


def check_values(body: bytes) -> None:
    """Raise Rejection `body_too_large` for a body that holds more than MAX_VALUES values."""
    if body.count(b",") > MAX_VALUES:
        raise reject_values()


def reject_values(body: str = "body", batches: str = "batches") -> Rejection:
    """Return the rejection of a body that holds more than MAX_VALUES values."""
    message = f"The {body} holds more than {MAX_VALUES} values; send smaller {batches}."
    return Rejection("body_too_large", message)


def find_excess(text: bytes) -> str:
    """Return a description of the limit that a log exceeds for a decode in one call, or ""."""
    if text.count(b",") > LONG_LOG_COMMAS:
        return f"over {LONG_LOG_COMMAS} values"
    sample = text[:: LONG_INTEGER_DIGITS // 2]  # it has two digits at least of such an integer
    digits = len(sample) - len(sample.translate(None, b"0123456789"))
    if digits > 2 * LONG_LOG_INTEGERS and len(_LONG_INTEGER.findall(text)) > LONG_LOG_INTEGERS:
        return f"over {LONG_LOG_INTEGERS} integers of {LONG_INTEGER_DIGITS} digits"
    return ""


class ValueBudget:
    """The values that an export may still hold; other clients are served while they are taken.

    Lists may be few and long, or many and short: the clock is checked within and between them.
    """

    def __init__(self) -> None:
        self._left = MAX_VALUES
        self._next_check = MAX_VALUES  # it is due when fewer are left

    def take(self, values: Sequence[Item], most: int = MAX_VALUES) -> Iterable[Item]:
        """Count the items of a list, a map or attributes, and return them to be iterated over.

        Raises ValueError for more than `most`, and Rejection `body_too_large` beyond MAX_VALUES.
        """
        size = len(values)
        if size > most:
            raise ValueError(f"There are more than {most} attributes.")
        self._left -= size
        if self._left < self._next_check:
            self._check()
        return in_turns(values) if size > VALUES_PER_CHECK else values

    def count(self, values: int) -> None:
        """Count values and check the clock; raises Rejection `body_too_large` as `take`."""
        self._left -= values
        self._check()

    def _check(self) -> None:
        """Serve other clients if it is time; raises Rejection if no value is left."""
        if self._left < 0:
            raise reject_values("export", "exports")
        self._next_check = max(self._left - VALUES_PER_CHECK, 0)
        yield_if_due()


def check_depth(depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(f"A value is nested in more than {MAX_DEPTH} others.")
