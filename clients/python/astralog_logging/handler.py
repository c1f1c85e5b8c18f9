"""A handler for `logging` that sends records to AstraLog; it needs only the standard library.

    handler = AstraLogHandler(
        "http://localhost:8080", token_file="data/token", project_id="org-xyz", service="billing"
    )
    logging.getLogger().addHandler(handler)

This file also works alone: copy it into your program.
"""

from __future__ import annotations

import email.utils
import encodings.idna  # noqa: F401  # half imported by a thread, it would stay so in a forked child
import gzip
import http.client
import json
import logging
import math
import os
import random
import secrets
import signal
import ssl
import sys
import threading
import time
import urllib.parse
import weakref
from collections import deque
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import cache, partial
from typing import Any, NamedTuple

__version__ = "0.1.0"

MIB = 1024 * 1024

#: Bytes of a batch before compression; a longer log is a batch by itself.
BATCH_BYTES = MIB

#: Measured on logs of 240 bytes: level 6 takes 1.5 µs per log instead of 0.6, for a tenth fewer
#: bytes.
GZIP_LEVEL = 1

#: Bytes of a response that are read; those of the service are far shorter.
ANSWER_BYTES = 256 * 1024

#: A connection idle for longer is reopened: the service, or a proxy, may be about to close it.
IDLE_SECONDS = 30.0

#: Wait before a batch is sent again: the first, doubled with each try up to the longest, and less
#: a random part of up to a half, so that many senders do not come back at once.
FIRST_BACKOFF_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 30.0

#: A longer Retry-After is ignored as a mistake.
LONGEST_RETRY_AFTER_SECONDS = 300.0

#: Time for the thread to end when the handler is closed.
JOIN_SECONDS = 0.5

#: Each kind of trouble is reported on stderr once in this time.
REPORT_SECONDS = 60.0
REPORT_CHARACTERS = 500

#: The 4xx statuses that ask for a retry; all others are final.
RETRIED_STATUSES = {408, 409, 429}

#: Codes of a rejection that one log of a batch can cause.
LOG_CODES = {"invalid_batch", "invalid_json"}

#: Attributes that every record has, or gets from a formatter; all others came with `extra=`.
RECORD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


#: The handlers of this process, which are flushed when a signal ends it.
_handlers: weakref.WeakSet[AstraLogHandler] = weakref.WeakSet()


