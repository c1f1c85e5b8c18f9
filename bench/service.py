"""The service as it is measured."""

from tests.support.service import Service


class BareService(Service):
    """The service alone: in tests, a monitor of its hub runs with each switch of greenlets."""

    is_monitored = False
