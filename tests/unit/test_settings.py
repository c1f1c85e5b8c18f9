import dataclasses
import os
from pathlib import Path

import pytest

from astralog.resources import count_cores
from astralog.settings import InvalidSettings, Settings, service_links


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("ASTRALOG_"):
            monkeypatch.delenv(name)


def problems_of(monkeypatch: pytest.MonkeyPatch, **environ: str) -> list[str]:
    """Return the lines of the rejection of an environment."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InvalidSettings) as rejected:
        Settings.from_environ()
    assert "\n".join(rejected.value.problems) == str(rejected.value)
    return rejected.value.problems


def test_defaults_are_the_documented_ones() -> None:
    """Without variables, every setting has its documented default."""
    mib = 1024 * 1024
    expected = {
        "bind": "127.0.0.1:8080",
        "tokens": "",
        "tokens_file": "",
        "data_dir": Path("data"),
        "workers": count_cores(),
        "sync": "always",
        "max_body_bytes": 10 * mib,
        "body_timeout_seconds": 10.0,
        "commit_timeout_seconds": 8.0,
        "queue_bytes": 64 * mib,
        "writers": 1,
        "segment_bytes": 256 * mib,
        "segment_seconds": 3600.0,
        "min_free_bytes": 256 * mib,
        "retain_bytes": 0,
        "retain_seconds": 0.0,
        "compress": "none",
        "retain_undelivered": "always",
        "clickhouse_url": "",
        "clickhouse_table": "logs",
        "clickhouse_timeout_seconds": 60.0,
        "node": "",
        "forward_chunk_bytes": 16 * mib,
        "forward_keep_seconds": 0.0,
    }
    actual = dataclasses.asdict(Settings.from_environ())
    assert expected == {name: actual[name] for name in expected}


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("bind", "0.0.0.0:80", "0.0.0.0:80"),
        ("bind", "localhost:0", "localhost:0"),
        ("bind", "[::1]:8080", "[::1]:8080"),
        ("bind", "unix:/run/astralog.sock", "unix:/run/astralog.sock"),
        ("tokens", "one,two", "one,two"),
        ("tokens", "a={{b}}$c", "a={{b}}$c"),
        ("tokens_file", "/etc/astralog/tokens", "/etc/astralog/tokens"),
        ("data_dir", "/var/lib/astralog", Path("/var/lib/astralog")),
        ("data_dir", "~/logs", Path.home() / "logs"),
        ("tokens_file", "~/tokens", str(Path.home() / "tokens")),
        ("bind", "unix:~/astralog.sock", f"unix:{Path.home()}/astralog.sock"),
        ("workers", "1", 1),
        ("workers", "256", 256),
        ("sync", "everysec", "everysec"),
        ("sync", "never", "never"),
        ("max_body_bytes", "1", 1),
        ("body_timeout_seconds", "0.5", 0.5),
        ("commit_timeout_seconds", "3", 3.0),
        ("queue_bytes", "10485760", 10485760),
        ("writers", "4", 4),
        ("segment_bytes", "1000", 1000),
        ("segment_seconds", "1e2", 100.0),
        ("compress", "zstd", "zstd"),
        ("retain_undelivered", "until_full", "until_full"),
        ("min_free_bytes", "0", 0),
        ("retain_bytes", "1", 1),
        ("retain_seconds", "0.25", 0.25),
        ("clickhouse_url", "http://localhost:8123", "http://localhost:8123"),
        ("clickhouse_url", "https://a:b%40c@[::1]/db?x=y", "https://a:b%40c@[::1]/db?x=y"),
        ("clickhouse_url", "", ""),
        ("clickhouse_table", "_Logs2", "_Logs2"),
        ("clickhouse_timeout_seconds", "1", 1.0),
        ("node", "eu-1.example.com", "eu-1.example.com"),
        ("forward_chunk_bytes", "1", 1),
        ("forward_keep_seconds", "0.5", 0.5),
        ("log_level", "debug", "debug"),
    ],
)
def test_a_variable_sets_its_setting(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, expected: object
) -> None:
    """`ASTRALOG_` and a setting's name in capitals sets it, with the setting's type."""
    monkeypatch.setenv("ASTRALOG_" + name.upper(), text)
    actual = getattr(Settings.from_environ(), name)
    assert expected == actual
    assert isinstance(actual, type(expected))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("BIND", "8080"),
        ("BIND", "127.0.0.1"),
        ("BIND", "127.0.0.1:http"),
        ("BIND", "http://127.0.0.1:8080"),
        ("BIND", "127.0.0.1:8080\n"),
        ("BIND", "unix:"),
        ("BIND", ""),
        ("CLICKHOUSE_URL", "localhost:8123"),
        ("CLICKHOUSE_URL", "clickhouse://host"),
        ("CLICKHOUSE_URL", "http://"),
        ("CLICKHOUSE_URL", "http://host:port"),
        ("CLICKHOUSE_URL", "http://[::1"),
        ("CLICKHOUSE_TABLE", ""),
        ("CLICKHOUSE_TABLE", "db.logs"),
        ("CLICKHOUSE_TABLE", "logs; DROP TABLE x"),
        ("CLICKHOUSE_TABLE", "logs\n"),
        ("CLICKHOUSE_TIMEOUT_SECONDS", "0.5"),
        ("NODE", ""),
        ("NODE", "a b"),
        ("NODE", "a/b"),
        ("NODE", "x" * 256),
        ("FORWARD_CHUNK_BYTES", "0"),
        ("FORWARD_CHUNK_BYTES", "268435457"),
        ("FORWARD_KEEP_SECONDS", "-1"),
        ("BIND", "unix:~nobody-has-this-name/x"),
        ("DATA_DIR", ""),
        ("DATA_DIR", "~nobody-has-this-name/logs"),
        ("TOKENS_FILE", "~nobody-has-this-name/tokens"),
        ("WORKERS", "0"),
        ("WORKERS", "257"),
        ("WORKERS", "two"),
        ("WORKERS", "1.5"),
        ("WORKERS", ""),
        ("SYNC", "sometimes"),
        ("SYNC", "ALWAYS"),
        ("MAX_BODY_BYTES", "0"),
        ("MAX_BODY_BYTES", "10MB"),
        ("BODY_TIMEOUT_SECONDS", "0"),
        ("BODY_TIMEOUT_SECONDS", "nan"),
        ("BODY_TIMEOUT_SECONDS", "inf"),
        ("COMMIT_TIMEOUT_SECONDS", "-1"),
        ("COMMIT_TIMEOUT_SECONDS", "8s"),
        ("QUEUE_BYTES", "0"),
        ("QUEUE_BYTES", "1000"),
        ("WRITERS", "0"),
        ("WRITERS", "65"),
        ("SEGMENT_BYTES", "0"),
        ("SEGMENT_SECONDS", "0"),
        ("MIN_FREE_BYTES", "-1"),
        ("RETAIN_BYTES", "-1"),
        ("RETAIN_SECONDS", "-0.1"),
        ("COMPRESS", "gzip"),
        ("COMPRESS", ""),
        ("RETAIN_UNDELIVERED", "never"),
        ("LOG_LEVEL", "loud"),
    ],
)
def test_a_wrong_value_is_rejected_in_one_line_that_names_it(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    """A wrong value stops the start with one line, which begins with its variable."""
    problems = problems_of(monkeypatch, **{"ASTRALOG_" + name: text})
    assert 1 == len(problems)
    assert problems[0].startswith(f"ASTRALOG_{name}: ")


def test_an_unknown_name_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelled variable stops the start, since its setting would silently not apply."""
    problems = problems_of(monkeypatch, ASTRALOG_DATADIR="/srv")
    assert ["ASTRALOG_DATADIR: No such setting; see docs/configuration.md."] == problems


