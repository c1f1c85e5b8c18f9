"""The worker of a connection, and connections to a chosen worker."""

import contextlib
import os
import socket
from pathlib import Path

from tests.support.service import Service, wait_for

#: A connection that is established, in /proc/net/tcp.
ESTABLISHED = "01"

#: Connections that are made to get one to a worker.
ATTEMPTS = 1000


def worker_of(service: Service, connection: socket.socket) -> int | None:
    """Return the worker that has accepted a connection, or None."""
    inode = _inode_of(connection.getpeername()[1], connection.getsockname()[1])
    for pid in service.worker_pids():
        with contextlib.suppress(FileNotFoundError):  # it ended, or closed one meanwhile
            for path in Path(f"/proc/{pid}/fd").iterdir():
                if os.readlink(path) == f"socket:[{inode}]":
                    return pid
    return None


def _inode_of(local_port: int, remote_port: int) -> str | None:
    """Return the inode of the service's end of a connection. Source: proc(5), /proc/net/tcp."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state, *_, inode = line.split()[:10]
        ports = (int(local.rpartition(":")[2], 16), int(remote.rpartition(":")[2], 16))
        if ports == (local_port, remote_port) and state == ESTABLISHED:
            return inode
    return None


def connect_to(service: Service, pid: int) -> socket.socket:
    """Return a connection to a worker; raises AssertionError if it accepts none."""
    for _ in range(ATTEMPTS):
        connection = service.connect()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if wait_for(lambda: worker_of(service, connection)) == pid:  # noqa: B023
            return connection
        connection.close()
    raise AssertionError("the worker takes no connection")


def kill_a_worker(service: Service) -> None:
    """Kill a worker, and wait for the next one."""
    victim = service.worker_pids()[0]
    service.kill_worker(victim)
    service.wait_for_workers(other_than=[victim])
