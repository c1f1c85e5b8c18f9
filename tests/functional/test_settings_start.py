"""The start: errors that stop it, its messages, and the token of the first start."""

import contextlib
import os
import re
import socket
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.service import TOKEN, Service, make_batch, wait_for


def check_rejected_start(service: Service, *variables: str) -> None:
    """Check that the service does not start, and logs a line for each variable."""
    assert 0 != service.fail_to_start()
    lines = service.log().splitlines()
    assert len(variables) == len(lines)
    for variable in variables:
        (line,) = (line for line in lines if line.startswith(variable + ": "))
        assert len(line) > len(variable) + 10
    assert "Traceback" not in service.log()


#: Settings that a start names at once, each wrong or unknown.
WRONG: list[dict[str, object]] = [
    {
        "workers": 0,
        "sync": "sometimes",
        "max_body_bytes": "10MB",
        "body_timeout_seconds": 0,
        "commit_timeout_seconds": "soon",
        "segment_seconds": 0,
        "min_free_bytes": -1,
        "data_dir": "",
        "data_dirr": "/tmp",
        "port": 8080,
        "token": TOKEN,
    },
    {"workers": "two", "max_body_bytes": -1, "bind": "nonsense"},
    {"bind": "127.0.0.1", "sync": "no"},
    {"queue_bytes": 1000},
    {"tokens": " , "},
    {"tokens_file": "/nonexistent/tokens"},
    {"data_dir": "/proc/nonexistent"},
]


@pytest.mark.parametrize("settings", WRONG, ids=" ".join)
def test_wrong_settings_stop_the_start(tmp_path: Path, settings: dict[str, object]) -> None:
    """One line for each variable names a wrong or unknown one; no other line is written."""
    check_rejected_start(
        Service(tmp_path, **settings), *("ASTRALOG_" + n.upper() for n in settings)
    )


class TunedService(Service):
    """A service with additional settings of gunicorn."""

    def __init__(self, directory: Path, arguments: str) -> None:
        super().__init__(directory)
        self._environ["GUNICORN_CMD_ARGS"] = arguments


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ("--access-logfile -", ["accesslog"]),
        ("--max-requests 1000 --http-parser auto", ["max_requests", "http_parser"]),
        ("--keep-alive 0 --worker-class sync", ["keepalive", "worker_class"]),
        (
            "--proxy-protocol --reuse-port --preload",
            ["proxy_protocol", "reuse_port", "preload_app"],
        ),
    ],
)
def test_unsupported_gunicorn_setting_stops_the_start(
    tmp_path: Path, arguments: str, names: list[str]
) -> None:
    """No setting of gunicorn is ignored silently."""
    check_rejected_start(TunedService(tmp_path, arguments), *(f"gunicorn's {n}" for n in names))


def test_supported_gunicorn_settings_are_used(tmp_path: Path) -> None:
    """Its limits may differ from the service's."""
    with TunedService(tmp_path, "--keep-alive 30 --timeout 60 --backlog 100") as service:
        assert 200 == service.drain(make_batch("a")).status
        assert 0 == service.stop()


def test_a_wrong_token_is_not_repeated(tmp_path: Path) -> None:
    """The line names the wrong token by its position."""
    service = Service(tmp_path, tokens="good,se cret,good")
    assert 0 != service.fail_to_start()
    assert "ASTRALOG_TOKENS, token 2: " in service.log()
    assert "cret" not in service.log()


# --- Addresses


def start_line(service: Service) -> str:
    """Return the last line of a failed start, after the name of the setting.

    If the address is in use, the lines before say that the start waits for it.
    """
    assert service.fail_to_start() != 0
    *waits, line = service.log().splitlines()
    assert all("Trying again for" in wait for wait in waits)
    assert line.startswith("ASTRALOG_BIND: ")
    return line.removeprefix("ASTRALOG_BIND: ")


