import platform

from astralog import __version__
from astralog.telemetry.collectors import BuildCollector, DiskCollector
from astralog.telemetry.disk_usage import DiskUsage


def test_the_build_has_its_versions() -> None:
    """The service's and Python's, as labels of a 1."""
    (family,) = BuildCollector().collect()
    (sample,) = family.samples
    labels = {"version": __version__, "python": platform.python_version()}
    assert ("astralog_build_info", labels, 1) == sample[:3]


def test_the_disk_is_shown_as_it_was_taken() -> None:
    """Each number of the usage has its series."""
    families = DiskCollector(lambda: DiskUsage(1, 2, 3, 4, 5, 6)).collect()
    samples = [sample for family in families for sample in family.samples]
    assert [
        ("astralog_segments", {"state": "open"}, 1),
        ("astralog_segments", {"state": "sealed"}, 3),
        ("astralog_segments_bytes", {"state": "open"}, 2),
        ("astralog_segments_bytes", {"state": "sealed"}, 4),
        ("astralog_free_disk_bytes", {}, 5),
        ("astralog_total_disk_bytes", {}, 6),
    ] == [sample[:3] for sample in samples]


def test_a_disk_that_does_not_answer_shows_nothing() -> None:
    """A number that is not known is not made up."""
    assert [] == list(DiskCollector(lambda: None).collect())
