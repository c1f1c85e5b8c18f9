"""Start the real service on a free port of 127.0.0.1, send it requests, and read its files."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

from tests.support.launcher import SERVICE, LaunchedProcess, launch

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

T = TypeVar("T")

ROOT = Path(__file__).parent.parent.parent
TOKEN = "test-token"

#: Seconds to wait for what should come soon; an upper bound that a slow machine needs.
TIMEOUT_SECONDS = 30.0

#: The same for a start, which loads all code: an overloaded machine once took more than 30.
START_SECONDS = 90.0

#: Seconds within which a service that hangs writes its stack.
STACK_SECONDS = 2.0

#: What the system calls the process that compresses.
COMPRESSOR_NAME = "astralog-zstd"

#: The program that serves and reports blocked hubs, and its argument.
MONITORED = (str(Path(__file__).with_name("blocked_hub.py")), "wsgi:app")

#: What the service says when it listens: its port, and how many workers it has.
STARTED = re.compile(r"listening on https?://127\.0\.0\.1:([0-9]+), ([0-9]+) workers?\b")


def heed_signals() -> None:
    """Handle the signals that a shell lets its background jobs ignore.

    Processes started by this one would ignore them too, until they set their own handlers.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN:
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)


#: Seconds between two checks of a condition that is waited for.
SHORTEST_PAUSE_SECONDS = 0.02
LONGEST_PAUSE_SECONDS = 0.2


class Answer(NamedTuple):
    """A response: `body` is its parsed JSON, or None."""

    status: int
    headers: http.client.HTTPMessage
    raw: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.raw) if self.raw else None


