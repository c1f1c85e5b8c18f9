"""Programs that log through the Python client: their exits and forks, and how they find it."""

import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.programs import CLIENT, Programs, messages, url_of
from tests.support.service import TOKEN, Service

#: How a program may end by itself, and what it has logged by then.
ENDS = {
    "end": ("log('a')", "a"),
    "exit": ("log('a'); sys.exit()", "a"),
    "close": ("log('a'); logging.shutdown(); logging.shutdown()", "a"),
    "log at exit": ("log('a'); atexit.register(log, 'b')", "ab"),
    "first log at exit": ("atexit.register(log, 'a')", "a"),
    "fork": (
        "log('a')\nif os.fork():\n  log('b'); os.wait()\nelse:\n  log('c'); sys.exit()",
        "abc",
    ),
    "first log of a fork at its exit": (
        "if os.fork():\n  os.wait()\nelse:\n  atexit.register(log, 'a')",
        "a",
    ),
    "fork without exit": (
        "if not os.fork():\n  log('a'); handler.flush(); os._exit(0)\nos.wait(); log('b')",
        "ab",
    ),
    "multiprocessing by fork": (
        "log('a')\n"
        "child = multiprocessing.get_context('fork').Process(target=log, args='b')\n"
        "child.start(); child.join(); log('c')",
        "abc",
    ),
    "multiprocessing by spawn": (
        "if __name__ == '__main__':\n"
        "  child = multiprocessing.get_context('spawn').Process(target=log, args='a')\n"
        "  child.start(); child.join(); log('b')",
        "ab",
    ),
    "exit of a thread": ("threading.Thread(target=lambda: (log('a'), sys.exit())).start()", "a"),
    "daemon thread": (
        "thread = threading.Thread(target=lambda: (log('a'), time.sleep(60)), daemon=True)\n"
        "thread.start(); time.sleep(0.1)",
        "a",
    ),
    "pool of processes": (
        "pool = multiprocessing.get_context('fork').Pool(2)\n"
        "pool.map(log, 'abcd', 1); pool.close(); pool.join()",
        "abcd",
    ),
    "executor of processes": (
        "from concurrent.futures import ProcessPoolExecutor\n"
        "with ProcessPoolExecutor(2, multiprocessing.get_context('fork')) as executor:\n"
        "  list(executor.map(log, 'abcd'))",
        "abcd",
    ),
    "fork while a lock is held": (
        "held = threading.Event()\n"
        "def hold():\n"
        "  with handler._sender.queue._changed: held.set(); time.sleep(1)\n"
        "threading.Thread(target=hold).start(); held.wait()\n"
        "child = os.fork(); log('a'); child and os.wait()",
        "aa",
    ),
    "descriptors closed": ("log('a'); handler.flush(); os.closerange(3, 100); log('b')", "ab"),
}

#: A program whose first log comes while the interpreter ends, as asyncio's of a pending task does.
FIRST_LOG_AT_THE_VERY_END = """
class Late:
    def __del__(self, log=log):
        log("late")

late = Late()
"""

#: How uvicorn ends at a signal: in order, and then by the signal, as whoever waits for it expects.
SHUT_DOWN_AS_UVICORN = """
import signal
before = signal.signal(signal.SIGTERM, lambda *_: stopped.set())
stopped = threading.Event()
log("a")
os.kill(os.getpid(), signal.SIGTERM)
stopped.wait(30)
log("b")
signal.signal(signal.SIGTERM, before)
signal.raise_signal(signal.SIGTERM)
time.sleep(30)
"""

#: What runs on every Python that the client is for: an odd value, threads, a fork and an exit.
EVERYTHING = """
def log_many(name):
    for number in range(300):
        log("%s %d", name, number, extra={"odd": float("nan"), "id": number})

threads = [threading.Thread(target=log_many, args=(name,)) for name in "bc"]
for thread in threads: thread.start()
if os.fork():
    log_many("d")
    assert os.wait()[1] == 0
    for thread in threads: thread.join()
    atexit.register(log, "parent ends")
else:
    log_many("e")
    atexit.register(log, "child ends")
"""


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    with Programs(tmp_path) as running:
        yield running


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with Service(tmp_path) as running:
        yield running


@pytest.mark.quick
def test_the_examples_of_the_readme_work(tmp_path: Path, service: Service) -> None:
    """A program's logs are stored as in the README."""
    text = (CLIENT / "README.md").read_text().replace("http://localhost:8080", url_of(service))
    example, configured, _ = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "data" / "token").write_text(TOKEN + "\n")
    use = 'logging.getLogger("shop").info("paid %d", 7, extra={"order": "A-17"})'
    for code in (example, "import logging.config\n" + configured + use):
        environ = {**os.environ, "PYTHONPATH": str(CLIENT)}
        command = [sys.executable, "-c", code]
        subprocess.run(command, cwd=tmp_path, check=True, timeout=30, env=environ)
    assert 2 == len(service.logs())
    for log in service.logs():
        assert re.fullmatch(r"[0-9-]{10}T[0-9:]{8}\.[0-9]{6}Z", log.pop("timestamp"))
        assert isinstance(log["metadata"].pop("line"), int)
        expected = {"project_id": "org-xyz", "level": "info", "service": "billing"}
        metadata = {"logger": "shop", "file": "<string>", "order": "A-17"}
        assert expected | {"message": "paid 7", "metadata": metadata} == log


