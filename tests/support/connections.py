"""Connections of a test: whether they are closed, a free port, and many of them at once."""

import contextlib
import random
import resource
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

#: Below it are the ports of well-known services.
LOWEST_PORT = 10_000


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
    """Return a port that is free, and stays so until it is used.

    The system gives ports from a range of their own to connections and to listeners on port 0,
    such as those of other tests: this one is below it.
    """
    end = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(LOWEST_PORT, max(end, 2 * LOWEST_PORT))
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
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