class Service:
    """One running service with its own data directory.

    `settings` are the settings' names without their prefix: `Service(path, workers=1)`.
    """

    #: The checkout that is started, and the descriptors that it inherits.
    root = ROOT
    inherited: tuple[int, ...] = ()

    #: Whether a hub that is blocked fails the test.
    is_monitored = True

    def __init__(self, directory: Path, **settings: object) -> None:
        self.data_dir = Path(str(settings.get("data_dir", directory / "data")))
        self._log_path = directory / "stderr.log"
        self._blocked_path = directory / "blocked-hubs.log"
        defaults = {
            "bind": "127.0.0.1:0",
            "tokens": TOKEN,
            "data_dir": self.data_dir,
            "workers": 1,
            "min_free_bytes": 0,
        }
        self._environ = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("ASTRALOG_", "GUNICORN_"))
        }
        self._environ["PYTHONFAULTHANDLER"] = "1"
        self._environ.pop("PYTHONDONTWRITEBYTECODE", None)  # hundreds of starts shall be fast
        self._environ["BLOCKED_HUB_FILE"] = str(self._blocked_path)
        for name, value in {**defaults, **settings}.items():
            if value is not None:
                self._environ["ASTRALOG_" + name.upper()] = str(value)
        self.address = ("127.0.0.1", 0)
        self.process: LaunchedProcess | subprocess.Popen[bytes]
        self.workers = 0  #: How many there are to be, as the service said when it started.

    def start(self) -> Self:
        """Start the service and return when it and its workers are ready."""
        self.launch()
        return self.wait_until_listening()

    def wait_until_listening(self) -> Self:
        """Return when the launched service and its workers are ready."""
        match = wait_for(self._started, START_SECONDS)
        self.address = ("127.0.0.1", int(match[1]))
        self.workers = int(match[2])
        if self._environ.get("ASTRALOG_COMPRESS") == "zstd":
            wait_for(self.compressor_pid)  # until it has its name, it looks like a worker
        self.wait_for_workers()
        return self

    def fail_to_start(self) -> int:
        """Start the service, which must end by itself, and return its exit status."""
        self.launch()
        try:
            return self.wait()
        finally:
            self.kill()

    def launch(self) -> None:
        """Start the service and return at once."""
        with self._log_path.open("ab") as log:
            self._log_start = log.tell()
            if self._can_fork():
                self.process = launch(ROOT, SERVICE, MONITORED, self._environ, log)
                return
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.root,
                env=self._environ,
                pass_fds=self.inherited,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def command(self) -> list[str]:
        """Return the command that starts the service; its process is the master's."""
        if self.is_monitored:
            return [sys.executable, *MONITORED]
        return [str(Path(sys.executable).parent / "gunicorn"), "wsgi:app"]

    def _can_fork(self) -> bool:
        """Return whether a fork of the launcher is the same as the command."""
        is_plain = type(self).command is Service.command and self.is_monitored
        is_here = self.root == ROOT and not self.inherited
        return is_plain and is_here

    def _started(self) -> re.Match[str] | None:
        if self.process.poll() is not None:
            raise AssertionError(f"the service did not start:\n{self.log()}")
        return STARTED.search(self.log())

    def log(self) -> str:
        """Return the service's stdout and stderr since its last start."""
        return self._log_path.read_bytes()[self._log_start :].decode()

    def connect(self, timeout: float = TIMEOUT_SECONDS) -> socket.socket:
        """Return a bare connection to the service."""
        return socket.create_connection(self.address, timeout)

    def open_connection(self, timeout: float) -> http.client.HTTPConnection:
        """Return a connection that speaks HTTP to the service."""
        return http.client.HTTPConnection(*self.address, timeout=timeout)

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        timeout: float = TIMEOUT_SECONDS,
    ) -> Answer:
        """Send one request on a new connection."""
        connection = self.open_connection(timeout)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def exchange(self, data: bytes, half_close: bool = False) -> Answer:
        """Send bytes unchanged, perhaps with nothing to follow, and read the response."""
        with self.connect() as connection:
            connection.sendall(data)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            return read_answer(connection)

    def drain(self, body: Any, headers: dict[str, str] | None = None, **kwargs: Any) -> Answer:
        """POST a body to /v1/drain with the token.

        A batch is sent as JSON, bytes unchanged, and an iterator of bytes in chunks.
        """
        if isinstance(body, dict):
            body = json.dumps(body).encode()
        headers = {"Authorization": TOKEN, **(headers or {})}
        return self.request("POST", "/v1/drain", body, headers, **kwargs)

    def worker_pids(self) -> list[int]:
        """Return the processes of the workers, oldest first."""
        return [pid for pid in self._children() if process_name(pid) != COMPRESSOR_NAME]

    def compressor_pid(self) -> int | None:
        """Return the compressor's process id; None if there is none, or it is starting."""
        pids = (pid for pid in self._children() if process_name(pid) == COMPRESSOR_NAME)
        return next(pids, None)

    def _children(self) -> list[int]:
        pid = self.process.pid
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def wait_for_workers(self, other_than: Iterable[int] = ()) -> None:
        """Return when the configured number of workers runs, none of them of those given."""
        others = set(other_than)
        wait_for(lambda: self._has_workers(others))

    def _has_workers(self, others: set[int]) -> bool:
        pids = self.worker_pids()
        return len(pids) == self.workers and others.isdisjoint(pids)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the master."""
        self.process.send_signal(number)

    def reload(self) -> None:
        """Replace the workers, and return when the old ones have ended."""
        before = self.worker_pids()
        self.signal(signal.SIGHUP)
        self.wait_for_workers(other_than=before)

    def kill_worker(self, pid: int) -> None:
        """Kill a worker."""
        assert pid in self.worker_pids()
        os.kill(pid, signal.SIGKILL)

    def wait(self, timeout: float = TIMEOUT_SECONDS) -> int:
        """Wait for the master's end and return its exit status; a hanging one dumps its stacks."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            state = Path(f"/proc/{self.process.pid}/status").read_text()
            self.signal(signal.SIGABRT)  # faulthandler's
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STACK_SECONDS)
            raise AssertionError(f"the service did not end:\n{state}\n{self.log()}") from None

    def stop(self) -> int:
        """Stop the service as an operator would, and return its exit status."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """Kill every process of the service.

        Raises AssertionError if one of its hubs was blocked.
        """
        with contextlib.suppress(ProcessLookupError):  # all have ended
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(TIMEOUT_SECONDS)
        wait_for(lambda: not self.pids())
        if self._blocked_path.exists():
            raise AssertionError(self._blocked_path.read_text())

    def pids(self) -> list[int]:
        """Return every running process of the service, also without its master."""
        return running_pids(self.process.pid)

    def files(self, pattern: str = "*.ndjson*") -> list[Path]:
        """Return the segment files, oldest first."""
        return sorted(self.data_dir.glob(pattern))

    def content(self) -> bytes:
        """Return the content of all segment files."""
        return b"".join(map(read_segment, one_form_each(self.files())))

    def logs(self) -> list[dict[str, Any]]:
        """Return every stored log; a line that is incomplete, or not JSON, raises."""
        return list(read_logs(self.files()))

    def has_orphans(self) -> bool:
        """Return whether there is an open segment whose process has ended."""
        running = set(running_pids())
        return any(segment_pid(path) not in running for path in self.files("*.open"))

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()


def one_form_each(paths: Iterable[Path]) -> list[Path]:
    """Return one file of each segment, which has two while it is compressed."""
    forms = {path.name.removesuffix(".zst"): path for path in sorted(paths, reverse=True)}
    return [forms[name] for name in sorted(forms)]


def read_segment(path: Path) -> bytes:
    """Return the lines of a segment file, in its current form."""
    sealed = path.with_name(path.name.removesuffix(".open"))
    for form in (path, sealed, sealed.with_name(sealed.name + ".zst")):
        with contextlib.suppress(FileNotFoundError):
            content = form.read_bytes()
            return zstd.decompress(content) if form.suffix == ".zst" else content
    raise FileNotFoundError(path)


def read_logs(paths: list[Path]) -> Iterator[dict[str, Any]]:
    """Yield every log of the segment files; a line that is incomplete, or not JSON, raises."""
    for path in one_form_each(paths):
        content = read_segment(path)
        assert not content or content.endswith(b"\n"), f"{path} ends in half a line"
        for line in content.split(b"\n")[:-1]:
            yield json.loads(line)


def write_tokens(path: Path, content: str | bytes) -> Path:
    """Write a tokens file that last changed a while ago, so that it is read at once."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    now = time.time()
    os.utime(path, (now, now - 60))
    return path


