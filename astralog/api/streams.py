"""GET /v1/search?follow=true: a stream of new logs, for a limited time."""

import time
from collections.abc import Iterator
from pathlib import Path

from flask import Response
from gevent.event import Event

from astralog.api.turns import OneAtATime
from astralog.errors import Rejection
from astralog.view.log_filter import LogFilter
from astralog.view.log_search import LogStream

#: Concurrent streams per worker. Beyond it: 503.
MAX_STREAMS = 8

#: Seconds after which a stream ends; its client opens another one.
STREAM_SECONDS = 300.0

#: Seconds between two polls of the directory, and maximum seconds of one poll.
POLL_SECONDS = 0.5
TURN_SECONDS = 0.1

#: Seconds without a log after which a blank line shows that the connection lives.
HEARTBEAT_SECONDS = 10.0
HEARTBEAT = b" \n"


class Streams:
    """The streams of a worker; `stop` ends them all."""

    def __init__(self) -> None:
        self.is_stopping = Event()
        self.count = 0

    def stop(self) -> None:
        """End all streams within POLL_SECONDS, plus the slot that is in use."""
        self.is_stopping.set()

    def open(self, turns: OneAtATime, directory: Path, wanted: LogFilter) -> Response:
        """Return the response that streams; raises Rejection and OSError."""
        if self.count >= MAX_STREAMS:
            message = f"This worker has {MAX_STREAMS} streams of logs already; retry later."
            raise Rejection("search_busy", message)
        self.count += 1
        stream = _Stream(self, turns, LogStream(directory, wanted))
        try:
            turns.run(stream.logs.start)
        except BaseException:
            stream.close()
            raise
        response = Response(stream.items())
        response.call_on_close(stream.close)
        return response


class _Stream:
    """One stream, from its request to the end of its response."""

    def __init__(self, streams: Streams, turns: OneAtATime, logs: LogStream) -> None:
        self.logs = logs
        self._streams = streams
        self._turns = turns
        self._is_closed = False

    def items(self) -> Iterator[bytes]:
        """Yield new lines and heartbeats; the first item makes the server send the head."""
        yield HEARTBEAT
        sent_at = time.monotonic()
        end = sent_at + STREAM_SECONDS
        while not self._streams.is_stopping.wait(POLL_SECONDS) and time.monotonic() < end:
            lines = self._poll()
            if lines:
                yield b"".join(line + b"\n" for line in lines)
            elif time.monotonic() - sent_at >= HEARTBEAT_SECONDS:
                yield HEARTBEAT
            else:
                continue
            sent_at = time.monotonic()

    def close(self) -> None:
        """Close the files once no slot uses them; another stream may then be opened."""
        if not self._is_closed:
            self._is_closed = True
            self._streams.count -= 1
            self._turns.run_later(self.logs.close)

    def _poll(self) -> list[bytes]:
        try:
            return self._turns.run(self.logs.read, TURN_SECONDS)
        except Rejection:  # others had their turns; the lines come with the next poll
            return []
