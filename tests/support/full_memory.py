"""Start the service with a full /dev/shm, which any local user can cause."""

import functools
import os
import subprocess
from pathlib import Path
from typing import Self

from tests.support.service import Service

#: Mounts a small file system in memory over /dev/shm, for the service alone.
MOUNT = "mount -t tmpfs -o size=256k,nr_inodes=64 astralog-test /dev/shm"

#: Leaves no byte and no further file.
FILL = """
cat /dev/zero > /dev/shm/zeros
number=0
while true > /dev/shm/$number; do number=$((number + 1)); done
"""

UNSHARE = ("unshare", "--mount", "--propagation", "private", "sh", "-c")


class FullMemoryService(Service):
    """A service with its own /dev/shm, which also has its temporary files.

    It is full from the start, or when `fill` is called.
    """

    def __init__(self, directory: Path, is_full: bool, **settings: object) -> None:
        super().__init__(directory, **settings)
        self._is_full = is_full
        self._environ["TMPDIR"] = "/dev/shm"

    def command(self) -> list[str]:
        """Return the command that starts the service in a separate mount namespace."""
        prepare = f"{MOUNT} && {{ {FILL if self._is_full else ':'}\n}} 2>/dev/null; " + 'exec "$@"'
        return [*UNSHARE, prepare, "sh", *super().command()]

    def fill(self) -> Self:
        """Fill the service's /dev/shm."""
        enter = ["nsenter", "--mount", f"--target={self.process.pid}"]
        subprocess.run([*enter, "sh", "-c", FILL], capture_output=True, check=False)
        return self

    def has_room(self) -> bool:
        """Return whether a byte, or a file, would fit into the service's /dev/shm."""
        status = os.statvfs(f"/proc/{self.process.pid}/root/dev/shm")
        return status.f_bavail > 0 or status.f_favail > 0


@functools.cache
def can_fill_memory() -> bool:
    """Return whether a mount namespace with a small /dev/shm can be created here."""
    command = [*UNSHARE, MOUNT]
    return (
        os.geteuid() == 0
        and not subprocess.run(command, capture_output=True, check=False).returncode
    )
