"""The protocols of other products: each is imported with its first request."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

from astralog.api.dispatch import PlainView
from astralog.api.responses import Note
from astralog.intake.acceptor import Acceptor


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

    @cache
    def load_hec() -> PlainView:
        from astralog.api import hec  # noqa: PLC0415  # most never need it

        return hec.create_view(service)

    @cache
    def load_loki() -> PlainView:
        from astralog.api import loki  # noqa: PLC0415

        return loki.create_view(service)

    @cache
    def load_elasticsearch() -> PlainView:
        from astralog.api import elasticsearch  # noqa: PLC0415

        return elasticsearch.create_view(service)

    return {"services": load_hec, "loki": load_loki, "elasticsearch": load_elasticsearch}
