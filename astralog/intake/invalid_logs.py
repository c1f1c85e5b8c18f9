"""The invalid logs of a batch: their number, and messages for the first of them."""

from collections.abc import Mapping
from itertools import islice
from typing import Any

from astralog.errors import SHOWN_CHARACTERS, Rejection

#: Invalid logs per batch that are described; the rest are counted.
DESCRIBED_LOGS = 20

#: Fields per invalid log that are described.
DESCRIBED_FIELDS = 20

#: Invalid logs that are counted if they reject their batch; the rest of it is not checked.
COUNTED_LOGS = 1000

#: Characters of a message, which may repeat a client's text.
MESSAGE_CHARACTERS = 2 * SHOWN_CHARACTERS


class InvalidLogs:
    """Invalid logs by their number; `seen` counts all logs that were checked.

    With `are_kept`, they are stored as text (`invalid=keep`).
    """

    def __init__(self, *, are_kept: bool = False) -> None:
        self.are_kept = are_kept
        self.errors: dict[int, Any] = {}
        self.count = 0
        self.seen = 0

    @property
    def is_full(self) -> bool:
        """Return whether COUNTED_LOGS were counted, the most before a batch is rejected."""
        return self.count >= COUNTED_LOGS

    @property
    def are_described(self) -> bool:
        """Return whether DESCRIBED_LOGS were counted, so that others need no messages."""
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


def describe(messages: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the messages of the first fields, shortened for a client."""
    return {
        name[:SHOWN_CHARACTERS]: [text[:MESSAGE_CHARACTERS] for text in texts]
        for name, texts in islice(messages.items(), DESCRIBED_FIELDS)
    }