class AstraLogHandler(logging.Handler):
    """Send records to AstraLog in batches, from a separate thread.

    Logging never waits for the service: records wait in a queue, and those that do not fit are
    dropped and counted. `stored`, `rejected` and `dropped` count the logs of this process.
    """

    def __init__(
        self,
        url: str,
        *,
        project_id: str,
        service: str,
        token: str | None = None,
        token_file: str | os.PathLike[str] | None = None,
        batch_logs: int = 500,
        interval_seconds: float = 1.0,
        timeout_seconds: float = 10.0,
        exit_seconds: float = 5.0,
        queue_bytes: int = 64 * MIB,
        ssl_context: ssl.SSLContext | None = None,
        flush_at_sigterm: bool | None = None,
    ) -> None:
        """Prepare to send to `url`; a URL without a path gets /v1/drain.

        `token_file` is reread for each batch. A batch is sent at `batch_logs` logs, or when its
        first log has waited `interval_seconds`, and must be answered within `timeout_seconds`.
        `exit_seconds` bound the wait of a `flush` and of the program's end, `queue_bytes` the size
        of the queue. With `flush_at_sigterm`, a SIGTERM that the program does not handle ends it
        after a flush; None means: if uvicorn is imported. Raises ValueError for arguments that
        can never work.
        """
        super().__init__()
        if not (project_id and service):
            raise ValueError("project_id and service must not be empty")
        if min(batch_logs, interval_seconds, timeout_seconds, queue_bytes) <= 0:
            raise ValueError("limits must be above 0")
        if url.startswith("https:"):
            ssl_context = ssl_context or ssl.create_default_context()
        read_token = _token_reader(token, token_file)
        self.setFormatter(_MessageFormatter())
        self._encoder = _Encoder(project_id, service)
        self._exit_seconds = exit_seconds
        self._timed_out_at = -math.inf  # when a flush of `exit_seconds` last did
        self._make_sender: Callable[[], _Sender] = lambda: _Sender(
            _Queue(batch_logs, interval_seconds, queue_bytes),
            _Connection(url, read_token, timeout_seconds, ssl_context),
        )
        self._sender = self._make_sender()
        if hasattr(os, "register_at_fork"):
            start_anew = weakref.WeakMethod(self._start_anew)
            os.register_at_fork(after_in_child=lambda: (start := start_anew()) and start())
        _handlers.add(self)
        if "uvicorn" in sys.modules if flush_at_sigterm is None else flush_at_sigterm:
            _flush_at_sigterm()

    @property
    def stored(self) -> int:
        """Logs that the service has stored."""
        return self._sender.stored

    @property
    def rejected(self) -> int:
        """Logs that were dropped because the service rejected them."""
        return self._sender.rejected

    @property
    def dropped(self) -> int:
        """Logs that did not fit into the queue, or were left at the end."""
        return self._sender.queue.dropped

    def handle(self, record: logging.LogRecord) -> bool:
        """Emit a record that passes the filters.

        Without the handler's lock, which one thread holds at exit while it waits for the service.
        """
        passed = self.filter(record)
        if passed:
            self.emit(passed if isinstance(passed, logging.LogRecord) else record)
        return passed

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record; never wait, never raise."""
        sender = self._sender
        if sender.thread_id == threading.get_ident():
            return  # sending must not make more to send
        try:
            if not sender.queue.put(self._encoder.encode(record, self.format(record))):
                sender.report_dropped()
            elif sender.thread is None and sender.start():
                self._flush_at_end_of_child()
        except Exception:
            with suppress(Exception):
                self.handleError(record)

    # logging.Handler.flush has no timeout and returns nothing.
    def flush(self, timeout: float | None = None) -> bool:  # type: ignore[override]
        """Send all queued logs at once, and return whether all were answered in time.

        `timeout` is in seconds; None means `exit_seconds`.
        """
        is_settled = self._sender.flush(self._exit_seconds if timeout is None else timeout)
        if timeout is None and not is_settled:
            self._timed_out_at = time.monotonic()
        return is_settled

    def close(self) -> None:
        """Send the queued logs within `exit_seconds`, and end; the rest is dropped."""
        if time.monotonic() - self._timed_out_at > self._exit_seconds:
            self.flush()  # at exit, logging has just done so; a second wait would be in vain
        self._sender.close()
        super().close()

    def _flush_at_end_of_child(self) -> None:
        """Let multiprocessing flush: its children end without the functions of `atexit`."""
        multiprocessing = sys.modules.get("multiprocessing")
        if multiprocessing and multiprocessing.parent_process():
            multiprocessing.util.Finalize(None, self.flush, exitpriority=-1)

    def _start_anew(self) -> None:
        """Leave the queued logs and the connection to the parent process."""
        self._timed_out_at = -math.inf
        parent, self._sender = self._sender, self._make_sender()
        self._sender.queue.is_closed = parent.queue.is_closed
        parent.abandon()


def _flush_at_sigterm() -> None:
    """Handle SIGTERM, unless the program does so already, or this is not the main thread.

    uvicorn handles it while it runs; after its shutdown it restores the previous handler and raises
    the signal again. The default action would end the process there, without `atexit`.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        with suppress(ValueError):  # a subinterpreter may have no handlers
            signal.signal(signal.SIGTERM, _flush_and_end)
            _hold_sigterm_in_forks()


