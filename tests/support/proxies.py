"""Start nginx or HAProxy with the configuration of deploy/, in front of services of a test."""

import http.client
import os
import shutil
import ssl
from pathlib import Path
from typing import Self

from tests.support.certificate import make_certificate
from tests.support.connections import free_port
from tests.support.service import ROOT, Service, wait_for

PATH = os.environ.get("PATH", "") + ":/usr/sbin"

#: The addresses that the configurations name; a test puts its own in their place.
NODES = ("10.0.0.11:8080", "10.0.0.12:8080")


def find_program(name: str) -> str | None:
    """Return the path of a program, also if it is only on root's search path."""
    return shutil.which(name, path=PATH)


class Proxy(Service):
    """A proxy in front of nodes, with the client functions of a service, in the clear or by TLS."""

    def __init__(self, directory: Path, nodes: list[Service]) -> None:
        directory.mkdir()
        super().__init__(directory)
        self._directory = directory
        self._nodes = nodes
        self._secure = ("127.0.0.1", free_port())
        self.address = ("127.0.0.1", free_port())
        self.is_secure = False
        self.certificate, self.key = make_certificate(directory)

    def wait_until_listening(self) -> Self:
        """Return when the proxy accepts connections."""
        wait_for(self._accepts)
        return self

    def _accepts(self) -> bool:
        assert self.process.poll() is None, self.log()
        try:
            self.connect().close()
        except ConnectionRefusedError:
            return False
        return True

    def open_connection(self, timeout: float) -> http.client.HTTPConnection:
        """Return a connection that speaks HTTP to the proxy."""
        if not self.is_secure:
            return super().open_connection(timeout)
        context = ssl.create_default_context(cafile=str(self.certificate))
        return http.client.HTTPSConnection(*self._secure, timeout=timeout, context=context)

    def _configure(self, text: str, replacements: dict[str, str]) -> str:
        """Return a configuration with the test's addresses and files."""
        for node, service in zip(NODES, self._nodes, strict=True):
            host, port = service.address
            replacements[node] = f"{host}:{port}"
        for old, new in replacements.items():
            assert 1 == text.count(old), old
            text = text.replace(old, new)
        return text


class Nginx(Proxy):
    """nginx with deploy/nginx/astralog.conf in its http block."""

    def command(self) -> list[str]:
        """Return the command that starts nginx, after writing its configuration."""
        replacements = {
            "listen 80;": f"listen 127.0.0.1:{self.address[1]};",
            "listen 443 ssl;": f"listen 127.0.0.1:{self._secure[1]} ssl;",
            "/etc/nginx/ingest.example.com.pem": str(self.certificate),
            "/etc/nginx/ingest.example.com.key": str(self.key),
        }
        text = (ROOT / "deploy" / "nginx" / "astralog.conf").read_text()
        path = self._directory / "nginx.conf"
        paths = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = "".join(f"{name}_temp_path {self._directory / name};\n" for name in paths)
        path.write_text(
            f"daemon off;\npid {self._directory / 'nginx.pid'};\nworker_processes 2;\n"
            f"user {'root' if os.getuid() == 0 else 'nobody'};\n"
            f"error_log stderr;\nevents {{}}\nhttp {{\naccess_log off;\n{temporary}"
            f"{self._configure(text, replacements)}}}\n"
        )
        program = find_program("nginx")
        assert program
        return [program, "-e", "stderr", "-p", str(self._directory), "-c", str(path)]


class Haproxy(Proxy):
    """HAProxy with deploy/haproxy/haproxy.cfg."""

    def command(self) -> list[str]:
        """Return the command that starts HAProxy, after writing its configuration."""
        bundle = self._directory / "bundle.pem"
        bundle.write_text(self.certificate.read_text() + self.key.read_text())
        replacements = {
            "bind :80 ": f"bind 127.0.0.1:{self.address[1]} ",
            "bind :443 ": f"bind 127.0.0.1:{self._secure[1]} ",
            "/etc/haproxy/ingest.example.com.pem": str(bundle),
        }
        text = (ROOT / "deploy" / "haproxy" / "haproxy.cfg").read_text()
        path = self._directory / "haproxy.cfg"
        path.write_text(self._configure(text, replacements))
        program = find_program("haproxy")
        assert program
        return [program, "-db", "-f", str(path)]
