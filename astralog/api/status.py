"""GET /status and the requests of its page: the service's numbers and its newest logs.

The page itself has no data; its requests need a token. A token that is bound to projects sees
their logs, its own batches and rejections, and of the whole service only whether it is ready.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

import msgspec
from flask import Blueprint, Response, request
from gevent.lock import Semaphore

from astralog.api.pages import (
    CONTENT_SECURITY_POLICY,
    OWN,
    load,
    make_asset,
    send_one_of,
    send_page,
)
from astralog.api.responses import private_response
from astralog.api.search import INVALID_CURSOR, UNREADABLE, filter_of
from astralog.auth import Tokens
from astralog.clock import TrustedClock
from astralog.errors import Rejection
from astralog.intake.options import bad_parameter, parse_query
from astralog.settings import Settings
from astralog.telemetry.overview import Overview
from astralog.threads import OneAtATime
from astralog.tokens_file import Scope, Token
from astralog.view.recent_logs import RecentLogs
from astralog.view.stored_log import RANKS

FILES = (
    *("status.css", "status.js", "numbers.js", "logs.js", "search.js", "rows.js", "tree.js"),
    *("charts.js", "format.js", "icon.svg"),
)

#: A generated file: the names of levels by their severity.
LEVELS = "levels.js"

#: In addition to every page's policy: no text becomes HTML or a script, even by a mistake.
POLICY = f"{CONTENT_SECURITY_POLICY}; require-trusted-types-for 'script'; trusted-types 'none'"

#: Parameters of the query for logs.
FILTERS = ("project", "service", "level", "q")

#: Seconds for which numbers are kept for all clients.
KEPT_SECONDS = 1.0

T = TypeVar("T")


class Kept(Generic[T]):
    """A value that many clients request, computed at most once per second."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._lock = Semaphore()
        self._value: T | None = None
        self._until = 0.0

    def get(self) -> T:
        with self._lock:
            if self._value is None or time.monotonic() >= self._until:
                self._value = self._make()
                self._until = time.monotonic() + KEPT_SECONDS
            return self._value


def create_blueprint(
    settings: Settings, tokens: Tokens, overview: Overview, clock: TrustedClock
) -> Blueprint:
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
    files[LEVELS] = make_asset(LEVELS, b"export const RANKS = %s;\n" % msgspec.json.encode(RANKS))

    @blueprint.get("/status")
    def show_page() -> Response:
        """Return the page, which asks for a token."""
        response = send_page(page, POLICY)
        response.headers["X-Frame-Options"] = "DENY"
        response.cache_control.no_cache = True
        return response

    @blueprint.get("/status/<asset>")
    def show_asset(asset: str) -> Response:
        return send_one_of(files, asset, request.environ)


def _add_numbers(
    blueprint: Blueprint, authenticate: Callable[[], Token], overview: Overview
) -> None:
    readiness = Kept(overview.readiness)
    now = Kept(overview.now)
    sample = Kept(overview.sample)
    last_hour = Kept(lambda: msgspec.json.encode(overview.last_hour(sample.get())))

    @blueprint.get("/status/data")
    def show_numbers() -> Response:
        token = authenticate()
        is_bound = token.projects is not None
        numbers = readiness.get() if is_bound else now.get()
        return _json(msgspec.json.encode({**_grants(token), **numbers}))

    @blueprint.get("/status/history")
    def show_history() -> Response:
        token = authenticate()
        if token.projects is None:
            return _json(last_hour.get())
        return _json(msgspec.json.encode(overview.last_hour(sample.get(), token.name)))


def _grants(token: Token) -> dict[str, Any]:
    """Return the grants of a token; `projects` is None for all, `rate` is None for no limit."""
    return {
        "token": token.name,
        "projects": None if token.projects is None else sorted(token.projects),
        "allow": sorted(scope.value for scope in token.scopes),
        "rate": token.rate,
    }


def _add_logs(blueprint: Blueprint, authenticate: Callable[[], Token], logs: RecentLogs) -> None:
    disk = OneAtATime("status_busy")

    @blueprint.get("/status/logs")
    def show_logs() -> Response:
        token = authenticate()
        query = parse_query(request.environ["QUERY_STRING"], (*FILTERS, "after"))
        try:
            is_bound = token.projects is not None
            poll = partial(logs.poll, is_bound=is_bound)
            return _json(disk.run(poll, filter_of(token, query), query.get("after")))
        except ValueError:
            raise bad_parameter("after", INVALID_CURSOR) from None
        except OSError:
            raise Rejection(*UNREADABLE) from None

    @blueprint.get("/status/log")
    def show_log() -> Response:
        token = authenticate()
        query = parse_query(request.environ["QUERY_STRING"], ("id",))
        line = disk.run(logs.find, filter_of(token, {}), query.get("id", ""))
        if line is None:
            raise Rejection("not_found", "This log does not exist or can no longer be found.")
        return _json(line)


def _json(body: bytes) -> Response:
    return private_response(body, "application/json")
