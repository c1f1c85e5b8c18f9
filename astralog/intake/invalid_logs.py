"""The invalid logs of a batch: counted, and the first of them described."""

from collections.abc import Mapping
from itertools import islice
from typing import Any

from astralog.errors import SHOWN_CHARACTERS, Rejection

#: Invalid logs of a batch that are described; the rest is counted.
DESCRIBED_LOGS = 20

#: Fields of an invalid log that are described.
DESCRIBED_FIELDS = 20

#: Invalid logs of a batch that are counted if it is rejected for them; the rest is not checked.
COUNTED_LOGS = 1000

#: Characters of a message: it may repeat a text of the client's.
MESSAGE_CHARACTERS = 2 * SHOWN_CHARACTERS


class InvalidLogs:
    """Invalid logs by their number; `seen` counts the logs, valid or not, that were checked."""

    def __init__(self) -> None:
        self.errors: dict[int, Any] = {}
        self.count = 0
        self.seen = 0

    @property
    def is_full(self) -> bool:
        """Return whether there are as many as are counted of a batch that is rejected for them."""
        return self.count >= COUNTED_LOGS

    @property
    def are_described(self) -> bool:
        """Return whether there are as many as are described: the others need no messages."""
        return self.count >= DESCRIBED_LOGS

    def add(self, number: int, messages: Mapping[str, Any], count: int = 1) -> None:
        """Count logs from a number on, and describe the first by the messages for their fields."""
        described = min(count, DESCRIBED_LOGS - self.count)
        self.errors |= {number + place: describe(messages) for place in range(described)}
        self.count += count


def reject_invalid(invalid: InvalidLogs, total: int) -> Rejection:
    """Return the rejection of a batch of `total` logs for its invalid ones."""
    least = "" if invalid.seen == total else "At least "
    message = f"{least}{invalid.count} of {total} logs are invalid; nothing was stored"
    return Rejection("invalid_batch", message, {"logs": invalid.errors}, total)


def reject_all(invalid: InvalidLogs) -> Rejection:
    """Return the rejection of a batch in which no log is valid."""
    invalid.seen = invalid.count
    return reject_invalid(invalid, invalid.count)


def describe(messages: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the messages of the first fields, none longer than a client needs."""
    return {
        name[:SHOWN_CHARACTERS]: [text[:MESSAGE_CHARACTERS] for text in texts]
        for name, texts in islice(messages.items(), DESCRIBED_FIELDS)
    }