@pytest.mark.parametrize(("code", "expected"), ENDS.values(), ids=ENDS)
def test_a_program_may_end_without_a_flush(
    programs: Programs, service: Service, code: str, expected: str
) -> None:
    """Each process's logs are stored once, however it exits, and nothing is reported."""
    assert "" == programs.run(url_of(service), code, interval_seconds=60)
    assert sorted(expected) == sorted(messages(service))


def test_a_first_log_at_the_very_end_does_not_keep_a_program(
    programs: Programs, service: Service
) -> None:
    """If no thread can run any more, none is started, and the log is reported as lost."""
    errors = programs.run(url_of(service), FIRST_LOG_AT_THE_VERY_END)
    assert "AstraLogHandler: logs dropped: they came after the end\n" == errors
    assert [] == service.logs()


def test_an_interrupted_program_loses_nothing(programs: Programs, service: Service) -> None:
    """Ctrl-C ends it by KeyboardInterrupt, with Python's usual exit."""
    code = "import signal\nlog('a'); os.kill(os.getpid(), signal.SIGINT); time.sleep(30)"
    errors = programs.run(url_of(service), code, status=-signal.SIGINT, interval_seconds=60)
    assert errors.endswith("KeyboardInterrupt\n")
    assert ["a"] == messages(service)


@pytest.mark.parametrize(
    ("before", "options"),
    [
        ("import sys, types; sys.modules['uvicorn'] = types.ModuleType('uvicorn')\n", {}),
        ("", {"flush_at_sigterm": True}),
    ],
    ids=["uvicorn", "option"],
)
def test_a_sigterm_that_is_raised_anew_loses_nothing(
    programs: Programs, service: Service, before: str, options: dict[str, Any]
) -> None:
    """The program ends by the signal, after a flush."""
    url = url_of(service)
    status = -signal.SIGTERM
    options = {"before": before, "interval_seconds": 60, **options}
    assert "" == programs.run(url, SHUT_DOWN_AS_UVICORN, status, **options)
    assert ["a", "b"] == messages(service)


def test_sigterm_is_handled_only_on_request(programs: Programs) -> None:
    """By default its handler is not changed, nor is an existing one replaced."""
    code = """
import signal
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
signal.signal(signal.SIGTERM, mine := lambda *_: None)
AstraLogHandler("http://localhost", token="t", project_id="p", service="s", flush_at_sigterm=True)
assert signal.getsignal(signal.SIGTERM) is mine
signal.signal(signal.SIGTERM, signal.SIG_DFL)
"""
    assert "" == programs.run("http://127.0.0.1:1", code)


def test_processes_that_a_pool_terminates_lose_nothing_if_asked(
    programs: Programs, service: Service
) -> None:
    """Leaving a pool's block ends its processes by SIGTERM."""
    code = "with multiprocessing.get_context('fork').Pool(2) as pool: pool.map(log, 'abcd', 1)"
    options: dict[str, Any] = {"interval_seconds": 60, "flush_at_sigterm": True}
    assert "" == programs.run(url_of(service), code, **options)
    assert sorted("abcd") == sorted(messages(service))


def test_a_process_that_is_terminated_while_it_starts_ends(programs: Programs) -> None:
    """As the processes of a pool that has nothing left to do."""
    code = """
import signal
for number in range(100):
    if not (child := os.fork()):
        while True:
            time.sleep(0.05)  # a signal just before one long sleep is handled after it
    os.kill(child, signal.SIGTERM)
    assert os.waitpid(child, 0)[1] == signal.SIGTERM
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
if os.fork():
    assert os.wait()[1] == 0
assert signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ())
"""
    assert "" == programs.run("http://127.0.0.1:1", code, flush_at_sigterm=True)


def test_an_error_that_ends_a_program_may_be_logged(programs: Programs, service: Service) -> None:
    """The last log before the exit is stored, with its traceback."""
    code = "try:\n  1 / 0\nexcept ZeroDivisionError:\n  logging.exception('failed'); raise"
    programs.run(url_of(service), code, status=1, interval_seconds=60)
    (log,) = service.logs()
    assert ("error", "failed") == (log["level"], log["message"])
    assert log["metadata"]["exception"].endswith("ZeroDivisionError: division by zero")


