"""The master survives failed forks, and kills no healthy worker after a pause."""

import os
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.service import Service, make_batch, wait_for

#: Root has no limit of processes, so another user runs the service, who may read the checkout.
NOBODY = 65534
BECOME_NOBODY = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
READ_ALL = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]


class ForklessService(Service):
    """A service in which forks fail with EAGAIN on request."""

    is_forkless_from_start = False

    def command(self) -> list[str]:
        """Return the command, run by a user with a limit on processes."""
        limit = ["prlimit", "--nproc=0:"] if self.is_forkless_from_start else []
        become = [*BECOME_NOBODY, *READ_ALL] if os.getuid() == 0 else []
        return [*become, *limit, *super().command()]

    def limit_forks(self) -> None:
        """Let each further fork of the master fail."""
        self._limit_processes("0")

    def allow_forks(self) -> None:
        """Let forks succeed again."""
        _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
        self._limit_processes("unlimited" if hard == resource.RLIM_INFINITY else str(hard))

    def _limit_processes(self, limit: str) -> None:
        become = BECOME_NOBODY if os.getuid() == 0 else []
        pid = str(self.process.pid)
        subprocess.run([*become, "prlimit", "--pid", pid, f"--nproc={limit}:"], check=True)

    def count(self, words: str) -> int:
        """Return the number of log lines with these words."""
        return sum(words in line for line in self.log().splitlines())


@pytest.fixture
def service() -> Iterator[ForklessService]:
    """Return a service of two workers with compression, not started."""
    if os.getuid() == 0 and shutil.which(BECOME_NOBODY[0]) is None:
        pytest.skip("NOT TESTED: failed forks; setpriv is not installed")
    with tempfile.TemporaryDirectory() as directory:
        if os.getuid() == 0:
            os.chown(directory, NOBODY, NOBODY)
        made = ForklessService(Path(directory), workers=2, compress="zstd")
        yield made
        made.kill()


def test_service_survives_failed_forks(service: ForklessService) -> None:
    service.start()
    before = service.worker_pids()
    compressor = service.compressor_pid()
    assert compressor
    service.limit_forks()
    service.kill_worker(before[0])
    os.kill(compressor, signal.SIGKILL)
    wait_for(lambda: service.count("cannot start a worker: "))
    wait_for(lambda: service.count("cannot start the compressor"))
    service.signal(signal.SIGHUP)
    wait_for(lambda: service.count("replacing all workers"))
    service.signal(signal.SIGUSR2)
    wait_for(lambda: service.count("cannot start another master: "))
    assert service.drain(make_batch("a")).status == 200
    assert service.worker_pids() == before[1:]

    service.allow_forks()
    service.wait_for_workers(other_than=before)
    wait_for(service.compressor_pid)
    assert service.drain(make_batch("b")).status == 200
    assert [log["message"] for log in service.logs()] == ["a", "b"]
    assert service.count("cannot start a worker: ") == 1
    assert service.count("cannot start the compressor") == 1
    assert "Traceback" not in service.log()
    assert service.stop() == 0


def test_service_starts_once_forks_succeed(service: ForklessService) -> None:
    service.is_forkless_from_start = True
    service.launch()
    wait_for(lambda: service.count("cannot start a worker: "))
    service.allow_forks()
    service.wait_until_listening()
    assert service.drain(make_batch("a")).status == 200
    assert service.stop() == 0


class ImpatientService(Service):
    """A service whose master kills workers without a heartbeat for a few seconds."""

    TIMEOUT_SECONDS = 6

    def command(self) -> list[str]:
        """Return the command with gunicorn's option."""
        return [*super().command(), "--timeout", str(self.TIMEOUT_SECONDS)]


def test_pause_of_all_processes_kills_no_worker(tmp_path: Path) -> None:
    with ImpatientService(tmp_path, workers=2) as service:
        before = service.worker_pids()
        wait_for(lambda: service.request("GET", "/health").status == 200)
        time.sleep(1)  # each worker has told that it is alive
        for pid in (service.process.pid, *before):
            os.kill(pid, signal.SIGSTOP)
        time.sleep(2 * service.TIMEOUT_SECONDS)
        service.signal(signal.SIGCONT)
        time.sleep(2)  # the master polls its workers once a second
        for pid in before:
            os.kill(pid, signal.SIGCONT)
        time.sleep(service.TIMEOUT_SECONDS)
        assert service.worker_pids() == before
        assert "WORKER TIMEOUT" not in service.log()
        assert service.drain(make_batch("a")).status == 200
        os.kill(before[0], signal.SIGSTOP)
        service.wait_for_workers(other_than=before[:1])
        assert "WORKER TIMEOUT" in service.log()
        assert service.stop() == 0
