"""What the workers inherit from the master, and what a reload (SIGHUP) takes up: no code."""

import logging
from typing import Any, NamedTuple

from astralog.auth import Tokens
from astralog.rates import Rates
from astralog.server.tls import read_certificate
from astralog.settings import InvalidSettings, Settings

log = logging.getLogger(__name__)


class Inherited(NamedTuple):
    """What was read from files that change while the service runs."""

    tokens: Tokens
    tls: Any | None

    @classmethod
    def read(cls, settings: Settings, rates: Rates | None = None) -> "Inherited":
        """Read all of it anew, with the tokens' rates as they are.

        Raises InvalidSettings if any of it is invalid.
        """
        tls = read_certificate(settings)
        return cls(Tokens(settings, rates), tls)


def reload(server: Any, settings: Settings) -> None:
    """Read tokens and certificate again, and replace the workers.

    Where something is faulty, nothing changes: the workers that are there know the newest tokens
    that were of use.
    """
    try:
        server.cfg.inherited = Inherited.read(settings, server.cfg.inherited.tokens.rates)
    except InvalidSettings as error:
        log.error("not reloaded, all stays as it is: %s", "; ".join(error.problems))
        return
    server.reload()
    log.info("reloaded tokens and certificate, replacing all workers")
