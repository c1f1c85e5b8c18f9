"""Memory that a worker frees: long blocks are returned, and short ones are kept."""

import platform
import subprocess
import sys

import pytest

MIB = 1024 * 1024

PROGRAM = """
import os
from astralog.heap import keep_freed_heap
from tests.support.processes import resident_bytes

def left_by(count, mib):
    before = resident_bytes(os.getpid())
    blocks = [bytearray(mib << 20) for _ in range(count)]
    del blocks
    return resident_bytes(os.getpid()) - before

keep_freed_heap()
print(left_by(8, 2), left_by(1, 24) + left_by(1, 24))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="NOT TESTED: glibc's heap")
def test_freed_blocks_stay_with_the_process_only_if_they_are_short() -> None:
    """Also the second long one: after the first, glibc alone would raise its limit."""
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    short, long = map(int, run.stdout.split())
    assert short > 12 * MIB
    assert long < 4 * MIB