@cache
def _hold_sigterm_in_forks() -> None:
    """Block SIGTERM during each fork: a new process starts by dropping the signals it has received.

    Without that, a pool that ends its processes as soon as it has started them waits forever for
    those that have dropped the signal.
    """
    if not hasattr(os, "register_at_fork"):
        return
    forking = threading.local()

    def hold() -> None:
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        forking.was_blocked = signal.SIGTERM in blocked

    def release() -> None:
        if not forking.was_blocked:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    os.register_at_fork(before=hold, after_in_child=release, after_in_parent=release)


def _flush_and_end(number: int, frame: object) -> None:
    """Flush, then end by the same signal; a second signal does not wait for the flush."""
    signal.signal(number, signal.SIG_DFL)
    for handler in list(_handlers):
        with suppress(Exception):
            handler.close()
    signal.raise_signal(number)


class _MessageFormatter(logging.Formatter):
    """Formats only the message, since everything else has its own field.

    `logging.basicConfig` sets a formatter on handlers without one.
    """

    def format(self, record: logging.LogRecord) -> str:
        return record.getMessage()


class _Encoder:
    """Turns records into logs in JSON."""

    def __init__(self, project_id: str, service: str) -> None:
        self._project_id = project_id
        self._service = service
        self._formatter = logging.Formatter()
        self._second = (0, "1970-01-01T00:00:00")  # the last one, and how it is written
        self._encode = json.JSONEncoder(
            allow_nan=False, separators=(",", ":"), default=_to_text
        ).encode

    def encode(self, record: logging.LogRecord, message: str) -> str:
        """Return the log in JSON, of ASCII alone."""
        log = {
            "project_id": self._project_id,
            "timestamp": self._timestamp(record.created),
            "level": record.levelname.lower(),
            "service": self._service,
            "message": message,
            "metadata": self._metadata(record),
        }
        try:
            return self._encode(log)
        except Exception:  # whatever the values' own code raises, or JSON does not have
            log["metadata"] = {
                key: self._safe(value) for key, value in self._metadata(record).items()
            }
            return self._encode(log)

    def _timestamp(self, created: float) -> str:
        """Return a time in RFC 3339, to the microsecond: a record's float has no more."""
        seconds, microseconds = divmod(int(created * 1_000_000), 1_000_000)
        second = self._second
        if second[0] != seconds:
            text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
            self._second = second = (seconds, text)
        return f"{second[1]}.{microseconds:06d}Z"

    def _metadata(self, record: logging.LogRecord) -> dict[str, Any]:
        metadata = {"logger": record.name, "file": record.pathname, "line": record.lineno}
        if record.exc_text:  # a formatter of another handler has done it
            metadata["exception"] = record.exc_text
        elif record.exc_info:
            metadata["exception"] = self._formatter.formatException(record.exc_info)
        if record.stack_info:
            metadata["stack"] = record.stack_info
        fields = record.__dict__
        if not RECORD_FIELDS.issuperset(fields):
            metadata.update((key, fields[key]) for key in fields if key not in RECORD_FIELDS)
        return metadata

    def _safe(self, value: Any) -> Any:
        try:
            self._encode(value)
        except Exception:
            return _to_text(value)
        return value


def _to_text(value: Any) -> str:
    """Return a readable text for a value without a JSON form; never raise."""
    with suppress(Exception):
        return repr(value) if isinstance(value, BaseException) else str(value)
    return f"<{type(value).__name__}>"


