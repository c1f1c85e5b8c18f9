import errno
import os

import pytest

from astralog import memory_file
from astralog.memory_file import make_memory_file
from tests.support.fake_system import BreakOs


def test_memory_file_is_empty_and_not_inherited() -> None:
    """It can be written and read, and a started program does not inherit it."""
    fd = make_memory_file("x")
    assert (0, False) == (os.fstat(fd).st_size, os.get_inheritable(fd))
    os.pwrite(fd, b"abc", 10)
    assert b"\0abc" == os.pread(fd, 9, 9)
    os.close(fd)


def test_older_system_creates_a_memory_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag that the system does not support is left out."""
    asked: list[int] = []
    make = os.memfd_create

    def make_as_before(name: str, flags: int) -> int:
        asked.append(flags)
        if flags & memory_file.MFD_NOEXEC_SEAL:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return make(name, flags)

    monkeypatch.setattr(os, "memfd_create", make_as_before)
    os.close(make_memory_file("x"))
    assert [os.MFD_CLOEXEC | memory_file.MFD_NOEXEC_SEAL, os.MFD_CLOEXEC] == asked


def test_system_without_memory_files_raises(break_os: BreakOs) -> None:
    """The caller decides whether it can continue without."""
    break_os("memfd_create", errno.ENOSYS)
    with pytest.raises(OSError, match="not implemented"):
        make_memory_file("x")
