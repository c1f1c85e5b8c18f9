"""GET /status and what its page asks for: the service's numbers and its newest logs.

The page itself says nothing; what it asks for takes a token. One that is bound to projects sees
their logs and its own rejections, and nothing of the whole service but whether it is ready.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

import gevent
import msgspec
from flask import Blueprint, Response, request
from gevent.lock import Semaphore
from gevent.threadpool import ThreadPool

from astralog.api.pages import CONTENT_SECURITY_POLICY, OWN, load, send_one_of, send_page
from astralog.auth import Tokens
from astralog.clock import TrustedClock
from astralog.errors import Rejection
from astralog.intake.options import parse_query
from astralog.settings import Settings
from astralog.telemetry.overview import Overview
from astralog.threads import spawn_in_thread
from astralog.tokens_file import Scope, Token
from astralog.view.log_filter import LogFilter
from astralog.view.recent_logs import RecentLogs

FILES = ("status.css", "status.js", "numbers.js", "logs.js", "charts.js", "format.js", "icon.svg")

#: Beside what every page keeps to: no text ever becomes HTML or a script, whatever the code does.
POLICY = f"{CONTENT_SECURITY_POLICY}; require-trusted-types-for 'script'; trusted-types 'none'"

#: What the query for logs may ask for.
FILTERS = ("project", "service", "level", "q")

#: Seconds for which numbers are kept, whoever asks.
KEPT_SECONDS = 1.0

#: Looks at the logs that wait for the one under way, and for how long. Beyond it: 503.
MAX_WAITING = 50
WAIT_SECONDS = 2.0

#: Seconds that a look may take, for a disk that hangs. After it: 503.
LOOK_SECONDS = 8.0

T = TypeVar("T")


class Kept(Generic[T]):
    """A value that many ask for, and that is made once a second at most."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._lock = Semaphore()
        self._value: T | None = None
        self._until = 0.0

    def get(self) -> T:
        """Return the value; raises what making it does."""
        with self._lock:
            if self._value is None or time.monotonic() >= self._until:
                self._value = self._make()
                self._until = time.monotonic() + KEPT_SECONDS
            return self._value


class OneAtATime:
    """A thread for what waits for the disk; whoever comes while it works waits for a while."""

    def __init__(self) -> None:
        self._thread = ThreadPool(1)
        self._free = Semaphore()
        self._waiting = 0

    def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Return what the function returns; raises what it does, and Rejection `status_busy`."""
        if self._waiting >= MAX_WAITING:
            raise Rejection("status_busy")
        self._waiting += 1
        try:
            if not self._free.acquire(timeout=WAIT_SECONDS):
                raise Rejection("status_busy")
        finally:
            self._waiting -= 1
        result = spawn_in_thread(self._thread, function, *arguments)
        result.rawlink(lambda _: self._free.release())  # also if nobody waits for it any more
        try:
            outcome = result.get(timeout=LOOK_SECONDS)
        except gevent.Timeout:
            raise Rejection("status_busy", "The disk takes too long; retry later.") from None
        returned: T = outcome.get()
        return returned


def create_blueprint(
    settings: Settings, tokens: Tokens, overview: Overview, clock: TrustedClock
) -> Blueprint:
    """Return the blueprint of the page and of what it asks for."""
    blueprint = Blueprint("status", __name__)

    def authenticate() -> Token:
        return tokens.authorize(request.environ, Scope.READ)

    logs = RecentLogs(settings.data_dir, settings.max_body_bytes, tokens.secret, clock)
    _add_page(blueprint)
    _add_numbers(blueprint, authenticate, overview)
    _add_logs(blueprint, authenticate, logs)
    return blueprint


def _add_page(blueprint: Blueprint) -> None:
    page = load(OWN / "status.html")
    files = {name: load(OWN / name) for name in FILES}

    @blueprint.get("/status")
    def show_page() -> Response:
        """Show the page, which asks for a token."""
        response = send_page(page, POLICY)
        response.headers["X-Frame-Options"] = "DENY"
        response.cache_control.no_cache = True
        return response

    @blueprint.get("/status/<asset>")
    def show_asset(asset: str) -> Response:
        """Return a file of the page."""
        return send_one_of(files, asset, request.environ)


def _add_numbers(
    blueprint: Blueprint, authenticate: Callable[[], Token], overview: Overview
) -> None:
    readiness = Kept(overview.readiness)
    now = Kept(lambda: msgspec.json.encode({"projects": None, **overview.now()}))
    sample = Kept(overview.sample)
    last_hour = Kept(lambda: msgspec.json.encode(overview.last_hour(sample.get())))

    @blueprint.get("/status/data")
    def show_numbers() -> Response:
        """Show the numbers of this moment."""
        projects = authenticate().projects
        if projects is None:
            return _json(now.get())
        return _json(msgspec.json.encode({"projects": sorted(projects), **readiness.get()}))

    @blueprint.get("/status/history")
    def show_history() -> Response:
        """Show the numbers of the last hour."""
        token = authenticate()
        if token.projects is None:
            return _json(last_hour.get())
        return _json(msgspec.json.encode(overview.last_hour(sample.get(), token.name)))


def _add_logs(blueprint: Blueprint, authenticate: Callable[[], Token], logs: RecentLogs) -> None:
    disk = OneAtATime()

    @blueprint.get("/status/logs")
    def show_logs() -> Response:
        """Show the newest logs, or those that came since the last look."""
        token = authenticate()
        query = parse_query(request.environ["QUERY_STRING"], (*FILTERS, "after"))
        try:
            is_bound = token.projects is not None
            look = partial(logs.look, is_bound=is_bound)
            return _json(disk.run(look, _filter(token, query), query.get("after")))
        except ValueError:
            message = "after is no cursor since the last start or reload; omit it."
            raise Rejection("bad_request", message) from None
        except OSError:
            raise Rejection("storage_failed", "The logs cannot be read now.") from None

    @blueprint.get("/status/log")
    def show_log() -> Response:
        """Show a whole log."""
        token = authenticate()
        query = parse_query(request.environ["QUERY_STRING"], ("id",))
        line = disk.run(logs.look_at, _filter(token, {}), query.get("id", ""))
        if line is None:
            raise Rejection("not_found", "This log does not exist or can no longer be found.")
        return _json(line)


def _filter(token: Token, query: dict[str, str]) -> LogFilter:
    """Return what a token may see of what is asked for."""
    projects = token.projects
    if (asked := query.get("project")) is not None:
        projects = {asked} if projects is None or asked in projects else set()
    services = {query["service"]} if "service" in query else None
    return LogFilter(projects, services, query.get("level"), query.get("q"))


def _json(body: bytes) -> Response:
    response = Response(body, content_type="application/json")
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.cache_control.no_store = True
    return response