class _Queue:
    """Logs that wait to be sent, and the number of settled ones.

    Its lock is reentrant, since a signal handler may log at any point.
    """

    def __init__(self, batch_logs: int, interval_seconds: float, max_bytes: int) -> None:
        self._batch_logs = batch_logs
        self._interval_seconds = interval_seconds
        self._max_bytes = max_bytes
        self._changed = threading.Condition(threading.RLock())
        self._logs: deque[str] = deque()
        self._bytes = 0
        self._oldest_at = 0.0  # when the first of the logs came
        self._queued = self._settled = 0  # logs so far
        self._flushed = 0  # of the logs queued, how many a flush has asked for
        self._is_hurried = False
        self.is_closed = False
        self.dropped = 0

    def put(self, log: str) -> bool:
        """Queue a log and return True, or drop it if there is no room or no more is taken."""
        with self._changed:
            size = self._bytes + len(log)
            if self.is_closed or size > self._max_bytes:
                self.dropped += 1
                return False
            if not self._logs:
                self._oldest_at = time.monotonic()
            self._logs.append(log)
            self._queued += 1
            was_small, self._bytes = self._bytes < BATCH_BYTES, size
            if len(self._logs) in (1, self._batch_logs) or (was_small and size >= BATCH_BYTES):
                self._changed.notify_all()
            return True

    def take(self) -> list[str]:
        """Return the logs of the next batch once it is due; none if the queue was closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._logs or self.is_closed)
            rest = self._oldest_at + self._interval_seconds - time.monotonic()
            self._changed.wait_for(self._is_due, max(rest, 0))
            logs: list[str] = []
            size = 0
            while self._logs and len(logs) < self._batch_logs and not self.is_closed:
                size += len(self._logs[0])
                if logs and size > BATCH_BYTES:
                    break
                self._bytes -= len(self._logs[0])
                logs.append(self._logs.popleft())
            self._oldest_at = time.monotonic()
            return logs

    def _is_due(self) -> bool:
        return (
            len(self._logs) >= self._batch_logs
            or self._bytes >= BATCH_BYTES
            or self._settled < self._flushed
            or self.is_closed
        )

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left to be sent."""
        return self.is_closed or self._settled >= self._queued

    def settle(self, logs: int) -> None:
        """Record that logs are settled."""
        with self._changed:
            self._settled += logs
            self._changed.notify_all()

    def flush(self, seconds: float) -> bool:
        """Request all queued logs at once; return whether they were settled in time."""
        with self._changed:
            asked = self._flushed = self._queued
            self._is_hurried = self._settled < asked
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._settled >= asked or self.is_closed, seconds)
            return self._settled >= asked

    def pause(self, seconds: float, at_least: float) -> bool:
        """Wait before the next try; return whether a flush cut that short, to `at_least`."""
        start = time.monotonic()
        with self._changed:
            self._changed.wait_for(lambda: self._is_hurried or self.is_closed, seconds)
            was_hurried, self._is_hurried = self._is_hurried, False
            rest = at_least - (time.monotonic() - start)
            self._changed.wait_for(lambda: self.is_closed, max(rest, 0))
        return was_hurried

    def close(self) -> int:
        """Close the queue in both directions; return the number of dropped logs."""
        with self._changed:
            left = 0 if self.is_closed else self._queued - self._settled
            self.dropped += left
            self.is_closed = True
            self._logs.clear()
            self._changed.notify_all()
            return left


class _Batch:
    """Logs, with the key and the body that stay the same for each try."""

    def __init__(self, logs: list[str]) -> None:
        self.logs = logs
        self.key = f'"{secrets.token_hex(16)}"'

    def body(self) -> bytes:
        """Return the body, the same bytes each time."""
        text = '{"logs":[' + ",".join(self.logs) + "]}"
        return gzip.compress(text.encode("ascii"), GZIP_LEVEL, mtime=0)


class _Answer(NamedTuple):
    """The response to a batch; `content` is empty if that is not a JSON object."""

    status: int
    retry_after: str | None
    content: dict[str, Any]

    @property
    def is_accepted(self) -> bool:
        """Whether AstraLog responded, and not a proxy or another page."""
        return self.status == 200 and self.content.get("status") == "accepted"

    @property
    def is_final(self) -> bool:
        """Whether a retry of the batch would get the same response."""
        return 400 <= self.status < 500 and self.status not in RETRIED_STATUSES

    @property
    def is_divisible(self) -> bool:
        """Whether a part of the batch may be accepted although the whole is not."""
        return self.status == 413 or self.content.get("code") in LOG_CODES

    def invalid_logs(self, count: int) -> Collection[int]:
        """Return the indexes of the logs that the response names as invalid."""
        errors = self.content.get("errors")
        logs = errors.get("logs") if isinstance(errors, dict) and self.status == 400 else None
        numbers = {str(number): number for number in range(count)}
        return {numbers[key] for key in logs if key in numbers} if isinstance(logs, dict) else ()

    def retry_after_seconds(self) -> float:
        """Return the least wait in seconds. Source: RFC 9110, 10.2.3."""
        text = self.retry_after or ""
        try:
            seconds = float(text) if text.isdigit() else _seconds_until(text)
        except (TypeError, ValueError, OverflowError):
            return 0.0
        return min(max(seconds, 0.0), LONGEST_RETRY_AFTER_SECONDS)

    def __str__(self) -> str:
        words = [self.content.get(name) for name in ("code", "message", "errors")]
        if not any(words):
            return f"{self.status}, not a response of AstraLog"
        return " ".join(str(word) for word in (self.status, *words) if word)


