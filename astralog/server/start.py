"""Start the service: check its settings and addresses, create its files, and log the start."""

import contextlib
import errno
import logging
import os
import secrets
import shlex
import socket
import stat
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from astralog.auth import TOKEN_FILE_NAME
from astralog.server.worker import STOP_SECONDS, Worker
from astralog.settings import InvalidSettings, Settings, service_links
from astralog.standard_streams import print_errors
from astralog.store.files import make_directory, sync_directory

log = logging.getLogger(__name__)

#: The applications that gunicorn may serve; the workers build both in the same way.
APPLICATIONS = ("wsgi:app", "astralog.app:create_app()")

#: gunicorn's settings that the service supports in one way only: their one value, and the reason.
FIXED: dict[str, tuple[Any, str]] = {
    "accesslog": (
        None,
        "there is no access log; the proxy in front writes one, and /metrics counts",
    ),
    "dirty_workers": (0, "there are no other workers than those that take logs"),
    "http2_cleartext": ("off", "the service speaks HTTP/1.1 alone"),
    "http_parser": ("python", "the bounds on a request are those of this parser"),
    "http_protocols": (["h1"], "the service speaks HTTP/1.1 alone"),
    "logconfig": (None, "the service logs to stderr, as ASTRALOG_LOG_LEVEL says"),
    "logconfig_json": (None, "the service logs to stderr, as ASTRALOG_LOG_LEVEL says"),
    "max_requests": (0, "no worker has to be replaced, and that would end its connections"),
    "preload_app": (False, "each worker opens its files for itself"),
    "protocol": ("http", "the service speaks HTTP/1.1 alone"),
    "proxy_protocol": ("off", "the service speaks HTTP/1.1 alone"),
    "reuse_port": (False, "connections that wait for a worker would be lost with it"),
    "statsd_host": (None, "the service is measured through /metrics"),
    "syslog": (False, "the service logs to stderr, as ASTRALOG_LOG_LEVEL says"),
    "threads": (1, "a worker serves all its connections in one thread"),
}

#: gunicorn's settings with a minimum.
LEAST = {"keepalive": 1, "worker_connections": 1}

#: The longest path of a unix socket, in bytes (unix(7): sun_path is 108 with its NUL).
MAX_PATH_BYTES = 107

#: Seconds between attempts for an address that is in use or not up yet, and their number. A worker
#: of a killed master may keep the address for STOP_SECONDS.
RETRY_SECONDS = 1.0
TRIES = STOP_SECONDS + 2

#: Seconds within which a listening process accepts a connection, unless it is busy.
CONNECT_SECONDS = 1.0

#: The state of a listening socket in /proc/net/tcp.
LISTENING = "0A"

#: Types of files by the first letter of their mode, as ls shows it.
FILE_TYPES = {"-": "a file", "d": "a directory", "p": "a FIFO"}

#: The remedy for each unusable data directory: another user's, a read-only or a full one.
USABLE_DIRECTORY = "a directory with free space that the service's user can read and write"

#: A unix socket is bound to a path, any other to a host and a port.
Address = str | tuple[Any, ...]


# --- gunicorn's settings


def check_gunicorn_settings(cfg: Any, app_uri: str) -> None:
    """Raise InvalidSettings, with a line for each of gunicorn's settings that is unsupported.

    gunicorn's command line and GUNICORN_CMD_ARGS can set any of them.
    """
    problems = [
        f"gunicorn's {name}: Must stay {value!r}: {reason}."
        for name, (value, reason) in FIXED.items()
        if getattr(cfg, name) != value
    ]
    problems += [
        f"gunicorn's {name}: Must be at least {least}."
        for name, least in LEAST.items()
        if getattr(cfg, name) < least
    ]
    if not issubclass(cfg.worker_class, Worker):
        problems.append("gunicorn's worker_class: Must stay AstraLog's own.")
    if app_uri not in APPLICATIONS:
        problems.append(f"gunicorn's application: Must be {APPLICATIONS[0]}, the only one served.")
    if problems:
        raise InvalidSettings(problems)


# --- Addresses


class _Unavailable(Exception):
    """The address cannot be bound now; a retry may succeed."""


def check_addresses(name: str, addresses: Sequence[Any]) -> None:
    """Raise InvalidSettings if addresses of the setting `name` cannot be bound.

    An address is the path of a unix socket, or a host and a port; open descriptors are skipped.
    """
    problems = []
    for address in addresses:
        if isinstance(address, str):
            problem = _find_problem(_check_path, address, f"{name}: unix:{address}")
        elif isinstance(address, tuple):
            host, port = address
            shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            problem = _find_problem(_check_port, address, f"{name}: {shown}")
        else:
            continue
        if problem:
            problems.append(problem)
    if problems:
        raise InvalidSettings(problems)


def are_inherited() -> bool:
    """Return whether the sockets are inherited from systemd or from the previous master."""
    return os.environ.get("LISTEN_PID") == str(os.getpid()) or "GUNICORN_FD" in os.environ


