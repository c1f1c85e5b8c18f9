"""A service that is upgraded: a copy of the checkout, behind a socket held as by systemd."""

import re
import shlex
import shutil
import socket
from pathlib import Path
from types import TracebackType

from tests.support.service import ROOT, Service

#: What a running service consists of.
PARTS = ("astralog", "gunicorn.conf.py", "wsgi.py")


def copy_checkout(directory: Path) -> Path:
    """Copy the files of the service into a new directory, and return it.

    Compiled modules are copied too, except those that another process is writing.
    """
    directory.mkdir()
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, directory / part, ignore=shutil.ignore_patterns("*.pyc.*"))
        else:
            shutil.copy(source, directory)
    return directory


def set_version(root: Path, version: str) -> None:
    """Turn the checkout into another version."""
    path = root / "astralog" / "__init__.py"
    path.write_text(re.sub('__version__ = ".+"', f'__version__ = "{version}"', path.read_text()))


class HeldService(Service):
    """A service on a socket that stays open whether or not it runs, as with systemd."""

    def __init__(self, directory: Path, root: Path = ROOT, **settings: object) -> None:
        super().__init__(directory, **settings)
        self.root = root
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.inherited = (self.listener.fileno(),)

    def command(self) -> list[str]:
        """Return the command that starts the service according to sd_listen_fds(3)."""
        start = shlex.join(super().command())
        (listener,) = self.inherited
        return ["bash", "-c", f"LISTEN_PID=$$ LISTEN_FDS=1 exec {start} 3<&{listener}"]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        self.listener.close()