def _seconds_until(date: str) -> float:
    return email.utils.parsedate_to_datetime(date).timestamp() - time.time()


def _token_reader(
    token: str | None, token_file: str | os.PathLike[str] | None
) -> Callable[[], bytes]:
    """Return a function that returns the token; it raises OSError or ValueError without one."""
    if token is not None and token_file is None:
        return partial(_check_token, _check_token(token.encode()))
    if token_file is not None and token is None:
        return partial(_read_token_file, token_file)
    raise ValueError("either token or token_file must be given")


def _read_token_file(path: str | os.PathLike[str]) -> bytes:
    with open(path, "rb") as file:
        return _check_token(file.read())


def _check_token(token: bytes) -> bytes:
    token = token.strip()
    if not token or any(byte <= 0x20 or byte == 0x7F for byte in token):
        raise ValueError("a token must not be empty, nor hold spaces or control characters")
    return token


class _Connection:
    """A connection to the service, kept alive and reopened if it broke."""

    def __init__(
        self,
        url: str,
        read_token: Callable[[], bytes],
        timeout_seconds: float,
        ssl_context: ssl.SSLContext | None,
    ) -> None:
        parts = urllib.parse.urlsplit(url)
        is_visible = all("!" <= character <= "~" for character in url)
        if parts.scheme not in ("http", "https") or not parts.hostname or not is_visible:
            raise ValueError(f"not the URL of an HTTP service: {url!r}")
        path = parts.path if parts.path not in ("", "/") else "/v1/drain"
        self._path = f"{path}?{parts.query}" if parts.query else path
        self._read_token = read_token
        self._timeout_seconds = timeout_seconds
        self._used_at = 0.0
        self._file: tuple[int, int] | None = None  # of the connection's descriptor
        self._http = http.client.HTTPConnection(parts.hostname, parts.port)
        if parts.scheme == "https":
            self._http = http.client.HTTPSConnection(
                parts.hostname, parts.port, context=ssl_context
            )

    def post(self, batch: _Batch, seconds: float) -> _Answer:
        """Send a batch once, within `seconds` at most.

        Raises OSError, HTTPException or ValueError without a response or a token.
        """
        headers = {
            "Authorization": self._read_token(),
            "Content-Type": "application/json",
            "Content-Encoding": "gzip",
            "Idempotency-Key": batch.key,
            "User-Agent": f"astralog-client/{__version__}",
        }
        if time.monotonic() - self._used_at > IDLE_SECONDS or self._is_lost():
            self.close()
        self._http.timeout = min(seconds, self._timeout_seconds)
        if self._http.sock:
            self._http.sock.settimeout(self._http.timeout)
        try:
            answer = self._exchange(batch.body(), headers)
        except BaseException:
            self.close()
            raise
        self._used_at = time.monotonic()
        return answer

    def _connect(self) -> None:
        if self._http.sock is None:
            try:
                self._http.connect()
            except BaseException:
                self._http.close()
                raise
            self._file = self._file_of_descriptor()

    def _file_of_descriptor(self) -> tuple[int, int] | None:
        """Return an identity of the descriptor's file, None if there is none."""
        sock = self._http.sock
        try:
            status = os.fstat(sock.fileno()) if sock else None
        except OSError:
            return None
        return (status.st_dev, status.st_ino) if status else None

    def _is_lost(self) -> bool:
        """Return whether the descriptor was closed, and may belong to another file by now.

        A program that becomes a daemon closes all open descriptors, and its next file, or its
        connection to a database, gets the number.
        """
        return self._file is not None and self._file != self._file_of_descriptor()

    def _exchange(self, body: bytes, headers: dict[str, Any]) -> _Answer:
        self._connect()
        try:
            self._http.request("POST", self._path, body, headers)
        except (BrokenPipeError, ConnectionResetError):
            if self._http.sock is None:
                raise
            # The response may be there anyway: a body that is too large is not read to its end.
        response = self._http.getresponse()
        raw = response.read(ANSWER_BYTES)
        if not response.isclosed():
            self.close()
        content: Any = None
        with suppress(ValueError, RecursionError):
            content = json.loads(raw)
        retry_after = response.getheader("Retry-After")
        return _Answer(response.status, retry_after, content if isinstance(content, dict) else {})

    def close(self) -> None:
        """Close the connection, and no other file that has its number by now."""
        if self._http.sock and self._is_lost():
            self._http.sock.detach()
        self._file = None
        self._http.close()

    def abandon(self) -> None:
        """Close this process's copy of a connection that its parent may be using.

        Only the descriptor: the objects around it may be locked by a thread of the parent.
        """
        sock = self._http.sock
        if sock and not self._is_lost():
            with suppress(OSError):
                os.close(sock.detach())


