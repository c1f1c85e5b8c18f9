"""Start services as forks of a process that has imported their code.

The import takes half of the CPU of a start, and the tests start hundreds of services. A process of
the launcher is in the same state as one of `python blocked_hub.py wsgi:app`.
"""

import atexit
import contextlib
import faulthandler
import importlib
import json
import os
import runpy
import selectors
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import BinaryIO

#: Imported before the forks: no module of them reads the environment, or starts a thread.
PRELOADED = ("gunicorn.app.wsgiapp", "astralog.app", "astralog.server.start")

#: Bytes of a request, which is a command and its environment, and of an answer.
REQUEST_BYTES = 1 << 17
ANSWER_BYTES = 100


class LaunchedProcess:
    """A process that the launcher started; the methods are those of subprocess.Popen."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._has_ended = threading.Event()

    def end(self, status: int) -> None:
        """Record the exit status, which is negative after a signal."""
        self.returncode = status
        self._has_ended.set()

    def poll(self) -> int | None:
        """Return the exit status, None while the process runs."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end, and return the exit status; raises subprocess.TimeoutExpired."""
        if not self._has_ended.wait(timeout):
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        return self.returncode or 0

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


class Launcher:
    """The client of the process that forks, which ends with the tests."""

    def __init__(self, root: Path) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._processes: dict[int, LaunchedProcess] = {}
        self._started: list[LaunchedProcess] = []
        self._has_started = threading.Condition()
        with theirs:
            self._launcher = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                cwd=root,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        threading.Thread(target=self._receive, daemon=True).start()
        atexit.register(self._end)

    def launch(
        self, command: Sequence[str], environ: Mapping[str, str], output: BinaryIO
    ) -> LaunchedProcess:
        """Start a process in a session of its own, with `output` as its stdout and stderr."""
        request = json.dumps([*command, environ]).encode()
        with self._has_started:
            socket.send_fds(self._socket, [request], [output.fileno()])
            assert self._has_started.wait_for(lambda: self._started, 60), "the launcher died"
            return self._started.pop()

    def _end(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._launcher.wait()

    def _receive(self) -> None:
        while answer := self._socket.recv(ANSWER_BYTES):
            pid, status = json.loads(answer)
            with self._has_started:
                if status is not None:
                    self._processes.pop(pid).end(status)
                    continue
                process = self._processes[pid] = LaunchedProcess(pid)
                self._started.append(process)
                self._has_started.notify()


@cache
def launcher(root: Path) -> Launcher:
    """Return the launcher of a checkout; the first call starts it."""
    return Launcher(root)


def fork_for_requests(connection: socket.socket) -> list[str]:
    """Fork for each request, and report each exit status; return the command in each child.

    The process ends when the tests have closed the connection.
    """
    pids: dict[int, int] = {}  # by their descriptors
    with selectors.DefaultSelector() as selector:
        selector.register(connection.fileno(), selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fd != connection.fileno():
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    pid, status = os.waitpid(pids.pop(key.fd), 0)
                    answer(connection, pid, os.waitstatus_to_exitcode(status))
                    continue
                request, outputs, _, _ = socket.recv_fds(connection, REQUEST_BYTES, 1)
                if not request:
                    sys.exit()
                if not (pid := os.fork()):
                    break
                os.close(outputs[0])
                descriptor = os.pidfd_open(pid)
                pids[descriptor] = pid
                selector.register(descriptor, selectors.EVENT_READ)
                answer(connection, pid, None)
            else:
                continue
            break
    for descriptor in (connection.detach(), *pids):
        os.close(descriptor)
    os.setsid()
    for stream in (1, 2):
        os.dup2(outputs[0], stream)
    os.close(outputs[0])
    command: list[str]
    *command, environ = json.loads(request)
    os.environ.clear()
    os.environ.update(environ)
    return command


def answer(connection: socket.socket, pid: int, status: int | None) -> None:
    """Tell the tests that a process has started, or its exit status; they may have ended."""
    with contextlib.suppress(OSError):
        connection.send(json.dumps([pid, status]).encode())


if __name__ == "__main__":
    del sys.path[0]  # this directory's modules are not for the service
    for name in PRELOADED:
        importlib.import_module(name)
    sys.argv = fork_for_requests(socket.socket(fileno=int(sys.argv[1])))
    faulthandler.enable()  # as PYTHONFAULTHANDLER does
    runpy.run_path(sys.argv[0], run_name="__main__")
