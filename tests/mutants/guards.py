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
        "astralog/intake/acceptor.py",
        'token = self._tokens.authenticate(environ.get("HTTP_AUTHORIZATION"))',
        'environ["wsgi.input"].read(1); '
        'token = self._tokens.authenticate(environ.get("HTTP_AUTHORIZATION"))',
        ("tests/functional/test_contract.py", "-k", "rejected_before_the_body_is_read"),
    ),
    Guard(
        "one heavy decode at a time",
        "astralog/intake/lanes.py",
        "self._semaphore = Semaphore()",
        "self._semaphore = Semaphore(200)",
        ("tests/unit/intake/test_lanes.py",),
    ),
    Guard(
        "others are served between heavy decodes",
        "astralog/intake/lanes.py",
        "PAUSE_SECONDS = 1e-6",
        "PAUSE_SECONDS = 0",
        ("tests/unit/intake/test_lanes.py",),
    ),
    Guard(
        "bound on the wait for a turn",
        "astralog/intake/lanes.py",
        "timeout=max(deadline - time.monotonic(), 0)",
        "timeout=1",
        ("tests/unit/intake/test_lanes.py",),
    ),
    Guard(
        "bound on invalid logs",
        "astralog/intake/invalid_logs.py",
        "return self.count >= COUNTED_LOGS",
        "return False",
        ("tests/unit/intake/test_schema.py", "tests/unit/intake/test_options.py"),
    ),
    Guard(
        "bound on what a body grows to",
        "astralog/intake/batch.py",
        "if size > MAX_GROWTH * len(body) + formats.PIECE_BYTES:",
        "if False:",
        ("tests/unit/intake/test_options.py", "-k", "grow"),
    ),
    Guard(
        "memory charged for lines that are longer than their body",
        "astralog/intake/acceptor.py",
        "if len(batch.lines) > size:",
        "if False:",
        ("tests/unit/intake/test_acceptor.py",),
    ),
    Guard(
        "fields of one name are not merged",
        "astralog/intake/options.py",
        "if twice := metadata.keys() & log:",
        "if twice := {}:",
        ("tests/unit/intake/test_options.py", "-k", "metadata_has_already"),
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
)
