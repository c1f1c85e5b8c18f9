"""Run syslog-ng with a recipe of docs/senders.md, and send messages to it."""

import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.connections import free_port
from tests.support.proxies import PATH
from tests.support.service import ROOT, TOKEN, wait_for

RECIPES = (ROOT / "docs" / "senders.md").read_text()

#: The destination of each recipe, by its driver.
DESTINATIONS = {
    driver: recipe
    for recipe, driver in re.findall(
        r"```\n(destination d_astralog \{\n  ([\w-]+)\(.*?)```", RECIPES, re.DOTALL
    )
}
(LOG_PATH,) = re.findall(r"```\n(log \{ .*?)```", RECIPES, re.DOTALL)

#: A destination that sends the requests of `splunk-hec-event` of syslog-ng 4.2 and later, with one
#: field: https://github.com/syslog-ng/syslog-ng/blob/master/scl/splunk/splunk.conf
SPLUNK = """
block destination splunk-hec-event(
  url() token() default_index() sourcetype() event("$MSG") fields() extra_queries("") ...
) {
  http(
    url("`url`/services/collector/event/1.0?index=`default_index`&source=syslog-ng`extra_queries`")
    headers("Authorization: Splunk `token`" "Content-Type: application/json")
    body('$(format-json --omit-empty-values sourcetype="`sourcetype`" host="$HOST"
           time="$S_UNIXTIME.$S_MSEC" event="`event`" fields.`fields`)')
    `__VARARGS__`
  );
};
"""


#: The definition of `elasticsearch-http` in Debian's syslog-ng-scl.
ELASTICSEARCH = Path("/usr/share/syslog-ng/include/scl/elasticsearch/elastic-http.conf")

#: What defines each driver.
DEFINITIONS = {
    "http": "",
    "elasticsearch-http": f'@include "{ELASTICSEARCH}"',
    "splunk-hec-event": SPLUNK,
}


def find_syslog_ng() -> str | None:
    """Return the path of syslog-ng, None if it or its library is missing."""
    return shutil.which("syslog-ng", path=PATH) if ELASTICSEARCH.exists() else None


class SyslogNg:
    """A syslog-ng that receives messages over TCP, and sends them to 127.0.0.1 at a port.

    It retries after a second, where the recipe leaves it at a minute.
    """

    def __init__(self, directory: Path, service_port: int, driver: str = "http") -> None:
        directory.mkdir()
        self._directory = directory
        self._port = free_port()
        destination = DESTINATIONS[driver].replace("localhost:8080", f"127.0.0.1:{service_port}")
        destination = destination.replace("TOKEN", TOKEN)
        destination = destination.replace("disk-buffer(", f'disk-buffer(dir("{directory}") ')
        (directory / "conf").write_text(
            f"@version: 3.38\n{DEFINITIONS[driver]}\n"
            "options { keep-hostname(yes); use-dns(no); time-reopen(1); };\n"
            f'source s_src {{ network(ip("127.0.0.1") port({self._port}) transport("tcp")); }};\n'
            f"{destination}\n{LOG_PATH}\n"
        )

    def __enter__(self) -> Self:
        program = find_syslog_ng()
        assert program
        files = ("persist-file", "control", "pidfile")
        options = [f"--{name}={self._directory / name}" for name in files]
        command = [program, "-F", "-e", "--no-caps", "-f", str(self._directory / "conf"), *options]
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(command, cwd=self._directory, stdout=log, stderr=log)
        try:
            wait_for(self._is_listening)
        except BaseException:
            self._process.kill()
            raise
        return self

    def _is_listening(self) -> bool:
        assert self._process.poll() is None, self.log()
        with socket.socket() as connection:
            return connection.connect_ex(("127.0.0.1", self._port)) == 0

    @property
    def _log_path(self) -> Path:
        return self._directory / "log"

    def log(self) -> str:
        """Return its own log."""
        return self._log_path.read_text(errors="replace")

    def send(self, *messages: bytes) -> None:
        """Send messages unchanged, one per line."""
        with socket.create_connection(("127.0.0.1", self._port)) as connection:
            connection.sendall(b"".join(message + b"\n" for message in messages))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(30)
        finally:
            self._process.kill()


def make_message(text: str, program: str = "shop[7]: ") -> bytes:
    """Return a message in syslog's form (RFC 3164)."""
    return f"<14>{time.strftime('%b %d %H:%M:%S')} host-1 {program}{text}".encode()
