"""The WSGI application: a dispatcher for the hot paths, and Flask for every other request.

The protocols of other products are imported with their first request each.

Measured on one core, an empty view takes 30 µs per request through Flask and 1 µs through the
dispatcher.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial, update_wrapper
from importlib import import_module
from typing import TYPE_CHECKING, Any

from flask import Flask, Request, Response, request
from werkzeug.exceptions import NotFound
from werkzeug.routing import MapAdapter

from astralog.browsers import Origins, answer_preflight, hide_query_token, is_preflight, permit
from astralog.errors import Rejection
from astralog.intake.acceptor import Acceptor
from astralog.intake.body import Environ
from astralog.log import log_exception

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

log = logging.getLogger(__name__)

View = Callable[[Environ], Response]

#: Records a rejected request.
Note = Callable[[Rejection, Environ], None]

#: Returns the response to a request that failed with an error; it never raises.
Reject = Callable[[Exception, Environ], Response]

#: Modules of the protocols of other products, by the first segment of their paths.
PROTOCOLS = {"services": "hec", "loki": "loki", "elasticsearch": "elasticsearch"}

#: The parameters of the query that each protocol accepts, and those of one with partial batches.
OPTIONS = ("project_id", "service", "level", "once")
PARTIAL_OPTIONS = ("project_id", "service", "level", "partial", "once")


class PlainView:
    """A view that takes WSGI's environ, for a path without arguments.

    `Dispatcher` calls it without Flask: none of Flask's hooks or error handlers run.
    """

    def __init__(self, answer: View, reject: Reject) -> None:
        update_wrapper(self, answer)
        self.answer = answer
        self.reject = reject

    def __call__(self) -> Response:
        """Call the view as Flask calls its views."""
        return self.answer(request.environ)


def plain_view(reject: Reject) -> Callable[[View], PlainView]:
    """Return a decorator that makes a plain view whose errors become responses by `reject`."""
    return partial(PlainView, reject=reject)


class Api(Flask):
    """A Flask that routes by the path and method as sent, without redirects.

    No header takes part in routing: werkzeug parses headers in more than linear time, and before a
    token is known none of its parsed headers may be read.
    """

    def __init__(self, import_name: str) -> None:
        super().__init__(import_name, static_folder=None)
        self.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
        self.url_map.merge_slashes = False
        self.url_map.redirect_defaults = False

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        """Bind a request's path and method; raises NotFound if the path begins with two slashes.

        MapAdapter would take any number of slashes at the beginning for one.
        """
        if request is None:
            return super().create_url_adapter(None)
        path, method = request.environ["PATH_INFO"], request.environ["REQUEST_METHOD"]
        if path.startswith("//"):
            raise NotFound
        return MapAdapter(self.url_map, "", "/", "", "http", path or "/", method)

    def log_exception(self, exc_info: Any) -> None:
        """Log an error that no error handler could handle."""
        log_exception(log, "a request failed, and its answer too")


class Dispatcher:
    """Dispatch requests to plain views, and all others to Flask."""

    def __init__(
        self, app: Flask, protocols: Mapping[str, Callable[[], PlainView]], origins: Origins
    ) -> None:
        """Find the plain views among the application's routes.

        Each of the `protocols` returns the view of every method and path below `/NAME/`, and pages
        of the `origins` may send.
        """
        self._origins = origins
        self._flask: WSGIApplication = app.wsgi_app
        self.protocols = protocols
        self._views = {
            (method, rule.rule): view
            for rule in app.url_map.iter_rules()
            if isinstance(view := app.view_functions[rule.endpoint], PlainView)
            for method in rule.methods or ()
        }

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        if "HTTP_ORIGIN" in environ and self._origins.is_listed(environ):
            start_response = permit(environ, start_response)
            if is_preflight(environ):
                return answer_preflight(start_response)
        if "token=" in environ.get("QUERY_STRING", ""):
            environ = hide_query_token(environ)
        path = environ["PATH_INFO"]
        view = self._views.get((environ["REQUEST_METHOD"], path))
        if view is None:
            load = self.protocols.get(path.removeprefix("/").partition("/")[0])
            if load is None:
                return self._flask(environ, start_response)
            view = load()
        try:
            response = view.answer(environ)
        except Exception as error:
            response = view.reject(error, environ)
        return response(environ, start_response)


def create_protocols(acceptor: Acceptor, note: Note) -> Mapping[str, Callable[[], PlainView]]:
    """Return the loader of each protocol's view, by the first segment of its paths."""

    def load(module: str) -> PlainView:
        view: PlainView = import_module(f"astralog.api.{module}").create_view(acceptor, note)
        return view

    return {name: cache(partial(load, module)) for name, module in PROTOCOLS.items()}


def decode_wsgi(text: str) -> str:
    """Return the text of bytes that WSGI hands on as latin-1, with U+FFFD for invalid UTF-8."""
    return text.encode("latin-1").decode(errors="replace")


def without_parameters(header: str) -> str:
    """Return the value of a header in lower case, without the parameters that follow it."""
    return header.partition(";")[0].strip().lower()


class FixedResponse(Response):
    """A 200 with a constant body, rendered once; it must not be changed."""

    def __init__(
        self,
        body: bytes,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(body, content_type=content_type, headers=headers)
        self._body = [body]
        self._wsgi_headers = list(self.headers)

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        start_response("200 OK", self._wsgi_headers)
        return self._body if environ["REQUEST_METHOD"] != "HEAD" else []