def test_workers_forked_from_one_process_may_log(programs: Programs, service: Service) -> None:
    """Each log of each worker, and of the process before the fork, is stored once."""
    code = """
for number in range(1000): log("master %d", number)
for worker in range(4):
    if not os.fork():
        for number in range(1000): log("worker %d %d", worker, number)
        sys.exit()
for worker in range(4): assert os.wait()[1] == 0
"""
    assert "" == programs.run(url_of(service), code)
    workers = {f"worker {worker} {number}" for worker in range(4) for number in range(1000)}
    assert sorted({f"master {number}" for number in range(1000)} | workers) == sorted(
        messages(service)
    )


def test_a_signals_handler_may_log(programs: Programs, service: Service) -> None:
    """A signal may arrive at any point of logging, and log itself."""
    code = """
import signal
signals = []
def log_signal(number, frame):
    signals.append(number)
    log("signal")
signal.signal(signal.SIGALRM, log_signal)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
logs = 0
while len(signals) < 300:
    log("plain")
    logs += 1
signal.setitimer(signal.ITIMER_REAL, 0)
print(logs, len(signals), file=sys.stderr)
"""
    logs, signals = map(int, programs.run(url_of(service), code).split())
    assert {"plain": logs, "signal": signals} == Counter(messages(service))


def test_greenlets_may_log(programs: Programs, service: Service) -> None:
    """Under gevent, too, each log of each greenlet and each process is stored once."""
    code = """
import gevent
def work(name):
    for number in range(100):
        log("%s %d", name, number)
        gevent.sleep(0)
gevent.joinall([gevent.spawn(work, name) for name in "abc"])
if gevent.os.fork():
    work("parent")
    os.wait()
else:
    work("child")
    gevent.sleep(1)  # what waits in the parent shall not be sent by the child's copies of greenlets
"""
    before = "from gevent import monkey; monkey.patch_all()\n"
    options: dict[str, Any] = {"before": before, "warnings": "default", "interval_seconds": 0.2}
    assert "" == programs.run(url_of(service), code, **options)
    names = ["a", "b", "c", "parent", "child"]
    assert sorted(f"{name} {number}" for name in names for number in range(100)) == sorted(
        messages(service)
    )


def test_sending_imports_nothing(programs: Programs, service: Service) -> None:
    """A module that a thread imports during another's fork stays incomplete in the child."""
    code = """
before = set(sys.modules)
log("a")
assert handler.flush()
assert before == set(sys.modules), set(sys.modules) - before
"""
    assert "" == programs.run(url_of(service), code)
    assert ["a"] == messages(service)


@pytest.mark.parametrize("minor", [9, 10, 11, 12, 13, 14])
def test_the_client_runs_on_python(programs: Programs, service: Service, minor: int) -> None:
    """The file works the same on every supported version of Python."""
    python = find_python(minor)
    if python is None:
        pytest.skip(f"NOT TESTED: python3.{minor} is not installed")
    for code in (EVERYTHING, ENDS["first log of a fork at its exit"][0]):
        assert "" == programs.run(url_of(service), code, python=python, warnings="ignore")
    errors = programs.run(
        url_of(service), FIRST_LOG_AT_THE_VERY_END, python=python, warnings="ignore"
    )
    assert "AstraLogHandler: logs dropped: they came after the end\n" == errors
    many = {f"{name} {number}" for name in "bcde" for number in range(300)}
    assert sorted(many | {"parent ends", "child ends", "a"}) == sorted(messages(service))


def test_the_wheel_holds_the_client(tmp_path: Path) -> None:
    """The installed package is typed and licensed, has no dependencies, and is importable."""
    shutil.copytree(CLIENT, tmp_path / "client")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-index", "--no-deps"]
    build = [*pip, "wheel", *offline, "--no-build-isolation", "./client"]
    subprocess.run(build, cwd=tmp_path, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    (metadata,) = (name for name in names if name.endswith("/METADATA"))
    assert "Requires-Dist" not in zipfile.ZipFile(wheel).read(metadata).decode()
    assert "astralog_logging/py.typed" in names
    assert any(name.endswith("/LICENSE") for name in names)
    subprocess.run([*pip, "install", *offline, "--target", "lib", wheel], cwd=tmp_path, check=True)
    use = "import sys; sys.path.insert(0, 'lib'); from astralog_logging import AstraLogHandler"
    subprocess.run([sys.executable, "-I", "-S", "-c", use], cwd=tmp_path, check=True)


def find_python(minor: int) -> str | None:
    """Return the path of an installed Python 3, or None if none starts."""
    found = shutil.which(f"python3.{minor}")
    if found is None:
        return None
    environ = {**os.environ, "PYENV_VERSION": f"3.{minor}"}  # pyenv's commands need to be told
    command = [found, "-c", "import sys; print(sys.executable)"]
    result = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    return result.stdout.strip() or None
