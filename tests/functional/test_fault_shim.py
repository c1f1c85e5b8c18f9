"""The fault-injecting shim loses what a failed sync of Linux loses, and no more."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import shim

pytestmark = pytest.mark.skipif(
    not shim.is_available(), reason="NOT TESTED: failing calls; it takes gcc to compile the shim"
)

#: Writes to a file, or syncs it, and prints the errno of each call.
PROGRAM = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
for call in sys.stdin:
    try:
        os.pwrite(fd, b"line", 0) if call == "write\\n" else os.fsync(fd)
        print(0, flush=True)
    except OSError as error:
        print(error.errno, flush=True)
"""


class Process:
    """A process under the shim that has a file open."""

    def __init__(self, path: Path, environ: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-c", PROGRAM, path],
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def call(self, name: str) -> int:
        """Write or sync; return the errno, or 0."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{name}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def end(self) -> None:
        self._process.communicate()


@pytest.mark.parametrize(
    ("is_synced_by_other", "content"), [(False, bytes(4)), (True, b"line")], ids=["lost", "kept"]
)
def test_failed_sync_loses_the_pages_that_no_process_has_synced(
    tmp_path: Path, is_synced_by_other: bool, content: bytes
) -> None:
    path = tmp_path / "data" / "keys.db-wal"
    path.parent.mkdir()
    path.write_bytes(bytes(8))
    environ = dict(os.environ)
    control = shim.preload(environ, path.parent, tmp_path / "control")
    first, second = Process(path, environ), Process(path, environ)
    try:
        assert first.call("write") == 0
        if is_synced_by_other:
            assert [second.call("write"), second.call("sync")] == [0, 0]
        control.fail("sync", errno.EIO)
        assert first.call("sync") == errno.EIO
    finally:
        first.end()
        second.end()

    assert path.read_bytes() == content + bytes(4)