class _Sender:
    """Sends queued batches one after another, from a thread that starts with the first."""

    def __init__(self, queue: _Queue, connection: _Connection) -> None:
        self.queue = queue
        self.stored = self.rejected = 0
        self.thread_id = 0  # of the thread that sends
        self._connection = connection
        self._batches: list[_Batch] = []  # taken from the queue, the next one last
        self._tries = 0
        self.thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._is_abandoned = False
        self._reported_at: dict[str, float] = {}
        self._reported_dropped = 0

    def start(self) -> bool:
        """Start the thread if there is none; return whether it was started.

        At the interpreter's end no thread can be started, so `flush` sends. Up to Python 3.11, the
        attempt would never return (cpython#87950).
        """
        if sys.is_finalizing() or not self._starting.acquire(blocking=False):
            return False
        try:
            if self.thread is None:
                thread = threading.Thread(target=self._run, name="astralog", daemon=True)
                with suppress(RuntimeError):
                    thread.start()
                    self.thread = thread
                    return True
            return False
        finally:
            self._starting.release()

    def flush(self, seconds: float) -> bool:
        """Return whether all queued logs were answered in time."""
        until = time.monotonic() + seconds
        if self.thread is None and self._starting.acquire(blocking=False):
            try:
                self.queue.flush(0)
                self._send_here(until)
            finally:
                self.thread_id = 0
                self._starting.release()
        return self.queue.flush(max(until - time.monotonic(), 0))

    def _send_here(self, until: float) -> None:
        """Send in place of the thread, which cannot be started."""
        self.thread_id = threading.get_ident()
        while not self.queue.is_settled and time.monotonic() < until:
            self._step_safely(until)

    def close(self) -> None:
        """End the thread, and drop the remaining logs."""
        left = self.queue.close()
        if left:
            self._report("closed", f"logs not stored before the end: {left}")
        if self.thread:
            self.thread.join(JOIN_SECONDS)
        else:
            self._connection.close()

    def report_dropped(self) -> None:
        """Report a log that arrived after the end; the thread reports those that do not fit."""
        if self.queue.is_closed:
            self._report("closed", "logs dropped: they came after the end")

    def abandon(self) -> None:
        """Stop sending, without any lock that a thread of another process may hold.

        The thread does not exist in this process, unless gevent made it a greenlet, which a fork
        copies: that one waits from now on, since `threading` would not let it end.
        """
        self._is_abandoned = True
        self.queue.is_closed = True
        self._connection.abandon()

    def _run(self) -> None:
        self.thread_id = threading.get_ident()
        while not self.queue.is_closed:
            self._step_safely()
        self._connection.close()
        if self._is_abandoned:
            threading.Event().wait()

    def _step_safely(self, until: float = math.inf) -> None:
        """Limit an unexpected error to one batch."""
        try:
            self.step(until)
        except Exception as error:
            self._give_up(f"{type(error).__name__}: {error}")

    def step(self, until: float = math.inf) -> None:
        """Send one batch once it is due, and wait before a retry."""
        if self.queue.dropped > self._reported_dropped:
            self._reported_dropped = self.queue.dropped
            self._report(
                "full", f"logs dropped so far, the queue is full: {self._reported_dropped}"
            )
        if not self._batches:
            logs = self.queue.take()
            if not logs:
                return
            self._batches.append(_Batch(logs))
        try:
            answer = self._connection.post(self._batches[-1], until - time.monotonic())
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._pause(f"{type(error).__name__}: {error}", 0.0, until)
        else:
            self._settle(answer, until)

    def _settle(self, answer: _Answer, until: float) -> None:
        """Settle, split, drop or retry the batch according to its response."""
        logs = self._batches[-1].logs
        invalid = answer.invalid_logs(len(logs))
        half = len(logs) // 2
        if answer.is_accepted:
            self._count_stored(len(logs), answer)
            self._replace()
        elif invalid:
            self._reject(len(invalid), str(answer))
            self._replace([log for index, log in enumerate(logs) if index not in invalid])
        elif answer.is_divisible and half:
            self._replace(logs[:half], logs[half:])
        elif answer.is_final:
            self._give_up(str(answer))
        else:
            self._pause(str(answer), answer.retry_after_seconds(), until)

    def _count_stored(self, logs: int, answer: _Answer) -> None:
        rejected = answer.content.get("rejected")
        if isinstance(rejected, int) and 0 < rejected <= logs:  # the URL asks for `partial=true`
            self._reject(rejected, str(answer))
            logs -= rejected
        self.stored += logs

    def _replace(self, *parts: list[str]) -> None:
        """Continue with the rest of the batch, if any."""
        batch = self._batches.pop()
        self._batches += [_Batch(logs) for logs in reversed(parts) if logs]
        self._tries = 0
        self.queue.settle(len(batch.logs) - sum(map(len, parts)))

    def _give_up(self, reason: str) -> None:
        if self._batches:
            self._reject(len(self._batches[-1].logs), reason)
            self._replace()

    def _reject(self, logs: int, reason: str) -> None:
        self.rejected += logs
        self._report(f"rejected {reason[:3]}", f"logs given up: {logs}; {reason}")

    def _pause(self, reason: str, at_least: float, until: float) -> None:
        """Wait before the batch is sent again."""
        self._tries += 1
        if self._tries > 1:  # a connection that was closed while idle is no news
            self._report("pause", f"the service accepts no logs, retrying: {reason}")
        backoff = FIRST_BACKOFF_SECONDS * 2 ** min(self._tries - 1, 16)
        seconds = at_least + min(backoff, LONGEST_BACKOFF_SECONDS) * random.uniform(0.5, 1)  # nosec B311
        left = max(until - time.monotonic(), 0)
        if self.queue.pause(min(seconds, left), min(at_least, left)):
            self._tries = 0

    def _report(self, kind: str, text: str) -> None:
        now = time.monotonic()
        if now - self._reported_at.get(kind, -math.inf) < REPORT_SECONDS:
            return
        self._reported_at[kind] = now
        line = "".join(c if c.isprintable() else " " for c in text[:REPORT_CHARACTERS])
        with suppress(Exception):  # there may be no stderr, or a broken one
            if sys.stderr:
                print(f"AstraLogHandler: {line}", file=sys.stderr, flush=True)
