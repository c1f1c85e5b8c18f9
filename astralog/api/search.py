"""GET /v1/search: stored logs as NDJSON, newest first, or a stream of new logs."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from urllib.parse import urlencode

from flask import Blueprint, Response, request
from gevent.event import Event

from astralog.api.responses import private_response
from astralog.auth import Tokens
from astralog.errors import Cause, Rejection
from astralog.intake.body import Environ
from astralog.intake.options import bad_parameter, parse_query
from astralog.settings import Settings
from astralog.store.merge import NOTHING, Remaining
from astralog.threads import OneAtATime
from astralog.tokens_file import Scope, Token
from astralog.view.log_filter import LogFilter, is_empty_range, parse_field, parse_moment
from astralog.view.log_search import MAX_PAGE_BYTES, Found, LogSearch, LogStream

PATH = "/v1/search"
NDJSON = "application/x-ndjson"

#: The parameters of the query.
PARAMETERS = (
    *("q", "project", "service", "level", "since", "until", "field"),
    *("n", "before", "follow"),
)

#: Logs of a response by default, and at most.
DEFAULT_LOGS = 100
MAX_LOGS = 1000

#: Seconds of one slot of a search, and maximum seconds of a response.
TURN_SECONDS = 0.25
ANSWER_SECONDS = 5.0

#: The problem of a parameter whose cursor was made by another node or before the last start.
INVALID_CURSOR = (
    "is not a valid cursor. Cursors expire when the service restarts or reloads; omit the parameter"
)

#: The cause of a rejection for a disk that fails while logs are read.
UNREADABLE = Cause("storage_failed", "The logs cannot be read now; retry later.")


# --- Streams of new logs

#: Concurrent streams per worker. Beyond it: 503.
MAX_STREAMS = 8

#: Seconds after which a stream ends; its client opens another one.
STREAM_SECONDS = 300.0

#: Seconds between two polls of the directory, and maximum seconds of one poll.
STREAM_POLL_SECONDS = 0.5
STREAM_TURN_SECONDS = 0.1

#: Seconds without a log after which a blank line shows that the connection lives. The stream of a
#: client that is gone ends at the second one, since the first is answered by a reset.
HEARTBEAT_SECONDS = 2.0
HEARTBEAT = b" \n"


class Streams:
    """The streams of a worker, each for a limited time; `stop` ends them all."""

    def __init__(self) -> None:
        self.is_stopping = Event()
        self.count = 0

    def stop(self) -> None:
        """End all streams within STREAM_POLL_SECONDS, plus the slot that is in use."""
        self.is_stopping.set()

    def open(
        self, turns: OneAtATime, directory: Path, wanted: LogFilter, is_granted: Callable[[], bool]
    ) -> Response:
        """Return the response that streams while it is granted; raises Rejection and OSError."""
        if self.count >= MAX_STREAMS:
            message = f"This worker has {MAX_STREAMS} streams of logs already; retry later."
            raise Rejection("search_busy", message)
        logs = LogStream(directory, wanted)
        with ExitStack() as at_end:  # of the response, or at an error before it
            self.count += 1
            at_end.callback(self._forget)
            at_end.callback(turns.run_later, logs.close)  # once no slot uses the files
            turns.run(logs.start)
            response = private_response(self._items(turns, logs, is_granted), NDJSON)
            response.call_on_close(at_end.pop_all().close)
        return response

    def _forget(self) -> None:
        self.count -= 1

    def _items(
        self, turns: OneAtATime, logs: LogStream, is_granted: Callable[[], bool]
    ) -> Iterator[bytes]:
        """Yield new lines and heartbeats; the first item makes the server send the head."""
        yield HEARTBEAT
        sent_at = time.monotonic()
        end = sent_at + STREAM_SECONDS
        while not self.is_stopping.wait(STREAM_POLL_SECONDS):
            if time.monotonic() >= end or not is_granted():
                return
            try:
                lines = turns.run(logs.read, STREAM_TURN_SECONDS)
            except Rejection:  # others had their turns; the lines come with the next poll
                lines = []
            if lines:
                yield b"".join(line + b"\n" for line in lines)
            elif time.monotonic() - sent_at >= HEARTBEAT_SECONDS:
                yield HEARTBEAT
            else:
                continue
            sent_at = time.monotonic()


# --- The view


def create_blueprint(settings: Settings, tokens: Tokens, streams: Streams) -> Blueprint:
    blueprint = Blueprint("search", __name__)
    logs = LogSearch(settings.data_dir, tokens.secret)
    turns = OneAtATime("search_busy")

    @blueprint.get(PATH)
    def search() -> Response:
        token = tokens.authorize(request.environ, Scope.READ)
        query = parse_query(request.environ["QUERY_STRING"], PARAMETERS)
        wanted = filter_of(token, query)
        try:
            if _is_following(query):
                is_granted = partial(_has_token, tokens, request.environ, token)
                return streams.open(turns, settings.data_dir, wanted, is_granted)
            found = _collect(turns, logs, wanted, _parse_number(query), _parse_cursor(logs, query))
        except OSError:
            raise Rejection(*UNREADABLE) from None
        response = private_response(b"".join(line + b"\n" for line in found.lines), NDJSON)
        if found.rest is not None:
            following = urlencode(query | {"before": logs.seal(found.rest)})
            response.headers["Link"] = f'<{PATH}?{following}>; rel="next"'
        if token.projects is None:  # the sizes of other projects' logs are in it
            response.headers["Searched-Bytes"] = str(found.file_bytes)
        if found.unreadable:
            response.headers["Unreadable-Segments"] = str(found.unreadable)
        return response

    return blueprint


def _has_token(tokens: Tokens, environ: Environ, token: Token) -> bool:
    """Return whether a request still has this token, with the same grants."""
    try:
        return tokens.authorize(environ, Scope.READ) == token
    except Rejection:
        return False


def filter_of(token: Token, query: dict[str, str]) -> LogFilter:
    """Return the filter of a query, limited to the token's projects; raises Rejection."""
    projects = token.projects
    if (asked := query.get("project")) is not None:
        projects = {asked} if projects is None or asked in projects else set()
    since, until = (_parse_moment(query, name) for name in ("since", "until"))
    if is_empty_range(since, until):
        raise Rejection("bad_request", "since is later than until.")
    return LogFilter(
        projects,
        {query["service"]} if "service" in query else None,
        query.get("level"),
        query.get("q"),
        since,
        until,
        _parse_field(query),
    )


