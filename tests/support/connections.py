"""Connections of a test: whether they are closed, a free port, and many of them at once."""

import contextlib
import resource
import socket
from collections.abc import Iterator
from typing import Any

import pytest


def is_closed(connection: Any) -> bool:
    """Return whether the other end has closed a connection, without waiting for it."""
    connection.settimeout(0.01)
    try:
        return not connection.recv(65536)
    except TimeoutError:
        return False
    except OSError:
        return True


def free_port() -> int:
    """Return a port that is currently free."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def many_open_files(count: int) -> Iterator[None]:
    """Allow this process to open many files, or skip the test."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        pytest.skip(f"NOT TESTED: many connections; only {hard} open files are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
