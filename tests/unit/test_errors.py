"""Errors of the disk: the codes that reject batches, and the messages for clients."""

import errno
import os

import pytest

from astralog.errors import Shortage, storage_error


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError(errno.ENOSPC, "x"), "storage_full", "disk is full"),
        (OSError(errno.EDQUOT, "x"), "storage_full", "disk quota is used up"),
        (OSError(errno.EIO, "x"), "storage_failed", "disk failed"),
        (OSError(errno.EROFS, "x"), "storage_failed", "disk failed"),
        (OSError("without a number"), "storage_failed", "disk failed"),
        (MemoryError(), "storage_failed", "disk failed"),
        (
            Shortage("bytes", 999, 1000),
            "storage_full",
            "fewer than 1000 bytes free (ASTRALOG_MIN_FREE_BYTES)",
        ),
        (
            Shortage("inodes", 3, 16),
            "storage_full",
            "fewer than 16 inodes free (ASTRALOG_MIN_FREE_BYTES)",
        ),
        (Shortage("inodes", 0, 0), "storage_full", "no inodes free"),
    ],
    ids=repr,
)
def test_storage_error_names_the_resource(
    error: OSError | MemoryError, code: str, words: str
) -> None:
    """Messages distinguish bytes, inodes and quotas, and a full disk from a failed one."""
    found = storage_error(error)
    assert found.code == code
    assert words in found.message
    assert found.message.endswith("; nothing was stored; retry later.")


def test_shortage_has_the_errno_of_a_full_disk() -> None:
    """Its text for the log also has the number of free bytes or inodes."""
    error = Shortage("inodes", 3, 16)
    assert error.errno == errno.ENOSPC
    assert os.strerror(errno.ENOSPC) != error.strerror
    assert error.strerror == "3 inodes of the disk are free, ASTRALOG_MIN_FREE_BYTES keeps 16"