def _parse_moment(query: dict[str, str], name: str) -> str | None:
    try:
        return parse_moment(query[name]) if name in query else None
    except ValueError as error:
        hint = " In a URL, + is written as %2B." if " " in query[name] else ""
        raise Rejection("bad_request", f"{name}: {error}{hint}") from None


def _parse_field(query: dict[str, str]) -> tuple[tuple[str, str], ...]:
    try:
        return (parse_field(query["field"]),) if "field" in query else ()
    except ValueError as error:
        raise bad_parameter("field", str(error)) from None


def _is_following(query: dict[str, str]) -> bool:
    if query.get("follow", "false") not in ("true", "false"):
        raise bad_parameter("follow", "must be 'true' or 'false'")
    is_following = query.get("follow") == "true"
    if is_following and ("n" in query or "before" in query):
        raise Rejection("bad_request", "follow=true cannot be combined with n or before.")
    return is_following


def _parse_number(query: dict[str, str]) -> int:
    text = query.get("n", str(DEFAULT_LOGS))
    if not (text.isascii() and text.isdecimal() and len(text) < 9 and 0 < int(text) <= MAX_LOGS):
        raise bad_parameter("n", f"must be a number from 1 to {MAX_LOGS}")
    return int(text)


def _parse_cursor(logs: LogSearch, query: dict[str, str]) -> Remaining | None:
    try:
        return logs.open(query["before"]) if "before" in query else None
    except ValueError:
        raise bad_parameter("before", INVALID_CURSOR) from None


def _collect(
    turns: OneAtATime, logs: LogSearch, wanted: LogFilter, limit: int, rest: Remaining | None
) -> Found:
    """Search in slots until there are enough logs, or the time of the response is over."""
    end = time.monotonic() + ANSWER_SECONDS
    found = Found([], rest, 0, 0)
    while True:
        left = limit - len(found.lines)
        try:
            more = turns.run(logs.find, wanted, left, TURN_SECONDS, found.rest)
        except Rejection:
            if not found.file_bytes:
                raise
            return found
        found = Found(
            found.lines + more.lines,
            more.rest,
            found.file_bytes + more.file_bytes,
            found.unreadable + more.unreadable,
        )
        size = sum(map(len, found.lines))
        is_enough = len(found.lines) >= limit or size >= MAX_PAGE_BYTES
        if is_enough and found.rest is None:
            # whether there is more depends on the logs of other projects
            return found._replace(rest=NOTHING)
        if found.rest is None or is_enough or time.monotonic() >= end:
            return found
