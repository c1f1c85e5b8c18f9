"""Run forward: settings, signals, one process per directory, exit status."""

import contextlib
import dataclasses
import logging
import signal
import sys

from astralog.errors import explain
from astralog.forward.clickhouse import Tables
from astralog.forward.cursor import NodeNameError, resolve_node
from astralog.forward.forwarder import DirectoryReplaced, Forwarder
from astralog.log import ERASE_LINE, configure_logging
from astralog.settings import PREFIX, InvalidSettings, Settings
from astralog.standard_streams import print_errors
from astralog.store.forward_state import LOCK_NAME
from astralog.store.lease import Lease

log = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def run(once: bool) -> int:
    """Deliver until a signal, or `once` the segments sealed now; return the exit status."""
    try:
        settings = Settings.from_environ()
        if not settings.clickhouse_url:
            raise InvalidSettings(
                [f"{PREFIX}CLICKHOUSE_URL: Needed to forward; see docs/scaling.md."]
            )
    except InvalidSettings as error:
        print_errors(error.problems)
        return 1
    configure_logging(settings.log_level, ERASE_LINE if sys.stderr.isatty() else "")
    logging.getLogger("clickhouse_connect").setLevel(logging.CRITICAL)  # its errors are logged here
    for number in STOP_SIGNALS:
        signal.signal(number, _stop)
    try:
        return _run_alone(settings, once)
    except OSError as error:
        log.error("%s: %s", settings.data_dir, explain(error))
    except (DirectoryReplaced, NodeNameError) as error:
        log.error("%s", error)
    return 1


def _stop(number: int, frame: object) -> None:
    """Exit at once; the next start checks in the tables for the lines in progress."""
    sys.exit(0)


def _run_alone(settings: Settings, once: bool) -> int:
    """Deliver, unless another process delivers from the same directory.

    Raises OSError, NodeNameError and DirectoryReplaced.
    """
    lease = Lease.acquire(settings.data_dir, LOCK_NAME)
    if lease is None:
        log.error("%s: another forward delivers from here", settings.data_dir.absolute())
        return 1
    with contextlib.closing(lease):
        node = resolve_node(settings.data_dir, settings.node)
        settings = dataclasses.replace(settings, node=node)
        tables = Tables(settings)
        place = settings.data_dir.absolute()
        log.info("delivering from %s to %s as node %s", place, tables.name, node)
        forwarder = Forwarder(settings, tables, sys.stderr)
        try:
            if once:
                return 0 if forwarder.run_once() else 1
            forwarder.run()
        finally:
            forwarder.close()
    return 0
