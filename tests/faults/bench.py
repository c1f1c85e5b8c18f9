"""Shared parts of all kinds: directory, randomness, time, and the tally of stored lines."""

import contextlib
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.faults.table import Row
from tests.support.keyed_load import KeyedLoad, find_faults
from tests.support.load import UNDECIDED_CODES, Load
from tests.support.protocols import DRAIN, Protocol
from tests.support.service import (
    TIMEOUT_SECONDS,
    Service,
    one_form_each,
    read_segment,
    wait_for,
)


class Bench:
    """The environment of a kind: a directory, a source of randomness, and a deadline."""

    def __init__(self, directory: Path, seed: int, seconds: float, quiet: bool = False) -> None:
        self.directory = directory
        self.random = random.Random(seed)
        self._deadline = time.monotonic() + seconds
        self._quiet = quiet

    @property
    def has_time(self) -> bool:
        """Return whether another round may begin."""
        return time.monotonic() < self._deadline

    def make_directory(self) -> Path:
        """Return a new directory."""
        return Path(tempfile.mkdtemp(dir=self.directory))

    def remove(self, path: Path) -> None:
        """Remove a directory after its files were counted."""
        shutil.rmtree(path, ignore_errors=True)

    def say(self, text: str) -> None:
        """Show progress."""
        if not self._quiet:
            print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def read_lines(paths: Iterable[Path], row: Row) -> Counter[tuple[int, int]]:
    """Count the stored lines by batch and line; record other lines of the files."""
    lines: Counter[tuple[int, int]] = Counter()
    for path in one_form_each(paths):
        content = read_segment(path)
        *whole, rest = content.split(b"\n")
        if rest:
            row.half += 1
            row.remark(f"{path.name} ends in {rest[:80]!r}")
        for line in whole:
            try:
                metadata = json.loads(line)["metadata"]
                numbers = metadata.get("fields") or metadata.get("structured_metadata") or metadata
                lines[int(numbers["batch"]), int(numbers["line"])] += 1
            except (ValueError, KeyError, TypeError):
                row.half += 1
                row.remark(f"{path.name} holds {line[:80]!r}")
    return lines


def tally(row: Row, load: Load, paths: Iterable[Path]) -> None:
    """Add the outcomes of the load's batches to the row."""
    lines = read_lines(paths, row)
    found = Counter(batch for batch, _ in lines)
    note_answers(row, load)
    lost = [batch for batch, size in load.acknowledged.items() if found[batch] != size]
    keyed = load.keyed.acknowledged.keys() | load.keyed.undecided.keys()
    twice = {batch for (batch, _), count in lines.items() if count > 1} - keyed
    final = {batch for batch, code in load.rejected.items() if code not in UNDECIDED_CODES}
    row.lost += len(lost)
    row.doubled += len(twice) + sum(1 for batch in final if found[batch])
    posted = load.acknowledged.keys() | load.rejected.keys() | load.unanswered
    row.forged += len(found.keys() - posted - keyed)
    undecided = (load.rejected.keys() - final) | load.unanswered
    row.undecided += sum(1 for batch in undecided if found[batch])
    for name, batches in (("lost", lost), ("twice", sorted(twice))):
        if batches:
            row.remark(f"{name}: batches {batches[:10]}")
    _tally_keyed(row, load.keyed, lines)


def note_answers(row: Row, load: Load) -> None:
    """Add the acknowledged batches and the wrong responses to the row."""
    row.acknowledged += len(load.acknowledged) + len(load.keyed.acknowledged)
    row.keyed += len(load.keyed.acknowledged)
    row.sent_again += load.keyed.sent_again
    row.unresolved += len(load.keyed.undecided)
    row.errors += sum(1 for code in load.rejected.values() if code == "internal")
    row.errors += load.keyed.codes["internal"]
    for fault, count in load.keyed.faults.items():
        row.fail(f"a batch with a key: {fault}", count)


def _tally_keyed(row: Row, load: KeyedLoad, lines: Counter[tuple[int, int]]) -> None:
    """Add the outcomes of keyed batches to the row: each must be there whole, and once."""
    found = find_faults(load, lines)
    row.lost += len(found.lost)
    row.doubled += len(found.doubled)
    row.parts += len(found.parts)
    for name, batches in zip(("lost", "doubled", "in part"), found, strict=True):
        if batches:
            row.remark(f"{name}: keyed batches {batches[:10]}")


def wait_for_more(load: Load, count: int, row: Row, since: float | None = None) -> None:
    """Return when `count` more batches are acknowledged.

    Note in the row how long after `since`, or after now, the first one came.
    """
    before = seen = len(load.acknowledged)
    start = time.monotonic() if since is None else since
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while seen < before + count:
        if time.monotonic() > deadline:
            row.fail(f"accepted no batch for {TIMEOUT_SECONDS:g} s")
            return
        time.sleep(0.005)
        if len(load.acknowledged) > seen:
            if seen == before:
                row.was_back_after(time.monotonic() - start)
            seen = len(load.acknowledged)
            deadline = time.monotonic() + TIMEOUT_SECONDS


def finish(
    bench: Bench, row: Row, service: Service, load: Load, strays: Path | None = None
) -> None:
    """Stop a service and tally its files, and the segments in `strays` that were moved there."""
    try:
        wait_for(lambda: not service.has_orphans())
    except AssertionError:
        row.fail("left an orphan")
    if service.stop() != 0:
        row.fail("did not stop with status 0")
    if service.files("*.open"):
        row.fail("left an open segment")
    if "Traceback" in service.log():
        row.fail("wrote a traceback")
    tally(row, load, [*service.files(), *(strays.glob("*.ndjson*") if strays else ())])
    bench.say(f"{row.what}: {row.tried} rounds, {row.acknowledged} acknowledged")


@contextlib.contextmanager
def under_load(
    bench: Bench,
    row: Row,
    service: Service,
    *,
    threads: int = 8,
    strays: Path | None = None,
    has_keys: bool = True,
    is_patient: bool = False,
    protocol: Protocol = DRAIN,
) -> Iterator[Load]:
    """Run a service with clients that post, for the caller to break it, and `finish` it.

    Half of the clients send keys, unless `has_keys` is false; `is_patient` is for those, and
    `protocol` for the others.
    """
    with service:
        keyed = threads // 2 if has_keys else 0
        plain = threads - keyed
        with Load(service, plain, keyed=keyed, is_patient=is_patient, protocol=protocol) as load:
            yield load
        finish(bench, row, service, load, strays)
