"""Clients of Node.js, installed from tests/npm once per lock file, and the recipes for them."""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest

from tests.support.service import ROOT

SOURCE = ROOT / "tests" / "npm"
FILES = ("package.json", "package-lock.json", ".npmrc")

SECTION = (ROOT / "docs" / "senders.md").read_text().partition("\n## JavaScript\n")[2]
RECIPES: list[str] = re.findall(r"```js\n(.*?)```", SECTION.partition("\n## ")[0], re.DOTALL)
(PIPE,) = re.findall(r"```bash\nnode app.mjs \| npx (.*)\n```", SECTION)

#: The directory of the installations, which stay for later runs.
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "astralog-tests"

#: Major version of Node.js that the clients need.
NODE_VERSION = 20

#: Errors of npm that mean that no registry answers, or that it lacks a package.
UNREACHABLE = re.compile(
    r"npm error code (E(CONN\w+|AI_AGAIN|NOTFOUND|TIMEDOUT|[45]\d\d)|FETCH_\w+)\n"
)

#: Seconds within which the installation has to end.
INSTALL_SECONDS = 500


def find_modules() -> Path:
    """Return the `node_modules` of the clients; skip the test if they cannot be installed."""
    if not (shutil.which("node") and shutil.which("npm")):
        _skip("node or npm is not installed")
    version = subprocess.check_output(["node", "--version"], text=True)
    if int(version.removeprefix("v").partition(".")[0]) < NODE_VERSION:
        _skip(f"they need Node.js {NODE_VERSION}, and this is {version.strip()}")
    content = b"".join((SOURCE / name).read_bytes() for name in FILES)
    directory = CACHE / f"npm-{hashlib.sha256(content).hexdigest()[:16]}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "npm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run of the tests may need them too
        if not directory.exists():
            _install(directory)
    return directory / "node_modules"


def _install(directory: Path) -> None:
    """Install the clients; an interrupted installation leaves nothing under the final name."""
    partial = directory.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for name in FILES:
        shutil.copy(SOURCE / name, partial)
    command = ["npm", "ci", "--prefer-offline", "--loglevel=error", "--fetch-retry-mintimeout=1000"]
    try:
        result = subprocess.run(
            command,
            cwd=partial,
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        _skip(f"npm did not install them within {INSTALL_SECONDS} s")
    if error := UNREACHABLE.search(result.stderr):
        _skip(f"npm reaches no registry that has them: {error[1]}")
    assert 0 == result.returncode, result.stderr
    partial.rename(directory)


def _skip(reason: str) -> NoReturn:
    pytest.skip(f"THE CLIENTS OF NODE.JS ARE NOT TESTED: {reason}")
