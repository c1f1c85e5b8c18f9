"""Every guard that is taken out by name, and the tests that must notice that it is gone."""

from typing import NamedTuple


class Guard(NamedTuple):
    """A piece of code that keeps a promise.

    `code` stands once in the file `path`, and is replaced by `without`; at least one of `tests`,
    which are pytest's arguments, must then fail.
    """

    name: str
    path: str
    code: str
    without: str
    tests: tuple[str, ...]

    def remove_from(self, text: str) -> str:
        """Return the text of the file without the guard; ValueError where it is not there once."""
        if text.count(self.code) != 1:
            raise ValueError(f"{self.name}: {self.path} has its code {text.count(self.code)} times")
        return text.replace(self.code, self.without)


GUARDS: tuple[Guard, ...] = (
    Guard(
        "authentication before the body",
        "astralog/api/drain.py",
        'token = tokens.authenticate(environ.get("HTTP_AUTHORIZATION"))',
        'environ["wsgi.input"].read(1); '
        'token = tokens.authenticate(environ.get("HTTP_AUTHORIZATION"))',
        ("tests/functional/test_contract.py", "-k", "rejected_before_the_body_is_read"),
    ),
    Guard(
        "checksum of a metrics snapshot",
        "astralog/telemetry/slots.py",
        "is_whole = len(data) == size and checksum == _checksum(writes, data)",
        "is_whole = len(data) == size and checksum is not None",
        ("tests/unit/telemetry/test_slots.py", "-k", "half_a_write"),
    ),
    Guard(
        "second look at a metrics slot that is written to",
        "astralog/telemetry/slots.py",
        "if None not in halves or halves == before:",
        "if True:",
        ("tests/unit/telemetry/test_slots.py", "-k", "never_goes_back"),
    ),
    Guard(
        "counts of dead workers",
        "astralog/telemetry/slots.py",
        "self._before = decode(data).without_gauges() if data else EMPTY",
        "self._before = EMPTY",
        ("tests/unit/telemetry/test_slots.py", "-k", "carries_on"),
    ),
    Guard(
        "heartbeats in memory",
        "gunicorn.conf.py",
        "heartbeat.keep_in_memory()",
        "heartbeat.make_heartbeat",
        ("tests/functional/test_full_memory.py", "-k", "later"),
    ),
    Guard(
        "forward asks the table in doubt",
        "astralog/forward/delivery.py",
        "self._tables.held(chunk) if in_doubt else ()",
        "()",
        ("tests/unit/forward/test_delivery.py",),
    ),
    Guard(
        "forward asks the table after a failure",
        "astralog/forward/delivery.py",
        "in_doubt, self._in_doubt = self._in_doubt, True",
        "in_doubt = self._in_doubt",
        ("tests/unit/forward/test_delivery.py",),
    ),
    Guard(
        "forward asks the table after it said no",
        "astralog/forward/delivery.py",
        "self._deliver(half, in_doubt=True)",
        "self._deliver(half, in_doubt=False)",
        ("tests/unit/forward/test_delivery.py",),
    ),
    Guard(
        "forward keeps what the table cannot hold",
        "astralog/forward/delivery.py",
        "if rows.unfit:",
        "if False:",
        ("tests/unit/forward/test_delivery.py",),
    ),
    Guard(
        "a search for what the table rejects has an end",
        "astralog/forward/delivery.py",
        " or self._searched > SEARCH_INSERTS",
        "",
        ("tests/unit/forward/test_delivery.py",),
    ),
    Guard(
        "doubt outlives a kill of forward",
        "astralog/forward/cursor.py",
        "self._positions.setdefault(name, START)\n        self.in_doubt = set(self._positions)",
        "pass\n        self.in_doubt = set(sealed) - self.delivered",
        ("tests/unit/forward/test_cursor.py",),
    ),
    Guard(
        "forward notes a segment before it sends it",
        "astralog/forward/forwarder.py",
        "self._cursor.begin(name)\n",
        "pass\n",
        ("tests/unit/forward/test_forwarder.py",),
    ),
    Guard(
        "forward's facts are synced",
        "astralog/forward/cursor.py",
        "os.fdatasync(fd)",
        "pass",
        ("tests/unit/forward/test_cursor.py",),
    ),
    Guard(
        "a foreign cursor holds for nothing",
        "astralog/forward/cursor.py",
        "if first != head:",
        "if False:",
        ("tests/unit/forward/test_cursor.py",),
    ),
    Guard(
        "a damaged line of a cursor is no fact",
        "astralog/store/deliveries.py",
        ' or check != b"%08x" % zlib.crc32(text)',
        "",
        ("tests/unit/store/test_deliveries.py", "tests/unit/forward/test_cursor.py"),
    ),
    Guard(
        "an insert has a token",
        "astralog/forward/client.py",
        '"insert_deduplication_token": token,',
        "",
        ("tests/functional/test_forward.py", "-k", "does_not_show_yet"),
    ),
    Guard(
        "one forward delivers from a directory",
        "astralog/forward/run.py",
        "fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        ("tests/functional/test_forward.py", "-k", "second_forward"),
    ),
    Guard(
        "timestamps that the table would change",
        "astralog/forward/rows.py",
        "any(map(_is_suspect, lines))",
        "False",
        ("tests/unit/forward/test_rows.py",),
    ),
    Guard(
        "a listing may miss what is compressed meanwhile",
        "astralog/forward/backlog.py",
        "for name in missing if not sealed.is_sealed(self._directory, name)",
        "for name in missing",
        ("tests/unit/forward/test_backlog.py",),
    ),
    Guard(
        "forward does not spin without a directory",
        "astralog/forward/forwarder.py",
        "self._look_at = started + LOOK_SECONDS",
        "pass",
        ("tests/unit/forward/test_forwarder.py",),
    ),
    Guard(
        "forward leaves another directory alone",
        "astralog/forward/forwarder.py",
        "if os.stat(self._directory).st_ino != self._inode:",
        "if False:",
        ("tests/unit/forward/test_forwarder.py",),
    ),
    Guard(
        "forward survives a night without a server",
        "astralog/forward/failures.py",
        "min(self.attempts, 32)",
        "self.attempts",
        ("tests/unit/forward/test_failures.py",),
    ),
    Guard(
        "the password stays out of forward's files and lines",
        "astralog/forward/client.py",
        'host = parts.netloc.rpartition("@")[2]',
        "host = parts.netloc",
        ("tests/unit/forward/test_client.py",),
    ),
)
