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
        "astralog/server/gunicorn_settings.py",
        "heartbeat.keep_in_memory()",
        "heartbeat.make_heartbeat",
        ("tests/functional/test_full_memory.py", "-k", "later"),
    ),
    Guard(
        "rest of a file of tokens",
        "astralog/tokens_file.py",
        "return age >= (REST_SECONDS if is_finished else UNFINISHED_REST_SECONDS)",
        "return age >= REST_SECONDS",
        ("tests/unit/test_tokens_file.py", "-k", "half_written"),
    ),
    Guard(
        "comments in a file of tokens",
        "astralog/tokens_file.py",
        'if word.startswith(b"#"):',
        "if False:",
        ("tests/unit/test_tokens_file.py", "-k", "token_and_its_projects"),
    ),
    Guard(
        "one line for a token",
        "astralog/auth.py",
        "tokens_file.check_distinct(tokens)",
        "tokens.sort()",
        ("tests/unit/test_auth.py", "-k", "two_places"),
    ),
    Guard(
        "tokens read off the hub",
        "astralog/auth.py",
        "gevent.get_hub().threadpool.apply(self._read_changed)",
        "self._read_changed()",
        ("tests/unit/test_auth.py", "-k", "waits_for_the_disk"),
    ),
    Guard(
        "tokens as they are after a faulty reload",
        "astralog/server/inheritance.py",
        """"; ".join(error.problems))
        return
""",
        """"; ".join(error.problems))
""",
        ("tests/unit/server/test_inheritance.py", "-k", "replaces_nothing"),
    ),
    Guard(
        "code of the start in later workers",
        "astralog/server/application.py",
        "sys.modules[name] = module = module_from_spec(spec)",
        "module = module_from_spec(spec)",
        ("tests/unit/server/test_application.py", "-k", "was_there"),
    ),
    Guard(
        "lines of the log for what is rejected",
        "astralog/api/rejection_log.py",
        "silence = self._silences.get(source)",
        "silence = None",
        ("tests/unit/api/test_rejection_log.py", "-k", "one_line_in_a_while"),
    ),
    Guard(
        "clients that are told apart",
        "astralog/api/rejection_log.py",
        "for source in self._silences) >= MAX_SOURCES",
        "for source in self._silences) < 0",
        ("tests/unit/api/test_rejection_log.py", "-k", "crowd"),
    ),
    Guard(
        "escapes in the log",
        "astralog/api/rejection_log.py",
        "return repr(words)[1:-1]",
        "return words",
        ("tests/unit/api/test_rejection_log.py", "-k", "pass_for_the_log"),
    ),
)
