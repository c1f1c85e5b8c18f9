"""The Debian package in an empty Debian with systemd: `make test-deb`, as root."""

import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.support.service import ROOT, TIMEOUT_SECONDS, process_name, wait_for

#: A root directory of the Debian release that the package was built on, with systemd and python3.
DEBIAN_ROOT = Path(os.environ.get("DEB_ROOT", "/nonexistent"))
PACKAGES = sorted((ROOT / "dist").glob("astralog*.deb"))

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(not DEBIAN_ROOT.is_dir(), reason="DEB_ROOT is unset: use make test-deb"),
    pytest.mark.skipif(len(PACKAGES) != 2, reason="no package in dist/: use make test-deb"),
    pytest.mark.skipif(os.geteuid() != 0, reason="a container takes root"),
    pytest.mark.skipif(not shutil.which("systemd-nspawn"), reason="systemd-container is missing"),
]

BOOT_SECONDS = 4 * TIMEOUT_SECONDS

#: Sends logs, each on a new connection, until the file /stop is there; prints how many were not
#: answered 200.
CLIENT = """
import http.client, json, os
token = open("/var/lib/astralog/token").read().strip()
sent = failed = 0
while not os.path.exists("/stop"):
    log = dict(project_id="p", timestamp="2024-05-31", level="info", service="s", message=str(sent))
    try:
        connection = http.client.HTTPConnection("127.0.0.1", 8080, timeout=60)
        body = json.dumps({"logs": [log]})
        connection.request("POST", "/v1/drain", body, {"Authorization": token})
        failed += connection.getresponse().status != 200
        connection.close()
    except OSError:
        failed += 1
    sent += 1
print(sent, failed)
"""


