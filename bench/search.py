"""Searches for a word in one line of many, with grep and zstd for comparison, in turns."""

import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

from astralog.store.compression import LEVEL
from astralog.store.names import Form, SegmentName
from astralog.zstd import zstd
from bench import bodies
from bench.runs import ROUNDS, progress
from bench.search_results import Search, Searches
from tests.support.decoding import encode_batch

#: Plain segments of some 90 MB each; `--search-segments 22` makes the 2 GB of the marks.
SEGMENTS = 4
SEGMENT_LOGS = 250_000
BATCH = 500

WORD = "Needle4711x"
COMMAND = Path(sys.executable).parent / "astralog"


#: The one log that is found, by each of the searches.
NEEDLE = f"""{{"logs": [{{"project_id": "shop", "timestamp": "2026-11-23T12:00:00Z",
 "level": "fatal", "service": "{WORD}", "message": "Order {WORD} is lost"}}]}}""".encode()


class Taken(NamedTuple):
    """The time of one run, and the CPU time of all its processes."""

    seconds: float
    cpu_seconds: float


class Race(NamedTuple):
    """Two shell commands that find the same; the search's options come after its directory."""

    name: str
    tool: str
    directory: str
    options: str
    limit: float


GREP = f"LC_ALL=C grep -F {WORD} plain/*"
RACES = (
    Race("in plain segments, case matters", GREP, "plain", f"-s {WORD}", 2),
    Race("in plain segments, any case", GREP, "plain", WORD.lower(), 4),
    Race("by service and level", GREP, "plain", f"--service {WORD} --level fatal", 3),
    Race(
        "in compressed segments, case matters",
        f"zstd -dcq compressed/* | LC_ALL=C grep -F {WORD}",
        "compressed",
        f"-s {WORD}",
        1.5,
    ),
)


def measure_searches(directory: Path, segments: int) -> Searches:
    """Run each search and its tool in turns, after a run of both that fills the page cache."""
    with TemporaryDirectory(dir=directory) as name:
        work = Path(name)
        sizes = _write_segments(work, segments)
        searches = [_compare(work, race) for race in RACES]
    return Searches(segments, sizes[0] / 1e6, sizes[1] / 1e6, searches)


def _compare(work: Path, race: Race) -> Search:
    """Return the medians of the rounds; raises AssertionError if either finds another line."""
    progress(f"search: {race.name}")
    command = f"{COMMAND} search --json --data-dir {race.directory} {race.options}"
    pairs = [(_run(work, command), _run(work, race.tool)) for _ in range(1 + ROUNDS)][1:]
    own, tool = zip(*pairs, strict=True)
    return Search(
        name=race.name,
        tool="zstd -dc | grep -F" if "zstd" in race.tool else "grep -F",
        seconds=median(taken.seconds for taken in own),
        cpu_seconds=median(taken.cpu_seconds for taken in own),
        tool_seconds=median(taken.seconds for taken in tool),
        tool_cpu_seconds=median(taken.cpu_seconds for taken in tool),
        factor=median(one.seconds / other.seconds for one, other in pairs),
        limit=race.limit,
    )


def _run(work: Path, command: str) -> Taken:
    cpu, start = _children_cpu(), time.perf_counter()
    shell = ["bash", "-c", command]
    found = subprocess.run(shell, cwd=work, stdout=subprocess.PIPE, check=True).stdout
    seconds = time.perf_counter() - start
    assert [WORD.encode() in line for line in found.splitlines()] == [True], found[:1000]
    return Taken(seconds, _children_cpu() - cpu)


def _children_cpu() -> float:
    times = os.times()
    return times.children_user + times.children_system


def _write_segments(work: Path, count: int) -> tuple[int, int]:
    """Write the segments in both forms, the word near the end; return the bytes of each form."""
    pool = bodies.templates(BATCH)
    plain = compressed = 0
    for form in ("plain", "compressed"):
        (work / form).mkdir()
    for number in range(count):
        progress(f"search: segment {number + 1} of {count}")
        batches = [
            encode_batch(pool[index % len(pool)].body(number * SEGMENT_LOGS + index)).lines
            for index in range(SEGMENT_LOGS // BATCH)
        ]
        if number == count - 1:
            batches.insert(len(batches) // 2, encode_batch(NEEDLE).lines)
        content = b"".join(batches)
        segment = SegmentName(f"20261123T{number:06d}.000000Z-1")
        plain += segment.path(work / "plain", Form.PLAIN).write_bytes(content)
        compressed += segment.path(work / "compressed", Form.COMPRESSED).write_bytes(
            zstd.compress(content, LEVEL)
        )
    return plain, compressed
