"""The name of a data directory's node in the tables: fixed with the first delivery.

A row's place is its node, segment and line. Under another name, everything in the directory would
be delivered a second time, so the name is kept in the file `node` beside the segments.
"""

import logging
import os
import socket
from pathlib import Path

from astralog.settings import PREFIX
from astralog.store import forward_state
from astralog.store.files import FILE_MODE, sync_directory

log = logging.getLogger(__name__)


class NodeUnclear(Exception):
    """The name of the node is unknown, or known by different names."""


def resolve_node(directory: Path, wanted: str) -> str:
    """Return the name for deliveries from a directory; `wanted` is the setting, empty if unset.

    Raises NodeUnclear with one line that says what to do, and OSError.
    """
    path = directory / forward_state.NODE_NAME
    noted = forward_state.read_node_of_cursor(directory)
    try:
        fixed = forward_state.read_node(directory)
    except ValueError:
        if noted is None:
            raise NodeUnclear(
                f"{path} is damaged: remove it, and set {PREFIX}NODE to the value of `node` in "
                "the rows that ClickHouse has of this directory"
            ) from None
        log.warning("%s is damaged; the cursor has the name %s", path, noted)
        fixed = None
    known = fixed or noted
    if known and noted and noted != known:
        raise NodeUnclear(
            f"{path} says that this node is {known}, but {forward_state.CURSOR_NAME} says {noted}: "
            "remove the file that is wrong"
        )
    if known and wanted and wanted != known:
        raise NodeUnclear(
            f"{PREFIX}NODE is {wanted}, but ClickHouse has the logs of {directory} as node "
            f"{known}: unset {PREFIX}NODE or set it to {known}; to deliver everything here again "
            f"as {wanted}, remove {forward_state.NODE_NAME} and {forward_state.CURSOR_NAME} there"
        )
    return known or wanted or socket.gethostname()


def fix_node(directory: Path, name: str) -> None:
    """Keep the name for every later start, durably; raises OSError."""
    draft = directory / (forward_state.NODE_NAME + ".new")
    fd = os.open(draft, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, FILE_MODE)
    with open(fd, "wb") as file:
        file.write(forward_state.encode_fact(name))
        file.flush()
        os.fsync(fd)
    draft.rename(directory / forward_state.NODE_NAME)
    sync_directory(directory)
