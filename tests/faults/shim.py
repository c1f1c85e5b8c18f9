"""The fault-injecting shim: compiled here, preloaded into a process, steered through memory."""

import atexit
import mmap
import shutil
import struct
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

from tests.support.clickhouse import Forward
from tests.support.service import Service

SOURCE = Path(__file__).with_name("shim.c")

#: In the order of the shim's own enumerations.
OPERATIONS = ("write", "sync", "dirsync", "open", "rename", "unlink", "truncate")
SLOTS = ("skip", "times", "outcome", "argument", "hits", "calls")
CLOCK = len(OPERATIONS) * len(SLOTS)

#: What the shim's processes share in addition: three numbers per file, and a lock.
SHARED = 3 * 65536 + 1

#: Outcomes of a call that are no errno.
SHORT = -1
STALL = -2
TORN = -3
NO_MEMORY = -4

#: The shim counts down from it; no test makes as many calls.
ALWAYS = 1 << 40


def is_available() -> bool:
    """Return whether the shim can be compiled here."""
    return shutil.which("gcc") is not None


@cache
def compile_shim() -> Path:
    """Return the compiled shim, which is removed at the end of the tests."""
    directory = tempfile.mkdtemp(prefix="shim-")
    atexit.register(shutil.rmtree, directory)
    library = Path(directory) / "shim.so"
    options = ["-O2", "-Wall", "-Werror", "-shared", "-fPIC"]
    subprocess.run(["gcc", *options, "-o", library, SOURCE, "-ldl"], check=True)
    return library


class Control:
    """The shared memory that controls the faults of running services."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(8 * (CLOCK + 1 + SHARED)))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)

    def fail(
        self,
        operation: str,
        outcome: int,
        *,
        skip: int = 0,
        times: int = 1,
        argument: int = 0,
    ) -> None:
        """Let `skip` calls pass and then let `times` calls end in `outcome`.

        That is an errno, SHORT (`argument` bytes are written), TORN (and ENOSPC for the rest),
        NO_MEMORY (and no memory for the rest) or STALL (for `argument` ms, or until `end_stall`).
        """
        self._set(operation, "times", 0)
        self._set(operation, "skip", skip)
        self._set(operation, "outcome", outcome)
        self._set(operation, "argument", argument)
        self._set(operation, "times", times)

    def end_faults(self) -> None:
        """Let every call succeed again."""
        for operation in OPERATIONS:
            self._set(operation, "times", 0)

    def end_stall(self, operation: str) -> None:
        """Let calls that stall now succeed soon, and later ones at once."""
        self._set(operation, "times", 0)
        self._set(operation, "outcome", 0)

    def left(self, operation: str) -> int:
        """Return how many calls are still to fail."""
        return max(0, self._get(operation, "times"))

    def hits(self, operation: str) -> int:
        """Return how many calls failed since the beginning."""
        return self._get(operation, "hits")

    def calls(self, operation: str) -> int:
        """Return how many calls there were since the beginning."""
        return self._get(operation, "calls")

    def set_clock(self, seconds: int) -> None:
        """Set the services' wall clock this far from the true one."""
        struct.pack_into("q", self._memory, 8 * CLOCK, seconds)

    def wait_for_hits(self, operation: str, seconds: float) -> None:
        """Return when all calls that should fail have failed, or after `seconds`."""
        deadline = time.monotonic() + seconds
        while self.left(operation) and time.monotonic() < deadline:
            time.sleep(0.005)

    def _place(self, operation: str, slot: str) -> int:
        return 8 * (OPERATIONS.index(operation) * len(SLOTS) + SLOTS.index(slot))

    def _get(self, operation: str, slot: str) -> int:
        (value,) = struct.unpack_from("q", self._memory, self._place(operation, slot))
        return int(value)

    def _set(self, operation: str, slot: str, value: int) -> None:
        struct.pack_into("q", self._memory, self._place(operation, slot), value)


def preload(environ: dict[str, str], data_dir: Path, control: Path) -> Control:
    """Let the processes with an environment meet faults on the files of a data directory."""
    environ["LD_PRELOAD"] = str(compile_shim())
    environ["FAULTS_DIRECTORY"] = str(data_dir)
    environ["FAULTS_CONTROL"] = str(control)
    return Control(control)


class ShimmedService(Service):
    """A service under the shim; `trace` is the file that gets its record."""

    def __init__(self, directory: Path, trace: Path | None = None, **settings: Any) -> None:
        super().__init__(directory, **settings)
        self.control = preload(self._environ, self.data_dir, directory / "control")
        if trace:
            self._environ["FAULTS_TRACE"] = str(trace)


class ShimmedForward(Forward):
    """A forward under the shim."""

    def __init__(self, directory: Path, url: str, data_dir: Path, **settings: Any) -> None:
        super().__init__(directory, url, data_dir, **settings)
        self.control = preload(self._environ, data_dir, directory / "control-of-forward")
