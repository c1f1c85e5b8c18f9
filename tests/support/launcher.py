"""Start services and forwards as forks of a process that has imported their code.

The import takes at least half of the CPU of a start, and the tests start hundreds of both. A
process of the launcher is in the same state as one of `python blocked_hub.py wsgi:app`, or of
`astralog forward`, except that the garbage collector leaves the imported objects alone.
"""

import atexit
import contextlib
import ctypes
import faulthandler
import gc
import importlib
import json
import os
import runpy
import selectors
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO

#: Imported before the forks: no module of them reads a setting, or starts a thread.
SERVICE = (
    "gunicorn.app.wsgiapp",
    "gunicorn.glogging",
    "astralog.app",
    "astralog.server.start",
    "astralog.server.master",
    "astralog.server.compressor",
    "gevent.local",
    "gevent.select",
    "gevent.selectors",
    "gevent.subprocess",
)
FORWARD = ("astralog.cli", "astralog.forward.forwarder")

#: Bytes of a request, which is a command and its environment, and of an answer.
REQUEST_BYTES = 1 << 17
ANSWER_BYTES = 100

#: Seconds within which a process is forked, the launcher's own imports included.
START_SECONDS = 60


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

    def __init__(self, root: Path, modules: Sequence[str], preloaded: str | None) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._processes: dict[int, LaunchedProcess] = {}
        self._started: SimpleQueue[LaunchedProcess] = SimpleQueue()
        self._lock = threading.Lock()
        with theirs:
            self._launcher = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno()), *modules],
                cwd=root,
                env=os.environ | ({"LD_PRELOAD": preloaded} if preloaded else {}),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        threading.Thread(target=self._receive, daemon=True).start()
        atexit.register(self._end)

    def launch(
        self, command: Sequence[str], environ: Mapping[str, str], output: BinaryIO
    ) -> LaunchedProcess:
        """Start a process in a new session, with `output` as its stdout and stderr."""
        request = json.dumps([*command, environ]).encode()
        with self._lock:
            socket.send_fds(self._socket, [request], [output.fileno()])
            return self._started.get(timeout=START_SECONDS)

    def _end(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._launcher.wait()

    def _receive(self) -> None:
        while answer := self._socket.recv(ANSWER_BYTES):
            pid, status = json.loads(answer)
            if status is None:
                process = self._processes[pid] = LaunchedProcess(pid)
                self._started.put(process)
            else:
                self._processes.pop(pid).end(status)


@cache
def launcher(root: Path, modules: Sequence[str], preloaded: str | None) -> Launcher:
    """Return the launcher of a checkout with these modules and, if given, a preloaded library.

    The first call starts it.
    """
    return Launcher(root, modules, preloaded)


def launch(
    root: Path,
    modules: Sequence[str],
    command: Sequence[str],
    environ: Mapping[str, str],
    output: BinaryIO,
) -> LaunchedProcess:
    """Start a process with the launcher of these modules; see `Launcher.launch`."""
    return launcher(root, modules, environ.get("LD_PRELOAD")).launch(command, environ, output)


def fork_for_requests(connection: socket.socket) -> list[str]:
    """Fork for each request, and report each exit status; return the command in each child.

    The process ends when the tests have closed the connection.
    """
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.data:  # the pid of a process that has ended
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    _, status = os.waitpid(key.data, 0)
                    answer(connection, key.data, os.waitstatus_to_exitcode(status))
                elif command := _fork(connection, selector):
                    return command


def _fork(connection: socket.socket, selector: selectors.BaseSelector) -> list[str] | None:
    """Receive a request and fork; return its command in the child, and None in the parent."""
    request, outputs, _, _ = socket.recv_fds(connection, REQUEST_BYTES, 1)
    if not request:
        sys.exit()
    output = outputs[0]
    if pid := os.fork():
        os.close(output)
        selector.register(os.pidfd_open(pid), selectors.EVENT_READ, pid)
        answer(connection, pid, None)
        return None
    for key in selector.get_map().values():
        if key.data:
            os.close(key.fd)
    connection.close()
    os.setsid()
    for stream in (1, 2):
        os.dup2(output, stream)
    os.close(output)
    command: list[str]
    *command, environ = json.loads(request)
    os.environ.clear()
    os.environ.update(environ)
    return command


def cache_plugins() -> None:
    """Find the plugins of gevent once, in place of thirty times as it patches a worker.

    Each time it reads the metadata of every installed package: with the packages of the tests, half
    of the CPU of a worker's start.
    """
    events = importlib.import_module("gevent.events")
    metadata.entry_points = cache(metadata.entry_points)  # type: ignore[assignment]
    for group in {getattr(event, "ENTRY_POINT_NAME", "") for event in vars(events).values()}:
        metadata.entry_points(group=group)


def defer_url_builders() -> None:
    """Let werkzeug compile the two functions that build a rule's URLs when they are called.

    The service calls none of them, and they take more than half of the CPU of `create_app`.
    """
    rule = importlib.import_module("werkzeug.routing.rules").Rule
    compile_builder = rule._compile_builder

    def compile_later(rule: Any, append_unknown: bool = True) -> Callable[..., tuple[str, str]]:
        def build(self: Any, **values: Any) -> tuple[str, str]:
            built: tuple[str, str] = compile_builder(rule, append_unknown)(self, **values)
            return built

        return build

    rule._compile_builder = compile_later


def answer(connection: socket.socket, pid: int, status: int | None) -> None:
    """Tell the tests that a process has started, or its exit status; they may have ended."""
    with contextlib.suppress(OSError):
        connection.send(json.dumps([pid, status]).encode())


if __name__ == "__main__":
    del sys.path[0]  # this directory's modules are not for the service
    for name in sys.argv[2:]:
        importlib.import_module(name)
    if "gevent" in sys.modules:
        cache_plugins()
    if "werkzeug" in sys.modules:
        defer_url_builders()
    gc.collect()
    gc.freeze()  # gevent looks for held locks in each worker, which here takes half of its start
    sys.argv = fork_for_requests(socket.socket(fileno=int(sys.argv[1])))
    atexit.register(gc.unfreeze)  # the interpreter's end collects imported objects first, as usual
    if "PYTHONFAULTHANDLER" in os.environ:
        faulthandler.enable()
    if "FAULTS_CONTROL" in os.environ:  # of the preloaded tests/faults/shim.c
        ctypes.CDLL(os.environ["LD_PRELOAD"]).start_faults()
    runpy.run_path(sys.argv[0], run_name="__main__")
