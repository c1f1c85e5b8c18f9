"""Prometheus loads the alerts, and answers every query of the dashboard."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import pytest

from tests.support.clickhouse import Forward
from tests.support.connections import free_port
from tests.support.prometheus import DEPLOY, Prometheus
from tests.support.service import ROOT, Service, make_batch, wait_for

ALERTS = (DEPLOY / "alerts.yml").read_text()
ALERT_NAMES = re.findall(r"- alert: (\w+)", ALERTS)
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "astralog.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
QUERIES: list[str] = [target["expr"] for panel in PANELS for target in panel["targets"]]

#: What Grafana puts in the place of its variables.
VARIABLES = {"$job": ".*", "$instance": ".*", "$__rate_interval": "1m", "$__range": "1m"}

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="NOT TESTED: promtool is not installed"
)


def metrics_of(text: str) -> set[str]:
    """Return the named families; a histogram's buckets belong to it."""
    return {name.removesuffix("_bucket") for name in re.findall(r"\bastralog_\w+", text)}


def run_promtool(*words: str) -> None:
    command = ["promtool", *words]
    done = subprocess.run(
        command, cwd=DEPLOY, capture_output=True, text=True, timeout=60, check=False
    )
    assert 0 == done.returncode, done.stdout + done.stderr


@needs_promtool
def test_the_alerts_fire_when_they_should() -> None:
    """Each fires in its case, and not in a similar one."""
    run_promtool("check", "rules", "alerts.yml")
    run_promtool("test", "rules", "alerts.test.yml")


def test_every_alert_is_tested_and_explained() -> None:
    """The rules' test expects each at least once, and the documents have its remedy."""
    tests = (DEPLOY / "alerts.test.yml").read_text()
    fired = re.findall(r"alertname: (\w+)\n\s+eval_time: \w+\n\s+exp_alerts:\n\s+- ", tests)
    assert set(ALERT_NAMES) == set(fired)
    guide = (ROOT / "docs" / "deployment.md").read_text()
    assert [] == [name for name in ALERT_NAMES if f"`{name}`" not in guide]


def test_queries_use_only_existing_metrics() -> None:
    """Alerts and dashboard name only metrics of the documents' tables."""
    tables = "".join((ROOT / "docs" / name).read_text() for name in ("operations.md", "scaling.md"))
    known = set(re.findall(r"^\| `(astralog_\w+)` \|", tables, re.MULTILINE))
    used = metrics_of("\n".join(re.findall(r"expr: (.*?)\n\s+(?:for|labels):", ALERTS, re.DOTALL)))
    assert len(used) >= 9
    assert used <= known
    assert metrics_of("\n".join(QUERIES)) <= known


def test_panels_do_not_overlap() -> None:
    """Each has a title, a number and its own place within the 24 columns."""
    assert len(PANELS) == len({panel["id"] for panel in PANELS})
    assert len(PANELS) == len({panel["title"] for panel in PANELS})
    for panel in PANELS:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
    for one, other in combinations([panel["gridPos"] for panel in PANELS], 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below, (one, other)


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Return a Prometheus that has scraped a service with accepted and rejected batches.

    They are to be delivered to a ClickHouse that does not respond.
    """
    if shutil.which("prometheus") is None:
        pytest.skip("NOT TESTED: prometheus is not installed")
    directory = tmp_path_factory.mktemp("prometheus")
    url = f"http://127.0.0.1:{free_port()}"
    with (
        Service(directory, clickhouse_url=url, compress="zstd") as service,
        Forward(directory, url, service.data_dir).start(),
        Prometheus(directory / "its", [service]) as running,
    ):
        wait_for(lambda: "astralog_forward_lag" in service.request("GET", "/metrics").raw.decode())
        for _ in range(3):
            before = scraped_logs(running)
            wait_for(lambda: send_some(service) and scraped_logs(running) > before)  # noqa: B023
        yield running


def send_some(service: Service) -> bool:
    """Send a batch that is rejected, and one that is accepted."""
    assert 400 == service.drain({"logs": [{}]}).status
    return service.drain(make_batch("a")).status == 200


def scraped_logs(prometheus: Prometheus) -> float:
    """Return Prometheus' number of accepted logs."""
    series = prometheus.query("sum(astralog_accepted_logs_total)")
    return float(series[0]["value"][1]) if series else 0


@pytest.mark.parametrize("query", QUERIES)
def test_every_query_of_the_dashboard_has_an_answer(prometheus: Prometheus, query: str) -> None:
    """It is valid and returns data, with values in place of Grafana's variables."""
    for name, value in VARIABLES.items():
        query = query.replace(name, value)
    assert "$" not in query
    assert prometheus.query(query) != []


def test_dashboard_shows_batches_and_state(prometheus: Prometheus) -> None:
    """Accepted and rejected batches have rates, and a ready service is shown as ready."""
    assert ["1"] == [series["value"][1] for series in prometheus.query("astralog_ready")]
    for query in (
        "astralog_forward_lag_seconds",
        "sum(rate(astralog_accepted_logs_total[1m]))",
        'sum(rate(astralog_rejected_batches_total{code="invalid_batch"}[1m]))',
        "histogram_quantile(0.99, sum by (le) (rate(astralog_commit_duration_seconds_bucket[1m])))",
    ):
        assert [] != [one for one in prometheus.query(query) if float(one["value"][1]) > 0], query


def test_prometheus_evaluates_the_alerts(prometheus: Prometheus) -> None:
    """The configuration loads them all, and the service, scraped with a token, is up."""
    rules = prometheus.rules()
    assert ALERT_NAMES == [rule["name"] for rule in rules]
    assert [] == [rule["name"] for rule in rules if rule.get("lastError")]
    assert ["1"] == [series["value"][1] for series in prometheus.query('up{job="astralog"}')]