def make_log(**fields: Any) -> dict[str, Any]:
    """Return a valid log with some of its fields replaced."""
    log = {
        "project_id": "org-xyz",
        "timestamp": "2024-05-31T15:30:45Z",
        "level": "info",
        "service": "api-gateway",
        "message": "User logged in",
        "metadata": {"user_id": 123, "ip": "1.1.1.1"},
    }
    return log | fields


def make_batch(*messages: str) -> dict[str, Any]:
    """Return a batch with a log for each message."""
    return {"logs": [make_log(message=message) for message in messages]}


def status_for(service: Service, token: str) -> int:
    """Return the status of a batch with a token."""
    return service.drain(make_batch("x"), {"Authorization": token}).status


def make_head(*headers: str, token: str = TOKEN) -> bytes:
    """Return the head of a POST to /v1/drain."""
    lines = ["POST /v1/drain HTTP/1.1", "Host: localhost", f"Authorization: {token}", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def read_answer(connection: socket.socket) -> Answer:
    """Read one response from a bare connection."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    return Answer(response.status, response.headers, response.read())


def size_of(path: Path) -> int:
    """Return a file's size, or 0 if it was sealed or removed since it was listed."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def segment_pid(path: Path) -> int:
    """Return the process id in the name of a segment file."""
    return int(path.name.partition("-")[2].partition(".")[0].partition("-")[0])


def running_pids(group: int | None = None) -> list[int]:
    """Return every process that is not a zombie, of one process group if it is given."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    if group is not None:  # the system call takes far less CPU than the file
        pids = [pid for pid in pids if belongs_to(pid, group)]
    return [pid for pid in pids if process_group(pid)]


def belongs_to(pid: int, group: int) -> bool:
    """Return whether a process, or a zombie, belongs to a process group."""
    with contextlib.suppress(ProcessLookupError):
        return os.getpgid(pid) == group
    return False


def process_name(pid: int) -> str:
    """Return the system's name of a process, or nothing if it has ended."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def process_group(pid: int) -> int | None:
    """Return a process's group, or None if it has ended or is a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, _, group = stat.rpartition(")")[2].split()[:3]
    return None if state in "ZX" else int(group)


def wait_for_growth(count: Callable[[], int], growth: int) -> None:
    """Return when a count has grown so much; each step of 1 may take TIMEOUT_SECONDS."""
    start = count()
    for enough in range(start + 1, start + growth + 1):
        wait_for(lambda: count() >= enough)  # noqa: B023  # called at once


def wait_for(condition: Callable[[], T | None], timeout: float = TIMEOUT_SECONDS) -> T:
    """Return the result of `condition` once it is true; AssertionError after `timeout` seconds."""
    start = time.monotonic()
    while True:
        result = condition()
        if result:
            return result
        waited = time.monotonic() - start
        assert waited < timeout, "waited in vain"
        # A condition may take CPU of the service: a long wait asks less often.
        time.sleep(min(max(SHORTEST_PAUSE_SECONDS, waited / 10), LONGEST_PAUSE_SECONDS))
