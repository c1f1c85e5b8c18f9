"""The shipped statements create the tables that forward inserts into."""

import re

import pytest

from astralog.forward.chunks import COLUMNS, DEAD_LETTER_COLUMNS
from tests.support.service import ROOT

DDL = ROOT / "deploy" / "clickhouse"


def columns_of(script: str, table: str) -> list[str]:
    """Return the definitions of a table's columns and indexes, without comments and spaces."""
    text = re.sub("--.*", "", (DDL / script).read_text())
    match = re.search(rf"CREATE TABLE IF NOT EXISTS {table}\b.*?\n\((.*?)\n\)\nENGINE", text, re.S)
    assert match
    lines = [" ".join(line.split()).rstrip(",") for line in match[1].split("\n")]
    return [line for line in lines if line]


@pytest.mark.parametrize(
    ("table", "columns"), [("logs", COLUMNS), ("logs_dead_letter", DEAD_LETTER_COLUMNS)]
)
def test_a_table_has_the_columns_that_are_inserted(table: str, columns: tuple[str, ...]) -> None:
    """Each inserted column exists, in that order, and all others have defaults."""
    definitions = columns_of("single.sql", table)
    plain = [line for line in definitions if "MATERIALIZED" not in line and "INDEX" not in line]
    assert list(columns) == [line.split()[0] for line in plain]


@pytest.mark.parametrize("table", ["logs", "logs_dead_letter"])
def test_the_cluster_has_the_same_columns(table: str) -> None:
    """A single server and a cluster differ only in their engines."""
    assert columns_of("single.sql", table) == columns_of("cluster.sql", f"{table}_local")


def test_every_table_remembers_inserts_and_syncs_them() -> None:
    """Otherwise a repeated insert is doubled, and a power cut may lose a delivered log."""
    single = (DDL / "single.sql").read_text()
    assert single.count("non_replicated_deduplication_window = 10000") == 2
    cluster = (DDL / "cluster.sql").read_text()
    assert cluster.count("replicated_deduplication_window = 10000") == 2
    assert cluster.count("logs_local, cityHash64(node, segment))") == 1
    for text in (single, cluster):
        assert text.count("fsync_after_insert = 1") == 2
        assert text.count("PARTITION BY substring(segment, 1, 8)") == 2
