"""Fuzzing guided by coverage: inputs that reach new code are kept and mutated further.

`python -m tests.faults.guided bodies -runs=1000000` tries that many bodies; `lines`,
`bodies-options`, `lines-options` and `timestamps` are the other kinds. More words are libFuzzer's
own options, among them a directory to keep inputs in. It needs atheris, which is not locked: it is
built for few machines.
"""

import re
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime, time
from functools import partial
from random import Random
from typing import Any, NamedTuple
from unittest.mock import patch

import atheris

with atheris.instrument_imports(include=["astralog", "dateutil"]):
    from astralog.errors import Rejection
    from astralog.intake import formats, timestamps
    from astralog.intake.options import NO_OPTIONS, Options
    from astralog.store.queue import Batch
    from tests.faults import fuzz
    from tests.faults.table import Row
    from tests.support.decoding import marshmallow_alone

#: libFuzzer stops at an input that takes more seconds or memory than any of this length should.
LIMITS = ("-timeout=10", "-rss_limit_mb=1024", "-max_len=8192", "-len_control=0")

#: One in so many inputs is made anew rather than of one that reached new code.
NEW_ONE_IN = 4

#: Times of day that the standard library does not parse.
_MIDNIGHT_OR_LEAP = re.compile(r"24(:?00){0,2}([.,]0+)?(?![:.,0-9])|..:?..:?60")

_FRACTION = re.compile("[.,]([0-9]+)")

#: Inputs between two words of how many were taken.
SHOWN_INPUTS = 100_000

#: The attempts of all kinds.
ROW = Row("guided by coverage")


def try_body(body: bytes, is_lines: bool, has_options: bool) -> None:
    """Check that a body is stored as it reads, in one piece, in many, and by marshmallow alone.

    Its length chooses among the options.
    """
    options = fuzz.OPTIONS[len(body) % len(fuzz.OPTIONS)] if has_options else NO_OPTIONS
    fuzz.try_body(ROW, body, is_lines, options)
    assert not ROW.is_bad, ROW.remarks
    stored = _stored(body, is_lines, options)
    with patch.object(formats, "PIECE_BYTES", fuzz.SHORT_PIECE_BYTES):
        assert stored == _stored(body, is_lines, options), "stored otherwise in pieces"
    with marshmallow_alone():
        assert stored == _stored(body, is_lines, options), "stored otherwise by marshmallow"


def _stored(body: bytes, is_lines: bool, options: Options) -> tuple[Batch, Any] | None:
    """Return the stored lines, and the numbers of the omitted logs."""
    try:
        batch, invalid = fuzz.decode(body, is_lines, options)
    except Rejection:
        return None
    return batch, list(invalid.errors) if invalid else []


def try_timestamp(data: bytes) -> None:
    """Try a timestamp; an accepted one must be the moment that the standard library reads."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        fuzz.try_timestamp(ROW, text)
        assert not ROW.is_bad, ROW.remarks
        stored_text = timestamps.normalise(text)
    except ValueError:
        return
    assert _FRACTION.findall(stored_text) == _FRACTION.findall(text), "not the fraction as sent"
    day, clock = re.split("[Tt ]", f"{text}T00:00", maxsplit=2)[:2]
    clock = text[len(day) + 1 :].replace("UTC", "Z").replace(" ", "") or clock
    try:
        time_of_day = time.fromisoformat(clock.upper())
    except ValueError:
        assert _MIDNIGHT_OR_LEAP.match(clock), f"{text!r} is no time of day"
        return
    expected = datetime.combine(_read_date(day), time_of_day)
    expected = expected if expected.tzinfo else expected.replace(tzinfo=UTC)
    assert datetime.fromisoformat(stored_text) == expected, f"{text!r} is not {stored_text}"


def _read_date(text: str) -> date:
    is_ordinal = text[4:].strip("-").isdecimal() and len(text.replace("-", "")) == 7
    if is_ordinal:
        return datetime.strptime(text.replace("-", ""), "%Y%j").date()
    return date.fromisoformat(text)


class Kind(NamedTuple):
    """How inputs of a kind are tried, created, and mutated."""

    attempt: Callable[[bytes], None]
    make: Callable[[Random], bytes]
    mutate: Callable[[Random, bytes], bytes]


def _mutated_timestamp(chance: Random, data: bytes) -> bytes:
    return fuzz.mutated_timestamp(chance, data.decode(errors="replace")).encode()


def _kind_of_body(is_lines: bool, has_options: bool = False) -> Kind:
    return Kind(
        partial(try_body, is_lines=is_lines, has_options=has_options),
        partial(fuzz.valid_body, is_lines=is_lines),
        fuzz.mutated,
    )


KINDS = {
    "bodies": _kind_of_body(is_lines=False),
    "lines": _kind_of_body(is_lines=True),
    "bodies-options": _kind_of_body(is_lines=False, has_options=True),
    "lines-options": _kind_of_body(is_lines=True, has_options=True),
    "timestamps": Kind(
        try_timestamp, lambda chance: chance.choice(fuzz.TIMESTAMPS).encode(), _mutated_timestamp
    ),
}


def next_input(data: bytes, max_size: int, seed: int, kind: Kind) -> bytes:
    """Return the next input, made of one that libFuzzer chose, and show progress."""
    if ROW.tried and ROW.tried % SHOWN_INPUTS == 0:
        print(f"{ROW.tried:,} tried, {ROW.acknowledged:,} of them taken", file=sys.stderr)
    chance = Random(seed)
    if not data.strip() or chance.randrange(NEW_ONE_IN) == 0:
        data = kind.make(chance)
    if chance.random() < 0.7:
        return kind.mutate(chance, data)[:max_size]
    mutated: bytes = atheris.Mutate(data, max_size)
    return mutated


def main() -> None:
    """Try inputs of the kind that the first argument names."""
    name, *options = sys.argv[1:]
    kind = KINDS[name]
    mutator = partial(next_input, kind=kind)
    atheris.Setup([sys.argv[0], *LIMITS, *options], kind.attempt, custom_mutator=mutator)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
