"""Batches that are recognised by their numbers, wherever their lines are found."""

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

from tests.support.service import make_log


def make_body(batch: int, size: int) -> bytes:
    """Return the body of a batch of `size` logs, always with the same bytes."""
    logs = [make_log(metadata={"batch": batch, "line": line}) for line in range(size)]
    return json.dumps({"logs": logs}).encode()


def count_lines(logs: Iterable[dict[str, Any]]) -> Counter[tuple[int, int]]:
    """Return the number of copies of each line of each batch."""
    return Counter((log["metadata"]["batch"], log["metadata"]["line"]) for log in logs)