def test_certificate_files_may_be_in_the_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """`~` is the home directory of the service's user, as in a shell."""
    monkeypatch.setenv("ASTRALOG_TLS_CERT", "~/cert.pem")
    monkeypatch.setenv("ASTRALOG_TLS_KEY", "~/key.pem")
    settings = Settings.from_environ()
    home = str(Path.home())
    assert (f"{home}/cert.pem", f"{home}/key.pem") == (settings.tls_cert, settings.tls_key)


#: What Kubernetes 1.31 makes of two Services, `astralog` and `astralog-tail`.
SERVICE_LINKS = {
    "ASTRALOG_SERVICE_HOST": "10.96.12.7",
    "ASTRALOG_SERVICE_PORT": "8080",
    "ASTRALOG_SERVICE_PORT_HTTP": "8080",
    "ASTRALOG_PORT": "tcp://10.96.12.7:8080",
    "ASTRALOG_PORT_8080_TCP": "tcp://10.96.12.7:8080",
    "ASTRALOG_PORT_8080_TCP_PROTO": "tcp",
    "ASTRALOG_PORT_8080_TCP_PORT": "8080",
    "ASTRALOG_PORT_8080_TCP_ADDR": "10.96.12.7",
    "ASTRALOG_TAIL_SERVICE_HOST": "fd00::7",
    "ASTRALOG_TAIL_SERVICE_PORT": "53",
    "ASTRALOG_TAIL_PORT": "udp://[fd00::7]:53",
    "ASTRALOG_TAIL_PORT_53_UDP": "udp://[fd00::7]:53",
    "ASTRALOG_TAIL_PORT_53_UDP_ADDR": "fd00::7",
}


