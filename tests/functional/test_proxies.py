"""Behind nginx and HAProxy, as deploy/ configures them, faults of a node fail no request."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.certificate import can_make_certificate
from tests.support.connections import free_port
from tests.support.load import Load
from tests.support.metrics import read_samples
from tests.support.numbered_batches import count_lines
from tests.support.proxies import Haproxy, Nginx, Proxy, find_program
from tests.support.service import TOKEN, Answer, Service, make_batch, wait_for
from tests.support.small_disk import small_disk

PROXIES: dict[str, type[Proxy]] = {"nginx": Nginx, "haproxy": Haproxy}

MIB = 1024 * 1024

#: Batches that go through before and after what befalls a node; they have up to 24 KB, which is
#: more than HAProxy would try again by default.
BATCHES = 30
LARGEST = 120
THREADS = 4


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[Service]]:
    """Return two running nodes, which keep their addresses across restarts."""
    with start_node(tmp_path / "node1") as first, start_node(tmp_path / "node2") as second:
        yield [first, second]


def start_node(directory: Path, **settings: object) -> Service:
    directory.mkdir(exist_ok=True)
    return Service(directory, bind=f"127.0.0.1:{free_port()}", **settings)


@pytest.fixture(params=PROXIES)
def proxy_type(request: pytest.FixtureRequest) -> type[Proxy]:
    if find_program(request.param) is None:
        pytest.skip(f"NOT TESTED: {request.param} is not installed")
    if not can_make_certificate():
        pytest.skip("NOT TESTED: a proxy; openssl is not installed")
    return PROXIES[request.param]


def wait_for_batches(load: Load, node: Service) -> None:
    """Return once batches were sent, some of them to this node."""
    before = accepted_batches(node)
    load.wait_for_acknowledged(BATCHES)
    wait_for(lambda: accepted_batches(node) > before)


def accepted_batches(node: Service) -> float:
    """Return the number of batches that the node has accepted since its start."""
    return read_samples(node.request("GET", "/metrics").raw.decode())["accepted_batches_total"]


def check(load: Load, nodes: list[Service], undecided: frozenset[int] = frozenset()) -> None:
    """Check that every batch was answered 200 and is on a node: on one only, if that is certain."""
    load.stop()
    assert ({}, set()) == (load.rejected, load.unanswered)
    for node in nodes:
        node.stop()
        assert {1} == set(count_lines(node.logs()).values())
    load.check([log for node in nodes for log in node.logs()], undecided)


def test_killed_node_fails_no_request(
    tmp_path: Path, nodes: list[Service], proxy_type: type[Proxy]
) -> None:
    """Of unanswered batches, one may be on both nodes; of the others, none.

    The node may have stored it, and the proxy sends it to the other node.
    """
    victim = nodes[0]
    with proxy_type(tmp_path / "proxy", nodes) as proxy, Load(proxy, THREADS, LARGEST) as load:
        wait_for_batches(load, victim)
        with load.watch_in_flight() as undecided:
            victim.kill()
        load.wait_for_acknowledged(BATCHES)
        victim.start()
        wait_for_batches(load, victim)
        check(load, nodes, frozenset(undecided))


def test_stopping_node_fails_no_request(
    tmp_path: Path, nodes: list[Service], proxy_type: type[Proxy]
) -> None:
    """It answers its open requests, the other node gets the others, and it returns by itself."""
    victim = nodes[0]
    with proxy_type(tmp_path / "proxy", nodes) as proxy, Load(proxy, THREADS, LARGEST) as load:
        wait_for_batches(load, victim)
        assert 0 == victim.stop()
        load.wait_for_acknowledged(BATCHES)
        victim.start()
        wait_for_batches(load, victim)
        check(load, nodes)


def test_reload_of_a_node_fails_no_request(
    tmp_path: Path, nodes: list[Service], proxy_type: type[Proxy]
) -> None:
    """Its workers are replaced while the proxy keeps connections to them."""
    victim = nodes[0]
    with proxy_type(tmp_path / "proxy", nodes) as proxy, Load(proxy, THREADS, LARGEST) as load:
        wait_for_batches(load, victim)
        victim.reload()
        wait_for_batches(load, victim)
        check(load, nodes)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Return a directory on a separate small disk."""
    with small_disk(tmp_path / "disk", 64 * MIB) as path:
        yield path


def test_full_node_fails_no_request(tmp_path: Path, disk: Path, proxy_type: type[Proxy]) -> None:
    """Its 503 reaches no client, and it gets batches again once there is room."""
    settings = {"data_dir": disk / "data", "min_free_bytes": MIB}
    with (
        start_node(tmp_path / "node1", **settings) as victim,
        start_node(tmp_path / "node2") as other,
        proxy_type(tmp_path / "proxy", [victim, other]) as proxy,
        Load(proxy, THREADS, LARGEST) as load,
    ):
        wait_for_batches(load, victim)
        ballast = disk / "ballast"
        fill(ballast)
        wait_for(lambda: victim.request("GET", "/ready").status == 503)
        load.wait_for_acknowledged(BATCHES)
        assert "storage_full" in victim.log()
        ballast.unlink()
        wait_for_batches(load, victim)
        check(load, [victim, other])


