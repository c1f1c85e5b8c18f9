"""Calls of the C library that Python does not offer."""

import ctypes
import errno
import os

_LIBRARY = ctypes.CDLL(None, use_errno=True)


def call(name: str, *args: int | bytes) -> int:
    """Return what a function returns; raises OSError, with ENOSYS where the library lacks it."""
    function = getattr(_LIBRARY, name, None)
    result = -1
    number = errno.ENOSYS
    if function is not None:
        result = int(function(*args))
        number = ctypes.get_errno()
    if result < 0:
        raise OSError(number, os.strerror(number))
    return result