def test_variables_of_kubernetes_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a pod of a Service named astralog, the service keeps its settings and starts."""
    for name, value in SERVICE_LINKS.items():
        monkeypatch.setenv(name, value)
    assert Settings() == Settings.from_environ()
    ignored = service_links()
    assert sorted(SERVICE_LINKS) == ignored


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "8080"),
        ("PORTS", "tcp://10.0.0.1:8080"),
        ("SERVICE_HOST", "my host"),
        ("SERVICE_PORT", "http"),
        ("PORT_8080_TCP_ADDR", ""),
        ("PORT_TCP", "tcp://10.0.0.1:8080"),
        ("TLS_CRT", "tcp"),
        ("WORKER_PORT", "8080"),
    ],
)
def test_variable_that_resembles_kubernetes_is_rejected(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """Kubernetes' variables are recognised by their values too, so a misspelled setting is not."""
    (problem,) = problems_of(monkeypatch, **{f"ASTRALOG_{name}": value})
    assert problem.startswith(f"ASTRALOG_{name}: No such setting")


def test_variable_of_another_program_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only names that begin with `ASTRALOG_` are read."""
    monkeypatch.setenv("ASTRALOGGER_X", "1")
    monkeypatch.setenv("DATA_DIR", "/srv")
    assert Settings() == Settings.from_environ()


def test_all_faults_are_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each wrong value and unknown name is one line of the same rejection."""
    problems = problems_of(
        monkeypatch, ASTRALOG_WORKERS="0", ASTRALOG_SYNC="maybe", ASTRALOG_B="1", ASTRALOG_A="1"
    )
    names = sorted(problem.partition(":")[0] for problem in problems)
    assert ["ASTRALOG_A", "ASTRALOG_B", "ASTRALOG_SYNC", "ASTRALOG_WORKERS"] == names


@pytest.mark.parametrize(("queue_bytes", "is_rejected"), [(2000, False), (1999, True)])
def test_the_queue_must_hold_the_largest_body(
    monkeypatch: pytest.MonkeyPatch, queue_bytes: int, is_rejected: bool
) -> None:
    """A queue smaller than a body stops the start, since no body would ever fit."""
    monkeypatch.setenv("ASTRALOG_MAX_BODY_BYTES", "2000")
    if is_rejected:
        (problem,) = problems_of(monkeypatch, ASTRALOG_QUEUE_BYTES=str(queue_bytes))
        assert problem.startswith("ASTRALOG_QUEUE_BYTES: ")
    else:
        monkeypatch.setenv("ASTRALOG_QUEUE_BYTES", str(queue_bytes))
        assert queue_bytes == Settings.from_environ().queue_bytes


def test_settings_do_not_change() -> None:
    """Settings are frozen after the start has checked them."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().workers = 0  # type: ignore[misc]


def test_every_setting_has_help() -> None:
    """Each setting has the help and the default of the docs' table."""
    for field in dataclasses.fields(Settings):
        assert field.metadata["help"].endswith("."), field.name
        assert field.metadata["shown"], field.name


def test_a_secret_is_in_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong address is rejected without its text; a right one is not shown, nor are tokens."""
    [problem] = problems_of(monkeypatch, ASTRALOG_CLICKHOUSE_URL="ftp://user:secret@host/")
    assert problem.startswith("ASTRALOG_CLICKHOUSE_URL: Not a URL")
    assert "secret" not in problem
    monkeypatch.setenv("ASTRALOG_CLICKHOUSE_URL", "http://user:secret@host/")
    monkeypatch.setenv("ASTRALOG_TOKENS", "secret-token")
    assert "secret" not in repr(Settings.from_environ())


@pytest.mark.parametrize("text", ["10.0.0.1", "10.0.0.0/8, ::1", ""])
def test_trusted_proxies_are_addresses_and_networks(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """They are separated by commas; by default none is trusted."""
    assert "" == Settings.from_environ().trusted_proxies
    monkeypatch.setenv("ASTRALOG_TRUSTED_PROXIES", text)
    assert text == Settings.from_environ().trusted_proxies


@pytest.mark.parametrize("text", ["proxy.example.com", "10.0.0.1/8", "10.0.0.1;10.0.0.2", "*"])
def test_invalid_trusted_proxy_stops_the_start(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """The message names host names, networks with host bits, and any other value."""
    (line,) = problems_of(monkeypatch, ASTRALOG_TRUSTED_PROXIES=text)
    assert line.startswith("ASTRALOG_TRUSTED_PROXIES: Not addresses or networks: ")
