"""Realistic batches, the same in every run, whose logs are unique on the disk."""

import functools
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

SEED = 20261123

#: Different bodies for each batch size, so that no cache sees the same bytes again soon.
POOL_BODIES = 200

#: Batches above this size are so large that one body makes the pool.
POOL_LOGS = 500

#: Logs rendered at once: the part of a large body that a client holds while it sends.
CHUNK_LOGS = 700

SEQUENCE_DIGITS = 10
SEQUENCE = b"#" * SEQUENCE_DIGITS

_LEVELS = ("debug", "info", "info", "info", "info", "warning", "error")
_SERVICES = ("api-gateway", "checkout", "inventory-sync", "auth", "search", "mail-worker")
_PROJECTS = ("shop-eu", "shop-us", "internal-tools")
_REGIONS = ("eu-central-1", "us-east-1", "ap-south-1")
_PATHS = ("/api/v1/orders/{}", "/api/v1/users/{}/cart", "/login?next=/orders/{}", "/search?q={}")
_MESSAGES = (
    "User {} logged in",
    "Order {} was paid, sending the confirmation to the customer",
    'Cache miss for key "product:{}", falling back to the database',
    "Upstream answered after {} ms; retrying with the next replica",
    "Größe des Warenkorbs {} überschreitet die Vorgabe",
    "Job {} finished\nall 12 steps done",
)


class Template:
    """A batch's request except its sequence number, which is in every log's `log_id`.

    If the head has a place for it, it is there too.
    """

    def __init__(self, body: bytes, logs: int, head: str) -> None:
        self.logs = logs
        self.body_bytes = len(body)
        self._body_parts = body.split(SEQUENCE)
        self._parts = (head.format(len(body)).encode() + body).split(SEQUENCE)

    def body(self, sequence: int) -> bytes:
        """Return the body of request number `sequence`."""
        return _digits(sequence).join(self._body_parts)

    def decode_logs(self) -> list[dict[str, Any]]:
        """Return the batch's logs, each `log_id` with the sequence number's place left open."""
        logs: list[dict[str, Any]] = msgspec.json.decode(SEQUENCE.join(self._body_parts))["logs"]
        return logs

    def request(self, sequence: int) -> Iterator[bytes]:
        """Yield the pieces of the HTTP request number `sequence`; small batches are one piece."""
        digits = _digits(sequence)
        if len(self._parts) <= CHUNK_LOGS:
            yield digits.join(self._parts)
            return
        yield self._parts[0]
        for first in range(1, len(self._parts), CHUNK_LOGS):
            yield digits + digits.join(self._parts[first : first + CHUNK_LOGS])


@functools.cache
def templates(batch: int, head: str = "") -> list[Template]:
    """Return the pool of requests with `batch` logs each.

    `head` is the HTTP head, a format string that takes the body's length.
    """
    source = random.Random(f"{SEED}-{batch}")
    count = POOL_BODIES if batch <= POOL_LOGS else 1
    pool = [b",".join(_log(source, index) for index in range(batch)) for _ in range(count)]
    return [Template(b'{"logs":[%s]}' % logs, batch, head) for logs in pool]


@functools.cache
def largest_batch(limit_bytes: int) -> int:
    """Return how many logs make a body of at most `limit_bytes`, and nearly that."""
    sample = templates(POOL_LOGS)[0]
    batch = limit_bytes * sample.logs // sample.body_bytes
    while (size := templates(batch)[0].body_bytes) > limit_bytes:
        batch -= 1 + (size - limit_bytes) * sample.logs // sample.body_bytes
    return batch


def place(log_id: str) -> tuple[int, int]:
    """Return the request's sequence number and the log's index from a `log_id`."""
    return int(log_id[:SEQUENCE_DIGITS]), int(log_id[SEQUENCE_DIGITS + 1 :])


def _digits(sequence: int) -> bytes:
    return b"%0*d" % (SEQUENCE_DIGITS, sequence)


def _log(source: random.Random, index: int) -> bytes:
    """Render one log of about 370 bytes with the sequence number's place left open."""
    number = source.randrange(1_000_000)
    moment = datetime(2026, 11, 23, tzinfo=UTC) + timedelta(
        milliseconds=source.randrange(86_400_000)
    )
    return msgspec.json.encode(
        {
            "project_id": source.choice(_PROJECTS),
            "timestamp": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": source.choice(_LEVELS),
            "service": source.choice(_SERVICES),
            "message": source.choice(_MESSAGES).format(number),
            "metadata": {
                "log_id": f"{SEQUENCE.decode()}-{index:05d}",
                "user_id": number,
                "ip": f"10.{number % 256}.{source.randrange(256)}.{source.randrange(256)}",
                "method": source.choice(("GET", "POST")),
                "path": source.choice(_PATHS).format(number),
                "status": source.choice((200, 200, 200, 201, 302, 404, 500)),
                "duration_ms": round(source.expovariate(0.05), 3),
                "region": source.choice(_REGIONS),
                "cached": source.random() < 0.3,
            },
        }
    )
