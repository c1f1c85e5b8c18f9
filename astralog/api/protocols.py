"""The protocols of other products: each is imported with its first request."""

from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib import import_module
from typing import Any, NamedTuple

from astralog.api.dispatch import PlainView
from astralog.api.responses import Note
from astralog.intake.acceptor import Acceptor

#: The parameters of the query that each protocol accepts, and those of one with partial batches.
OPTIONS = ("project_id", "service", "level", "once")
PARTIAL_OPTIONS = ("project_id", "service", "level", "partial", "once")


class Service(NamedTuple):
    """The parts of the service that a protocol uses.

    `note` logs a rejection, `unavailable` returns the code that would reject a batch now, and
    `authorize` raises Rejection for a request whose token may not write.
    """

    acceptor: Acceptor
    note: Note
    unavailable: Callable[[], str | None]
    max_body_bytes: int
    authorize: Callable[[dict[str, Any]], object]


def create_views(service: Service) -> Mapping[str, Callable[[], PlainView]]:
    """Return the loader of each protocol's view, by the first segment of its paths."""

    def load(module: str) -> PlainView:
        view: PlainView = import_module(f"astralog.api.{module}").create_view(service)
        return view

    modules = {"services": "hec", "loki": "loki", "elasticsearch": "elasticsearch"}
    return {name: cache(partial(load, module)) for name, module in modules.items()}


def decode_wsgi(text: str) -> str:
    """Return the text of bytes that WSGI hands on as latin-1, with U+FFFD for invalid UTF-8."""
    return text.encode("latin-1").decode(errors="replace")


def without_parameters(header: str) -> str:
    """Return the value of a header in lower case, without the parameters that follow it."""
    return header.partition(";")[0].strip().lower()
