"""Shared by several test modules: a file of the metrics."""

import os
from collections.abc import Iterator

import pytest

from astralog.telemetry.slots import open_shared_file


@pytest.fixture
def fd() -> Iterator[int]:
    """Return a new shared file."""
    made = open_shared_file({})
    yield made
    os.close(made)