def test_second_service_names_the_process_that_has_the_port(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    with Service(tmp_path / "first") as first:
        address = "{}:{}".format(*first.address)
        line = start_line(Service(tmp_path, bind=address))
        in_use = re.fullmatch(
            rf"{address}: In use by process (\d+) \(\w+\); stop it, or use another port\.", line
        )
        assert in_use, line
        assert int(in_use[1]) in first.pids()
        assert first.request("GET", "/health").status == 200


def test_socket_in_use_stays_with_its_process(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as taken, tempfile.TemporaryDirectory(dir="/tmp") as short:
        taken.bind(f"{short}/socket")
        taken.listen()
        line = start_line(Service(tmp_path, bind=f"unix:{short}/socket"))
        assert f"unix:{short}/socket: In use by process {os.getpid()} (" in line
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{short}/socket")


@pytest.mark.parametrize(
    ("make", "kind"),
    [(Path.touch, "a file"), (Path.mkdir, "a directory"), (os.mkfifo, "a FIFO")],
)
def test_path_of_something_else_is_no_socket(
    tmp_path: Path, make: Callable[[Path], None], kind: str
) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        path = Path(short, "socket")
        make(path)
        line = start_line(Service(tmp_path, bind=f"unix:{path}"))
        assert line == (
            f"unix:{path}: The path is {kind}, not a socket; remove it, or use another path."
        )
        assert path.exists()


def test_unknown_host_is_named(tmp_path: Path) -> None:
    line = start_line(Service(tmp_path, bind="no-such-host.invalid:8080"))
    assert line.startswith("no-such-host.invalid:8080: Unknown host; use an address ")


class UnprivilegedService(Service):
    """A service that may not listen on ports below 1024."""

    def command(self) -> list[str]:
        """Return the command, without root's capability if root runs it."""
        restrict = ["setpriv", "--bounding-set=-net_bind_service"]
        return [*(restrict if os.getuid() == 0 else []), *super().command()]


def test_privileged_port_names_the_capability(tmp_path: Path) -> None:
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) < 2:
        pytest.skip("NOT TESTED: ports below 1024; here, everyone may use them")
    line = start_line(UnprivilegedService(tmp_path, bind="127.0.0.1:1"))
    assert line.startswith(
        "127.0.0.1:1: Permission denied: port 1 needs the capability CAP_NET_BIND_SERVICE; "
    )


# --- What the start says


@pytest.mark.parametrize("sync", ["always", "everysec"])
def test_start_and_stop_are_one_line_each(tmp_path: Path, sync: str) -> None:
    """The first has addresses, workers, data directory and sync mode; no other line is logged."""
    with Service(tmp_path, workers=3, sync=sync) as service:
        assert 200 == service.drain(make_batch("a")).status
        assert 0 == service.stop()
        host, port = service.address
        line, last = service.log().splitlines()
    assert re.match(r"[0-9-]{10}T[0-9:]{8}Z INFO \[[0-9]+\] listening on ", line)
    assert last.endswith(f" INFO [{service.process.pid}] stopped")
    assert f"http://{host}:{port}, 3 workers, data in {service.data_dir}, sync {sync}" in line


def test_names_that_kubernetes_makes_do_not_stop_the_start(tmp_path: Path) -> None:
    """One line lists the ignored variables; a misspelled setting still stops the start."""
    links = {
        "port": "tcp://10.96.12.7:8080",
        "port_8080_tcp": "tcp://10.96.12.7:8080",
        "port_8080_tcp_addr": "10.96.12.7",
        "port_8080_tcp_port": "8080",
        "port_8080_tcp_proto": "tcp",
        "service_host": "10.96.12.7",
        "service_port": "8080",
        "service_port_http": "8080",
    }
    with Service(tmp_path, **links) as service:
        assert 200 == service.drain(make_batch("a")).status
        (line,) = (line for line in service.log().splitlines() if "ASTRALOG_" in line)
        assert all(f"ASTRALOG_{name.upper()}" in line for name in links)
        assert " INFO " in line
    check_rejected_start(Service(tmp_path, **links, worker=1), "ASTRALOG_WORKER")


class ServiceAtHome(Service):
    """A service whose user's home is the directory of the test."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        super().__init__(directory, **settings)
        self._environ["HOME"] = str(directory)


def test_a_home_is_found_in_every_path(tmp_path: Path) -> None:
    """`~` is expanded as by a shell in an unquoted path."""
    (tmp_path / "tokens").write_text("from-a-file\n")
    paths = {"data_dir": "~/logs", "tokens_file": "~/tokens"}
    with ServiceAtHome(tmp_path, tokens=None, **paths) as service:
        assert 200 == service.drain(make_batch("a"), {"Authorization": "from-a-file"}).status
        assert 1 == len(list((tmp_path / "logs").glob("*.ndjson.open")))


@pytest.mark.quick
def test_first_start_creates_a_token(tmp_path: Path) -> None:
    """Only its owner can read it; it is never printed, and kept by the next start."""
    path = tmp_path / "data" / "token"
    with Service(tmp_path, tokens=None, workers=2) as service:
        token = path.read_text().strip()
        assert len(token) >= 32
        assert 0o600 == stat.S_IMODE(path.stat().st_mode)
        assert 200 == service.drain(make_batch("a"), {"Authorization": token}).status
        assert 401 == service.drain(make_batch("b")).status
        assert ["token"] == [one.name for one in path.parent.iterdir() if "token" in one.name]
        assert 0 == service.stop()
        assert token not in service.log()
        service.start()
        assert token == path.read_text().strip()
        assert 200 == service.drain(make_batch("c"), {"Authorization": token}).status
        assert token not in service.log()


def test_the_printed_command_works_as_pasted(tmp_path: Path) -> None:
    """The first start prints commands that store a log and find it, for any path."""
    directory = tmp_path / 'it\'s a "path" with $signs'
    directory.mkdir()
    with Service(directory, tokens=None) as service:
        wait_for(lambda: "curl" in service.log())
        (command,) = (line for line in service.log().splitlines() if "curl" in line)
        done = subprocess.run(
            ["bash", "-c", command], capture_output=True, text=True, timeout=30, check=False
        )
        assert (0, '{"status":"accepted"}') == (done.returncode, done.stdout)
        assert 1 == len(service.logs())
        (command,) = (line for line in service.log().splitlines() if " search " in line)
        found = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
        assert "Hello, AstraLog" in found.stdout
        assert (directory / "data" / "token").read_text().strip() not in service.log()


def test_no_command_is_printed_for_tokens_of_the_operator(tmp_path: Path) -> None:
    """With configured tokens the service creates and prints none."""
    tokens = tmp_path / "tokens"
    tokens.write_text("# ours\n\nfrom-file\n")
    with Service(tmp_path, tokens="one, two", tokens_file=tokens) as service:
        for token in ("one", "two", "from-file"):
            assert 200 == service.drain(make_batch(token), {"Authorization": token}).status
            assert token not in service.log().replace(str(tmp_path), "")
        for token in ("one, two", "# ours", "ours", ""):
            assert 401 == service.drain(make_batch(token), {"Authorization": token}).status
        assert "curl" not in service.log()
        assert not (service.data_dir / "token").exists()
        assert ["one", "two", "from-file"] == [log["message"] for log in service.logs()]


def test_nothing_listens_but_the_address(tmp_path: Path) -> None:
    """The configured address is the only one: no second port, no local socket."""
    with Service(tmp_path) as service:
        assert 200 == service.drain(make_batch("a")).status
        sockets = {inode for pid in service.pids() for inode in socket_inodes(pid)}
        assert set() == sockets & listening_inodes("unix")
        assert 1 == len(sockets & (listening_inodes("tcp") | listening_inodes("tcp6")))


def socket_inodes(pid: int) -> Iterator[str]:
    """Yield the inode of each socket of a process."""
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            target = os.readlink(path)
            if target.startswith("socket:["):
                yield target[len("socket:[") : -1]


def listening_inodes(kind: str) -> set[str]:
    """Return the inodes of this machine's listening sockets."""
    rows = [row.split() for row in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]]
    if kind == "unix":
        return {row[6] for row in rows if row[3] == "00010000"}
    return {row[9] for row in rows if row[3] == "0A"}
