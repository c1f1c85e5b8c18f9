import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from astralog.resources import count_cores

CORES = 8


@pytest.fixture(autouse=True)
def _cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(CORES)))


def count(directory: Path, own: str, **quotas: str) -> int:
    """Count the cores of a process in the cgroup `own`, with the quotas of cgroups by name."""
    (directory / "membership").write_text(f"4:memory:/elsewhere\n{own}\n")
    for name, text in quotas.items():
        cgroup = directory / "cgroups" / name.replace("root", ".").replace("_", "/")
        cgroup.mkdir(parents=True, exist_ok=True)
        (cgroup / "cpu.max").write_text(text + "\n")
    return count_cores(directory / "cgroups", directory / "membership")


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("50000 100000", 1),
        ("100000 50000", 2),
        ("1600000 100000", CORES),
        ("max 100000", CORES),
    ],
)
def test_a_quota_below_the_cores_counts(tmp_path: Path, quota: str, expected: int) -> None:
    """It is rounded up to whole cores; without one, all cores count."""
    assert expected == count(tmp_path, "0::/pod", pod=quota)


def test_a_container_sees_its_own_cgroup_at_the_root(tmp_path: Path) -> None:
    """A cgroup namespace shows the process in `/`."""
    assert 3 == count(tmp_path, "0::/", root="300000 100000")


@pytest.mark.parametrize(
    ("pod", "pod_container"), [("2 1", "4 1"), ("4 1", "2 1"), ("max 1", "2 1")]
)
def test_the_lowest_quota_above_a_process_counts(
    tmp_path: Path, pod: str, pod_container: str
) -> None:
    """A cgroup is limited by all its ancestors."""
    assert 2 == count(tmp_path, "0::/pod/container", pod=pod, pod_container=pod_container)


@pytest.mark.parametrize("own", ["0::/gone", "1:cpu:/v1", ""])
def test_without_cgroups_all_cores_count(tmp_path: Path, own: str) -> None:
    """A system without them, or with version 1, has no quota to read."""
    assert CORES == count(tmp_path, own)


def test_unreadable_quota_is_ignored(tmp_path: Path) -> None:
    """It never keeps the service from starting."""
    for text in ("", "x y", "100000 0", "100000"):
        assert CORES == count(tmp_path, "0::/pod", pod=text)


# --- Freed memory

MIB = 1024 * 1024

PROGRAM = """
import os
from astralog.resources import keep_freed_heap
from tests.support.processes import resident_bytes

def left_by(count, mib):
    before = resident_bytes(os.getpid())
    blocks = [bytearray(mib << 20) for _ in range(count)]
    del blocks
    return resident_bytes(os.getpid()) - before

keep_freed_heap()
print(left_by(8, 2), left_by(1, 24) + left_by(1, 24))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="NOT TESTED: glibc's heap")
def test_freed_blocks_stay_with_the_process_only_if_they_are_short() -> None:
    """Also the second long one: after the first, glibc alone would raise its limit."""
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    short, long = map(int, run.stdout.split())
    assert short > 12 * MIB
    assert long < 4 * MIB
