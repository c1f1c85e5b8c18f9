import errno
import os

import pytest

from astralog import memory_file
from astralog.memory_file import make_memory_file
from tests.support.fake_system import BreakOs


def test_it_is_empty_and_stays_with_the_process() -> None:
    """It can be written and read, and a program that is started does not inherit it."""
    fd = make_memory_file("x")
    assert (0, False) == (os.fstat(fd).st_size, os.get_inheritable(fd))
    os.pwrite(fd, b"abc", 10)
    assert b"\0abc" == os.pread(fd, 9, 9)
    os.close(fd)


def test_an_older_system_makes_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag that it does not know is left out."""
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


def test_a_system_without_any_says_so(break_os: BreakOs) -> None:
    """The caller decides whether it can do without."""
    break_os("memfd_create", errno.ENOSYS)
    with pytest.raises(OSError, match="not implemented"):
        make_memory_file("x")
