import platform

from astralog import __version__
from astralog.telemetry.collectors import BuildCollector


def test_the_build_has_its_versions() -> None:
    """The service's and Python's, as labels of a 1."""
    (family,) = BuildCollector().collect()
    (sample,) = family.samples
    labels = {"version": __version__, "python": platform.python_version()}
    assert ("astralog_build_info", labels, 1) == sample[:3]
