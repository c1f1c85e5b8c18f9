"""A small file system in memory that tests fill."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(path: Path, size: int, inodes: int | None = None) -> Iterator[Path]:
    """Mount a file system of `size` bytes at a new directory, or skip the test.

    `inodes`, if given, limits its inodes.
    """
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: a full disk; it takes root to mount a small file system")
    path.mkdir()
    options = f"size={size},mode=0755" + (f",nr_inodes={inodes}" if inodes else "")
    command = ["mount", "-t", "tmpfs", "-o", options, "astralog-test", str(path)]
    mount = subprocess.run(command, capture_output=True, text=True, check=False)
    if mount.returncode:
        pytest.skip(f"NOT TESTED: a full disk; mounting one is not allowed here: {mount.stderr}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)