def _find_problem(check: Callable[[Any], None], address: Any, shown: str) -> str:
    problem = ""
    for left in reversed(range(TRIES)):
        try:
            check(address)
        except _Unavailable as error:
            if left and not problem:
                log.warning("%s: %s Trying again for %d seconds.", shown, error, left)
            problem = str(error)
        except ValueError as error:
            return f"{shown}: {error}"
        except OSError as error:
            return f"{shown}: {error.strerror}."
        else:
            return ""
        if left:
            time.sleep(RETRY_SECONDS)
    return f"{shown}: {problem}"


# --- A host and a port


def _check_port(address: tuple[str, int]) -> None:
    host, port = address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
    except (socket.gaierror, UnicodeError, TypeError):  # a TypeError for a name that IDNA rejects
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
            raise ValueError("The path is a dangling link; remove it.") from None
        return
    if not stat.S_ISSOCK(mode):
        kind = FILE_TYPES.get(stat.filemode(mode)[0], "another file")
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


# --- Files


def make_missing(settings: Settings) -> None:
    """Create the data directory and its token if they are missing.

    Only a start does so: while a disk is not mounted, no worker may create another directory in its
    place. Raises InvalidSettings if the directory cannot be created or written.
    """
    try:
        make_directory(settings.data_dir)
        if not os.access(settings.data_dir, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError("Not readable and writable")
        if not (settings.tokens or settings.tokens_file):
            make_token_file(settings.data_dir)
    except OSError as error:
        reason = error.strerror or error
        if isinstance(error, FileExistsError):
            reason = "It exists, and is no directory"
        problem = f"ASTRALOG_DATA_DIR: {settings.data_dir}: {reason}; use {USABLE_DIRECTORY}."
        raise InvalidSettings([problem]) from None


def make_token_file(data_dir: Path) -> Path:
    """Return the path of the data directory's token, which is created at the first start.

    Several processes may do so at once; all then use the first one's token.
    """
    path = data_dir / TOKEN_FILE_NAME
    if not path.exists():
        draft = data_dir / f".{TOKEN_FILE_NAME}-{os.getpid()}"
        try:
            fd = os.open(draft, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
            with open(fd, "w") as file:
                file.write(secrets.token_urlsafe(32) + "\n")
                file.flush()
                os.fsync(fd)
            with contextlib.suppress(FileExistsError):
                os.link(draft, path)
        finally:
            draft.unlink(missing_ok=True)
        sync_directory(data_dir)
    return path


# --- Log lines


def announce(settings: Settings, addresses: Sequence[Address], is_inherited: bool) -> None:
    """Log the start in one line; print first commands if the token was generated."""
    if ignored := service_links():
        log.info("ignored, since Kubernetes sets them for its Services: %s", ", ".join(ignored))
    log.info(
        "listening on %s, %s, data in %s, sync %s%s",
        " and ".join(_url(settings, address) for address in addresses),
        "1 worker" if settings.workers == 1 else f"{settings.workers} workers",
        settings.data_dir.absolute(),
        settings.sync,
        ", on a socket that was passed in, not on ASTRALOG_BIND" if is_inherited else "",
    )
    if not (settings.tokens or settings.tokens_file):
        print_errors([_first_steps(settings, addresses[0])])


def _url(settings: Settings, address: Address, host: str | None = None) -> str:
    """Return the service's address as a URL, perhaps with another `host`."""
    if isinstance(address, str):
        return f"unix:{address}"
    scheme = "https" if settings.tls_cert else "http"
    host = host or (f"[{address[0]}]" if ":" in address[0] else address[0])
    return f"{scheme}://{host}:{address[1]}"


def _first_steps(settings: Settings, address: Address) -> str:
    """Return commands that send a log, find it and show the token for the status page.

    The token is read from its file, so that it is not printed.
    """
    data_dir = settings.data_dir.absolute()
    token = shlex.quote(str(data_dir / TOKEN_FILE_NAME))
    if isinstance(address, str):
        target = f"--unix-socket {shlex.quote(address)} http://localhost/v1/drain"
        page = "http://localhost/status, behind a proxy"
    else:
        url = _url(settings, address, "localhost")
        target, page = f"{url}/v1/drain", f"{url}/status"
    if settings.tls_cert:
        target = f"--cacert {shlex.quote(os.path.abspath(settings.tls_cert))} {target}"
    log_line = (
        '{"logs":[{"project_id":"demo","timestamp":"2024-05-31T15:30:45Z","level":"info",'
        '"service":"shell","message":"Hello, AstraLog"}]}'
    )
    command = shlex.quote(str(Path(sys.executable).with_name("astralog")))
    return f"""
Try it:

  curl {target} -H "Authorization: $(cat {token})" -d '{log_line}'

Search:

  {command} search --data-dir {shlex.quote(str(data_dir))} hello

Status page, {page}, with this token:

  cat {token}
"""
