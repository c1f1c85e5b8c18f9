"""Logs as odd as JSON and the service allow, made by chance."""

import random
from typing import Any

WORDS = (
    "",
    "a",
    "a.b",
    "a%2Eb",
    "null",
    "line",
    "timestamp",
    'quo"te\\',
    "new\nline\ttab",
    "\0\x1f\x7f\x85",
    "\u2028\u2029\ufeff",
    "😀👩‍👩‍👧",
    "2024-01-01 00:00:00",
    "17",
    "x" * 5000,
)

NUMBERS = (0, -1, 1.0, -0.0, 1e300, 5e-324, 0.1, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**40)

YEARS = (1, 1677, 1899, 1900, 1969, 1970, 2024, 2199, 2200, 2262, 2263, 9999)

DEEPEST = 6


def make_odd_log(source: random.Random, number: int) -> dict[str, Any]:
    """Return a log that the service accepts, with its number for the checks."""
    metadata = {source.choice(WORDS): _value(source, 0) for _ in range(source.randrange(6))}
    return {
        "project_id": source.choice(WORDS) or "p",
        "timestamp": _timestamp(source),
        "level": source.choice(WORDS) or "l",
        "service": source.choice(WORDS) or "s",
        "message": source.choice(WORDS),
        "metadata": metadata | {"batch": number, "line": 0},
    }


def _timestamp(source: random.Random) -> str:
    day = f"{source.choice(YEARS):04d}-{source.randrange(1, 13):02d}-{source.randrange(1, 29):02d}"
    second = f"{source.randrange(24):02d}:{source.randrange(60):02d}:{source.randrange(60):02d}"
    digits = source.choice((0, 0, 3, 6, 9, 9, 10, 20))
    fraction = "".join(source.choices("0123456789", k=digits))
    return f"{day}T{second}{'.' * bool(digits)}{fraction}Z"


def _value(source: random.Random, depth: int) -> Any:
    kind = source.randrange(9 if depth < DEEPEST else 5)
    if kind < 2:
        return source.choice(WORDS)
    if kind < 4:
        return source.choice(NUMBERS)
    if kind == 4:
        return source.choice((None, True, False, {}, []))
    if kind < 7:
        return [_value(source, depth + 1) for _ in range(source.randrange(4))]
    return {source.choice(WORDS): _value(source, depth + 1) for _ in range(source.randrange(4))}
