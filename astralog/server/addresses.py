"""Check the addresses to listen on before gunicorn binds them, and explain what is wrong."""

import contextlib
import errno
import os
import socket
import stat
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from astralog.settings import InvalidSettings

#: The longest path of a unix socket, in bytes (unix(7): sun_path is 108 with its NUL).
MAX_PATH_BYTES = 107

#: An address in use, or not up yet, is tried so often: another process may be stopping.
TRIES = 5
RETRY_SECONDS = 1.0

#: A process that listens accepts a connection within so many seconds, or is busy.
CONNECT_SECONDS = 1.0

#: The state of a listening socket in /proc/net/tcp.
LISTENING = "0A"

FILE_TYPES: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISREG, "a file"),
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
)


class _Unavailable(Exception):
    """The address cannot be bound now, and perhaps soon."""


def check_addresses(name: str, addresses: Sequence[Any]) -> None:
    """Raise InvalidSettings if the setting `name` has addresses that cannot be bound.

    An address is the path of a unix socket, or a host and a port; open descriptors are skipped.
    """
    problems = []
    for address in addresses:
        if isinstance(address, str):
            problem, shown = _find_problem(_check_path, address), f"unix:{address}"
        elif isinstance(address, tuple):
            host, port = address
            problem = _find_problem(_check_port, address)
            shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        else:
            continue
        if problem:
            problems.append(f"{name}: {shown}: {problem}")
    if problems:
        raise InvalidSettings(problems)


def are_inherited() -> bool:
    """Return whether the sockets come from systemd, or from the master that this one replaces."""
    return os.environ.get("LISTEN_PID") == str(os.getpid()) or "GUNICORN_FD" in os.environ


def _find_problem(check: Callable[[Any], None], address: Any) -> str:
    problem = ""
    for tried in range(TRIES):
        if tried:
            time.sleep(RETRY_SECONDS)
        try:
            check(address)
        except _Unavailable as error:
            problem = str(error)
        except ValueError as error:
            return str(error)
        except OSError as error:
            return f"{error.strerror}."
        else:
            return ""
    return problem


# --- A host and a port


def _check_port(address: tuple[str, int]) -> None:
    host, port = address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
    except (socket.gaierror, UnicodeError):
        raise ValueError("Unknown host; use an address of this machine, or 0.0.0.0.") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise _Unavailable(
                f"In use{_find_holder(port)}; stop it, or use another port."
            ) from None
        if error.errno == errno.EADDRNOTAVAIL:
            raise _Unavailable("Not an address of this machine; 0.0.0.0 is all of them.") from None
        if error.errno in (errno.EACCES, errno.EPERM):
            raise ValueError(
                f"Permission denied: port {port} needs the capability CAP_NET_BIND_SERVICE; "
                "use a port above 1023, or let systemd pass the socket."
            ) from None
        raise


def _find_holder(port: int) -> str:
    """Return " by process PID (NAME)" for the process that listens on a port, if /proc shows it."""
    links = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    for path in Path("/proc").glob("[1-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(path) in links:
                return _describe_process(int(path.parts[2]))
    return ""


def _listening_inodes(port: int) -> Iterator[str]:
    """Yield the inodes of the sockets that listen on a port. Source: proc(5), /proc/net/tcp."""
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for row in Path("/proc/net", table).read_text().splitlines()[1:]:
                _, local, _, state, *fields = row.split()
                if state == LISTENING and int(local.rpartition(":")[2], 16) == port:
                    yield fields[5]


def _describe_process(pid: int) -> str:
    """Return a process's number and name; its command line may hold secrets."""
    try:
        name = Path("/proc", str(pid), "comm").read_text().strip()
    except OSError:
        return f" by process {pid}"
    return f" by process {pid} ({name})"


# --- The path of a unix socket


def _check_path(path: str) -> None:
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise ValueError(f"The path is longer than {MAX_PATH_BYTES} bytes; use a shorter one.")
    directory = os.path.dirname(path) or "."
    if not os.path.isdir(directory):
        raise ValueError(f"There is no directory {directory}; create it.")
    if not os.access(directory, os.W_OK | os.X_OK):
        raise ValueError(f"The directory {directory} is not writable; use another one.")
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        if os.path.islink(path):
            raise ValueError("The path is a link to nowhere; remove it.") from None
        return
    if not stat.S_ISSOCK(mode):
        kind = next((name for is_type, name in FILE_TYPES if is_type(mode)), "another file")
        raise ValueError(f"The path is {kind}, not a socket; remove it, or use another path.")
    _check_unused(path)


def _check_unused(path: str) -> None:
    """Raise _Unavailable if a process listens on the socket; gunicorn replaces a stale one."""
    holder = ""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(CONNECT_SECONDS)
        try:
            client.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except (BlockingIOError, TimeoutError):
            pass  # its backlog is full
        else:
            size = struct.calcsize("3i")
            credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
            holder = _describe_process(struct.unpack("3i", credentials)[0])
    raise _Unavailable(f"In use{holder}; stop it, or use another path.")
