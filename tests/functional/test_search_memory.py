"""Commands that read logs take less than 100 MiB per process, whatever is stored."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import KIB, MIB, peak_bytes
from tests.support.service import TIMEOUT_SECONDS, wait_for
from tests.support.tail import COMMAND, Tail, make_line, make_name, make_segment

pytestmark = pytest.mark.slow

MAX_BYTES = 100 * MIB

#: 100 MB of logs, which compression reduces to little.
LARGE = [make_line(f"large {'x' * 1_000_000}")] * 100

#: Runs a command, and prints the peak memory in KiB of the largest of its processes.
MEASURE = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with 100 MB of logs between two small ones.

    The file of the segment is so large that a separate process reads it.
    """
    path = tmp_path_factory.mktemp("large")
    random = make_line(os.urandom(300_000).hex())
    lines = [make_line("first"), *LARGE, random, make_line("last")]
    make_segment(path, make_name(0), *lines, suffix=".ndjson.zst")
    return path


def peak_of(data_dir: Path, name: str, *options: str) -> int:
    """Return the peak memory of a command's largest process."""
    command = [str(COMMAND), name, "--data-dir", str(data_dir), *options]
    result = subprocess.run(
        [sys.executable, "-S", "-c", MEASURE, *command],
        capture_output=True,
        timeout=TIMEOUT_SECONDS,
        check=True,
    )
    return int(result.stdout) * KIB


@pytest.mark.parametrize(
    "command",
    [
        "search large",
        "search large -n 1000",
        "search first -A 1000",
        "search last -B 1000",
        "tail -n all",
    ],
)
def test_large_logs_take_little_memory(data_dir: Path, command: str) -> None:
    assert peak_of(data_dir, *command.split()) < MAX_BYTES


@pytest.mark.parametrize("command", ["search last", "search last -n 1", "tail -n 2"])
@pytest.mark.parametrize("suffix", [".ndjson", ".ndjson.zst"])
def test_a_line_that_is_too_long_takes_little_memory(
    tmp_path: Path, suffix: str, command: str
) -> None:
    """It is skipped, as the zeros that a file system may leave after a power cut are."""
    content = b"%s%s\n%s" % (make_line("first"), bytes(200 * MIB), make_line("last"))
    make_segment(tmp_path, make_name(0), content, suffix=suffix)
    assert peak_of(tmp_path, *command.split()) < MAX_BYTES


def test_a_follower_takes_little_memory(tmp_path: Path) -> None:
    """Also while it catches up."""
    path = tmp_path / "data"
    path.mkdir()
    with Tail(tmp_path, path, "-f", "--json") as follower:
        make_segment(path, make_name(0), make_line("ready"))
        follower.wait_for_lines(1)
        make_segment(path, make_name(1), *LARGE, suffix=".ndjson.zst")
        size = sum(map(len, LARGE))
        wait_for(lambda: (tmp_path / "tail.out").stat().st_size >= size)
        assert peak_bytes(follower.process.pid) < MAX_BYTES
