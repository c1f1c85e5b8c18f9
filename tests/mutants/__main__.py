"""Remove each guard from a copy of the code, and see its tests fail: `python -m tests.mutants`.

Ends with status 1 if the tests of a guard did not notice.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from enum import Enum
from pathlib import Path

from tests.mutants.guard import Guard
from tests.mutants.guards import GUARDS
from tests.support.service import ROOT

#: Files that the copy does not need.
LEFT_OUT = shutil.ignore_patterns(".git", ".venv*", "data", "__pycache__", ".*_cache", ".work-*")

#: Tests that take longer are ended; a guard that keeps its tests from ending is noticed.
TIMEOUT_SECONDS = 300


class Outcome(Enum):
    """The outcome of a guard's tests without the guard."""

    CAUGHT = "caught"
    MISSED = "MISSED"
    BROKEN = "FAILS WITH THE GUARD TOO"


def run_without(guard: Guard) -> Outcome:
    """Run a guard's tests without the guard; if they fail, they must pass with it."""
    with tempfile.TemporaryDirectory(prefix="astralog-mutant-") as directory:
        copy = Path(directory) / "checkout"
        shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
        path = guard.find(copy)
        intact = path.read_text()
        path.write_text(guard.remove_from(intact))
        if passes(copy, guard):
            return Outcome.MISSED
        path.write_text(intact)
        return Outcome.CAUGHT if passes(copy, guard) else Outcome.BROKEN


def passes(checkout: Path, guard: Guard) -> bool:
    """Return whether a guard's tests pass in a checkout."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *guard.tests]
    environ = os.environ | {"PYTHONPATH": str(checkout)}
    try:
        run = subprocess.run(
            command,
            cwd=checkout,
            env=environ,
            check=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return False
    return run.returncode == 0


def main() -> int:
    """Run the guards selected on the command line, or all, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--only", default="", help="a part of the guards' names")
    options = parser.parse_args()
    guards = [guard for guard in GUARDS if options.only in guard.name]
    width = max(len(guard.name) for guard in guards)
    outcomes = []
    for guard in guards:
        started_at = time.monotonic()
        outcomes.append(run_without(guard))
        seconds = time.monotonic() - started_at
        print(f"{guard.name.ljust(width)}  {outcomes[-1].value}  {seconds:.0f} s", flush=True)
    caught = outcomes.count(Outcome.CAUGHT)
    print(f"{caught} of {len(guards)} guards were noticed when they were removed")
    return int(caught < len(guards))


if __name__ == "__main__":
    sys.exit(main())