class Machine:
    """A container of Debian with systemd and its own network; it is removed at the end."""

    def __init__(self, directory: Path) -> None:
        self._root = directory / "root"
        self._log_path = directory / "console.log"

    def __enter__(self) -> Self:
        subprocess.run(["cp", "-a", "--reflink=auto", DEBIAN_ROOT, self._root], check=True)
        try:
            self._boot()
        except BaseException:
            self._end()
            raise
        return self

    def _boot(self) -> None:
        options = ["--quiet", "--register=no", "--keep-unit", "--private-network", "--boot"]
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                ["systemd-nspawn", *options, f"--directory={self._root}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._pid = wait_for(self._find_systemd, BOOT_SECONDS)
        wait_for(self._is_booted, BOOT_SECONDS)

    def reboot(self) -> None:
        """Power the machine off, and boot it again with the same files."""
        self.try_run("systemctl", "poweroff")
        self._process.wait(BOOT_SECONDS)
        self._boot()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        # The machine's processes end with its systemd, and not with systemd-nspawn.
        if self._process.poll() is None:
            for pid in self._find_children():
                os.kill(pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait(TIMEOUT_SECONDS)
        shutil.rmtree(self._root, ignore_errors=True)

    def _find_systemd(self) -> int | None:
        assert self._process.poll() is None, self._log_path.read_text()
        return next((pid for pid in self._find_children() if process_name(pid) == "systemd"), None)

    def _find_children(self) -> list[int]:
        """Return the processes that systemd-nspawn started."""
        pid = self._process.pid
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]

    def _is_booted(self) -> bool:
        state = self.try_run("systemctl", "is-system-running").stdout.strip()
        return state in ("running", "degraded")

    def try_run(self, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the machine."""
        return subprocess.run(
            ["nsenter", "--target", str(self._pid), "--all", "--root", "--wd", "--", *command],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", **environ},
            capture_output=True,
            text=True,
            timeout=10 * TIMEOUT_SECONDS,
            check=False,
        )

    def run(self, *command: str, **environ: str) -> str:
        """Run a command that must succeed, and return its output."""
        done = self.try_run(*command, **environ)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def copy_in(self, *paths: Path) -> list[str]:
        """Copy files into the machine, and return their paths there."""
        for path in paths:
            shutil.copy(path, self._root / "root")
        return [f"/root/{path.name}" for path in paths]

    def install(self, *packages: Path, **environ: str) -> str:
        """Install packages as apt does; their dependencies are installed."""
        return self.run(
            "dpkg",
            "--install",
            *self.copy_in(*packages),
            **{"DEBIAN_FRONTEND": "noninteractive", **environ},
        )

    def exists(self, path: str) -> bool:
        """Return whether the machine has a file."""
        return self.try_run("test", "-e", path).returncode == 0

    def check(self) -> dict[str, str]:
        """Return the outcomes of `astralog check` by their names."""
        token = self.run("cat", "/var/lib/astralog/token").strip()
        output = self.run("astralog", "check", "http://127.0.0.1:8080", TOKEN=token)
        return {line.split()[1]: line.split()[0] for line in output.splitlines()}


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the package repacked as a later version, with its own directory under /opt."""
    directory = tmp_path_factory.mktemp("newer")
    tree = directory / "tree"
    subprocess.run(["dpkg-deb", "--raw-extract", PACKAGES[1], tree], check=True)
    version = re.search(r"^Version: (.*)$", (tree / "DEBIAN" / "control").read_text(), re.M)
    assert version
    old, new = f"/opt/astralog/{version[1]}", f"/opt/astralog/{version[1]}+1"
    (tree / old[1:]).rename(tree / new[1:])
    texts = [
        *tree.glob("DEBIAN/*"),
        *tree.glob("*/systemd/system/*"),
        *tree.glob("usr/lib/systemd/system/*"),
    ]
    texts += [
        tree / "usr/bin/astralog",
        tree / new[1:] / "bin/astralog",
        tree / new[1:] / "pyvenv.cfg",
    ]
    for path in filter(Path.is_file, texts):
        text = path.read_text().replace(old, new).replace(old[1:] + "/", new[1:] + "/")
        path.write_text(text.replace(f"Version: {version[1]}\n", f"Version: {version[1]}+1\n"))
    package = directory / "newer.deb"
    subprocess.run(["dpkg-deb", "-Zgzip", "-z1", "--build", tree, package], check=True)
    shutil.rmtree(tree)
    return package


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """Return a machine with the package `astralog` installed."""
    with Machine(tmp_path) as machine:
        machine.install(PACKAGES[1])
        yield machine


def test_package_starts_the_service(machine: Machine) -> None:
    """It stores, has commands and man pages, reloads, and survives a reboot with its logs."""
    wait_for(lambda: machine.exists("/var/lib/astralog/token"))
    outcomes = machine.check()
    assert {outcomes["health"], outcomes["ready"], outcomes["drain-read"]} == {"ok"}
    assert "FAIL" not in outcomes.values()
    assert "astralog-check" in machine.run("astralog", "tail", "-n", "all")
    for unit in ("astralog.socket", "astralog.service"):
        assert machine.run("systemctl", "is-enabled", unit).strip() == "enabled"
    user = machine.run("systemctl", "show", "--property=User,ExecStart", "astralog.service")
    assert "User=astralog" in user
    assert "/opt/astralog/" in user
    assert machine.run("stat", "-c", "%a %G", "/etc/astralog/tokens").split() == ["640", "astralog"]
    assert machine.exists("/usr/share/man/man1/astralog-tail.1.gz")
    machine.run("systemctl", "reload", "astralog.service")
    machine.reboot()
    wait_for(lambda: not machine.try_run("systemctl", "is-active", "astralog.service").returncode)
    assert machine.check()["drain-read"] == "ok"
    assert machine.run("astralog", "tail", "-n", "all").count("astralog-check drain") == 2


def test_installation_names_an_address_in_use(tmp_path: Path) -> None:
    """The service starts as soon as the other process has ended."""
    listen = "import socket; s = socket.create_server(('127.0.0.1', 8080)); s.accept()[0].recv(1)"
    with Machine(tmp_path) as machine:
        other = threading.Thread(target=lambda: machine.try_run("python3", "-c", listen))
        other.start()
        try:
            wait_for(lambda: ":1F90 " in machine.run("cat", "/proc/net/tcp"))
            [package] = machine.copy_in(PACKAGES[1])
            installed = machine.try_run(
                "dpkg", "--install", package, DEBIAN_FRONTEND="noninteractive"
            )
        finally:
            machine.try_run(
                "python3", "-c", "import socket; socket.create_connection(('127.0.0.1', 8080))"
            )
            other.join()
        assert installed.returncode == 0
        assert "cannot listen on 127.0.0.1:8080" in installed.stderr
        wait_for(lambda: machine.exists("/var/lib/astralog/token"))
        assert "FAIL" not in machine.check().values()


def test_upgrade_fails_no_request(machine: Machine, newer: Path) -> None:
    """A client that opens connections meanwhile always gets 200."""
    wait_for(lambda: machine.exists("/var/lib/astralog/token"))
    machine.run("sh", "-c", "echo '#ASTRALOG_WORKERS=1' >>/etc/astralog/astralog.env")
    outputs: list[str] = []
    client = threading.Thread(target=lambda: outputs.append(machine.run("python3", "-c", CLIENT)))
    client.start()
    try:
        time.sleep(1)
        machine.install(newer)
        wait_for(lambda: "+1/" in machine.run("systemctl", "show", "-p", "ExecStart", "astralog"))
        wait_for(lambda: machine.check()["drain"] == "ok")
    finally:
        machine.run("touch", "/stop")
        client.join()
    sent, failed = map(int, outputs[0].split())
    assert sent > 10
    assert failed == 0
    stored = machine.run("astralog", "tail", "-n", "all", "--project", "p", "--json")
    assert stored.count("\n") == sent
    assert "#ASTRALOG_WORKERS=1" in machine.run("cat", "/etc/astralog/astralog.env")
    assert machine.run("ls", "/opt/astralog").split() == [f"{version_of(machine)}"]


def version_of(machine: Machine) -> str:
    return machine.run("dpkg-query", "--show", "--showformat=${Version}", "astralog")


def test_remove_keeps_data_and_purge_asks(machine: Machine) -> None:
    """Unless confirmed, a purge keeps the logs."""
    wait_for(lambda: machine.exists("/var/lib/astralog/token"))
    machine.check()
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    machine.run("dpkg", "--remove", "astralog", **quiet)
    assert machine.exists("/var/lib/astralog/token")
    assert machine.exists("/etc/astralog/astralog.env")
    assert not machine.exists("/opt/astralog")
    assert machine.try_run("systemctl", "is-active", "astralog.socket").returncode != 0
    machine.install(PACKAGES[1])
    assert "astralog-check" in machine.run("astralog", "tail", "-n", "all")
    machine.run("dpkg", "--purge", "astralog", **quiet)
    assert machine.exists("/var/lib/astralog/token")
    assert not machine.exists("/etc/astralog/astralog.env")
    machine.install(PACKAGES[1])
    assert "astralog/purge_logs" in machine.run("debconf-show", "astralog")
    answer = "astralog astralog/purge_logs boolean true"
    machine.run("sh", "-c", f"echo {answer} | debconf-set-selections")
    machine.run("dpkg", "--purge", "astralog", **quiet)
    assert not machine.exists("/var/lib/astralog")


def test_forward_package_delivers_nothing_until_configured(machine: Machine) -> None:
    """It adds the client library; its unit is neither enabled nor started."""
    machine.install(PACKAGES[0])
    assert (
        machine.try_run("systemctl", "is-enabled", "astralog-forward").stdout.strip() == "disabled"
    )
    output = machine.try_run("astralog", "forward", "--once").stderr
    assert "ASTRALOG_CLICKHOUSE_URL: Needed" in output
