"""Programs that log through the Python client, as one file copied next to them."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.service import ROOT, TIMEOUT_SECONDS, TOKEN, Service

CLIENT = ROOT / "clients" / "python"

#: Python 3.12 and later warn of this; the client is made for it.
FORK_BESIDE_THREADS = "ignore:This process:DeprecationWarning"

_START = """\
import atexit, logging, multiprocessing, os, sys, threading, time
from astralog_logging import AstraLogHandler

handler = AstraLogHandler(
    {url!r}, token={token!r}, project_id="org-xyz", service="billing", **{options!r}
)
logging.basicConfig(level=logging.INFO, handlers=[handler])
log = logging.getLogger("shop").info
"""


class Programs:
    """The programs of a test; they and their processes are killed at its end."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        shutil.copy(CLIENT / "astralog_logging" / "handler.py", directory / "astralog_logging.py")
        self._running: list[subprocess.Popen[str]] = []

    def start(
        self,
        url: str,
        code: str,
        python: str = sys.executable,
        warnings: str = "error",
        before: str = "",
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> subprocess.Popen[str]:
        """Start a program that logs with `log` to `url`, with the handler's options.

        Unless they say otherwise, its exit waits as long as a slow disk may take.
        """
        options = {"exit_seconds": TIMEOUT_SECONDS / 2} | options
        path = self._directory / f"program_{len(self._running)}.py"
        path.write_text(before + _START.format(url=url, token=TOKEN, options=options) + code)
        process = subprocess.Popen(
            [python, "-W", warnings, "-W", FORK_BESIDE_THREADS, path],
            env={**os.environ, **(env or {})},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that its own processes can be killed with it
        )
        self._running.append(process)
        return process

    def run(self, url: str, code: str, status: int = 0, **options: Any) -> str:
        """Run a program to its end, and return its stderr."""
        return self.wait(self.start(url, code, **options), status)

    def wait(self, process: subprocess.Popen[str], status: int = 0) -> str:
        """Wait for a program's end, and return its stderr."""
        _, errors = process.communicate(timeout=TIMEOUT_SECONDS)
        assert status == process.returncode, errors
        return errors

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._running:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def url_of(service: Service) -> str:
    """Return the address at which a program reaches the service."""
    return f"http://127.0.0.1:{service.address[1]}"


def messages(service: Service) -> list[str]:
    """Return the messages of all stored logs."""
    return [log["message"] for log in service.logs()]