def fill(path: Path) -> None:
    """Fill the disk of the file."""
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(MIB)):
                pass
        except OSError:
            return


def test_a_proxy_speaks_tls_and_names_its_client(
    tmp_path: Path, nodes: list[Service], proxy_type: type[Proxy]
) -> None:
    """A batch is sent over TLS, and /metrics needs a token."""
    with proxy_type(tmp_path / "proxy", nodes) as proxy:
        proxy.is_secure = True
        assert 200 == proxy.drain(make_batch("by TLS")).status
        assert ["by TLS"] == [log["message"] for node in nodes for log in node.logs()]
        assert 401 == proxy.request("GET", "/metrics").status
        assert 400 == proxy.drain({"logs": [{}]}).status
        wait_for(lambda: any("X-Forwarded-For: 127.0.0.1" in node.log() for node in nodes))
        proxy.signal(signal.SIGTERM)
        proxy.wait()


#: What leads to a page of one node, if a proxy or the service understands it as others do not.
HIDDEN = [
    *("/status", "/status/", "/status/data", "/status/logs?q=x", "/status?/v1/drain", "/status#"),
    *("//status", "///status", "/status//data", "/./status", "/.//status", "/v1/../status"),
    *("/%73tatus", "/%2fstatus", "/%2Fstatus", "/stat%75s", "/status%2fdata", "/%2e/status"),
    *("/%2573tatus", "/status%00", "/status%20", "/status%3f", "/status%23", "/status%0a"),
    *("/status;x", "/;/status", "/;x/status", "/.;/status", "/v1/..;/status", "/status/;"),
    *("/STATUS", "/Status", "/\\status", "/v1\\..\\status", "/status.", "/status/."),
    *("/v1/drain/../../status", "/v1/drain/..%2f..%2fstatus", "/v1/drain%2f..%2f..%2fstatus"),
    *("/v1/drain;/../../status", "/v1/drain#/../../status", "/v1/drain%3f/../../../status"),
    *("/docs/../status", "/docs/%2e%2e/status", "/docs/..%2fstatus", "/docs/a.js/../../status"),
    *("/health/../status", "/health/status", "/healthy", "/v1/drain/", "/v1/drainx", "/v1/search"),
    *("http://127.0.0.1/status", "http://127.0.0.1//status", "http://127.0.0.1/%73tatus"),
    *("http://127.0.0.1/v1/../status", "HTTP://127.0.0.1/status", "https://127.0.0.1/status"),
    *("/elasticsearch/../status", "/elasticsearch/%2e%2e/status", "/elasticsearch/..%2fstatus"),
    *("/elasticsearch//../status", "/elasticsearchx", "/loki/api/v1/push/../../../../status"),
    *("/services/collector/../../status", "/services/collectorx", "/loki/api/v1/query"),
    *("http://x?/v1/drain", "http://x/v1/drain@/status", "status", "*", "?/v1/drain"),
]

PASSING = ["/health", "/ready", "/docs", "/docs/docs.css", "/docs/swagger-ui-bundle.js"]


def ask(proxy: Proxy, method: str, target: str) -> Answer:
    """Send a request with an unchanged target."""
    head = f"{method} {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    return proxy.exchange(head.encode())


def test_proxy_forwards_only_known_paths(
    tmp_path: Path, nodes: list[Service], proxy_type: type[Proxy]
) -> None:
    """The proxy rejects the node's other paths in any spelling; sending works."""
    with proxy_type(tmp_path / "proxy", nodes) as proxy:
        for target in HIDDEN:
            for method in ("GET", "POST"):
                assert ask(proxy, method, target).status in (400, 404), (method, target)
        for target in (*PASSING, "/openapi.json", "/health?x=/status", "/", "/docs?/status"):
            assert 200 == ask(proxy, "GET", target).status, target
        assert 401 == ask(proxy, "GET", "/metrics").status
        assert 200 == proxy.drain(make_batch("a")).status
        headers = {"Authorization": TOKEN}
        body = b'{"resourceLogs":[]}'
        assert 200 == proxy.request("POST", "/v1/logs?project_id=a", body, headers).status
        for path in (
            "/services/collector/event/1.0",
            "/loki/api/v1/push",
            "/elasticsearch/a.b/_bulk",
        ):
            answer = proxy.request("POST", path, b"", headers)
            assert (400, True) == (answer.status, b"nginx" not in answer.raw), path
        query = "/v1/drain?project_id=../status"
        assert 200 == proxy.request("POST", query, json.dumps(make_batch("b")), headers).status
