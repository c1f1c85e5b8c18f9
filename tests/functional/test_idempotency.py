"""Idempotency keys from the client's view: a batch that is sent again is stored once."""

import gzip
import json
import re
import shutil
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.otlp import JSON, encode, make_export, make_record
from tests.support.processes import open_paths
from tests.support.service import ROOT, TOKEN, Answer, Service, make_batch, wait_for

KEY = "Idempotency-Key"
REPLAYED = "Idempotency-Replayed"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("keys"), workers=2, tokens=f"{TOKEN},other") as running:
        yield running


def send(
    service: Service, key: str | None, *messages: str, token: str = TOKEN, **more: str
) -> Answer:
    """Send a batch with a key, on a new connection."""
    headers = {"Authorization": token, **({KEY: key} if key else {}), **more}
    return service.drain(make_batch(*messages), headers)


def messages_of(service: Service) -> Counter[str]:
    """Return how often each message is stored."""
    return Counter(log["message"] for log in service.logs())


def assert_stored(answer: Answer) -> None:
    assert (200, {"status": "accepted"}, None) == (
        answer.status,
        answer.body,
        answer.headers[REPLAYED],
    )


def assert_replayed(answer: Answer) -> None:
    assert (200, {"status": "accepted"}, "true") == (
        answer.status,
        answer.body,
        answer.headers[REPLAYED],
    )


# --- The contract


@pytest.mark.quick
def test_a_batch_that_is_sent_again_is_stored_once(service: Service) -> None:
    """Any worker answers the retry with 200 at once, marked as a replay."""
    assert_stored(send(service, '"once-1"', "once a", "once b"))
    for _ in range(20):
        assert_replayed(send(service, '"once-1"', "once a", "once b"))
    assert (1, 1) == (messages_of(service)["once a"], messages_of(service)["once b"])


def test_without_a_key_nothing_is_remembered(service: Service) -> None:
    """The same batch without a key is another batch."""
    for _ in range(2):
        assert_stored(send(service, None, "no key"))
    assert 2 == messages_of(service)["no key"]


def test_another_body_with_the_same_key_is_rejected(service: Service) -> None:
    """A key for two batches is the client's error, and nothing is stored."""
    assert_stored(send(service, '"reused"', "first"))
    for _ in range(5):
        answer = send(service, '"reused"', "second")
        assert (422, "key_reused", None) == (
            answer.status,
            answer.body["code"],
            answer.headers["Retry-After"],
        )
    assert_replayed(send(service, '"reused"', "first"))
    assert 0 == messages_of(service)["second"]


def test_query_is_part_of_the_request(service: Service) -> None:
    """Another query makes another batch; another compression does not."""
    body = json.dumps(make_batch("asked")).encode()
    headers = {"Authorization": TOKEN, KEY: "asked"}
    path = "/v1/drain?unknown=metadata"
    assert_stored(service.request("POST", path, body, headers))
    assert 422 == service.request("POST", "/v1/drain", body, headers).status
    for level in (1, 9):
        compressed = headers | {"Content-Encoding": "gzip"}
        assert_replayed(service.request("POST", path, gzip.compress(body, level), compressed))


def test_a_key_belongs_to_its_token(service: Service) -> None:
    """Keys of one token do not affect those of another."""
    assert_stored(send(service, '"scoped"', "mine"))
    assert_stored(send(service, '"scoped"', "theirs", token="other"))
    assert_replayed(send(service, '"scoped"', "theirs", token="Bearer other"))


@pytest.mark.parametrize(
    ("first", "second"),
    [('"quoted-1"', "quoted-1"), (r'"back\\slash"', r"back\slash"), ("'", '"\'"')],
)
def test_a_key_may_do_without_its_quotes(service: Service, first: str, second: str) -> None:
    """A quoted string and the bare one are the same key."""
    assert_stored(send(service, first, "quotes"))
    assert_replayed(send(service, second, "quotes"))


@pytest.mark.parametrize(
    "key",
    [
        '""',
        '"',
        '"a',
        'a"',
        '"a" "b"',
        "a b",
        "a,b",
        '"a", "b"',
        '"a"; b=1',
        "ä",
        '"\\x"',
        "x" * 256,
    ],
)
def test_a_malformed_key_is_rejected(service: Service, key: str) -> None:
    """Also in a dry run, and before the body is read."""
    headers = {"Authorization": TOKEN, KEY: key}
    for path in ("/v1/drain", "/v1/drain?dry_run=true", "/v1/logs"):
        answer = service.request("POST", path, b"{}", headers)
        assert 400 == answer.status
        assert KEY in json.dumps(answer.body)


def test_two_headers_are_no_key(service: Service) -> None:
    """The service does not guess which of the two counts."""
    head = f"POST /v1/drain HTTP/1.1\r\nHost: x\r\nAuthorization: {TOKEN}\r\nContent-Length: 2\r\n"
    data = f"{head}{KEY}: a\r\n{KEY}: b\r\n\r\n{{}}".encode()
    for answer in (service.exchange(data), service.exchange(data)):
        assert (400, "bad_request") == (answer.status, answer.body["code"])


def test_keys_of_one_connection_are_not_confused(service: Service) -> None:
    """Requests whose heads differ only in key and length are not confused."""
    connection = service.open_connection(30)
    answers = []
    for key, message in (
        ("k1", "one"),
        ("k2", "second"),
        ("k1", "one"),
        (None, "none"),
        ("k2", "x"),
    ):
        headers = {"Authorization": TOKEN, **({KEY: key} if key else {})}
        body = json.dumps(make_batch(message))
        connection.request("POST", "/v1/drain", body, headers)
        response = connection.getresponse()
        response.read()
        answers.append((response.status, response.headers[REPLAYED]))
    connection.close()
    assert [(200, None), (200, None), (200, "true"), (200, None), (422, None)] == answers


def test_a_rejected_batch_leaves_its_key_free(service: Service) -> None:
    """The corrected batch may have the same key."""
    headers = {"Authorization": TOKEN, KEY: '"corrected"'}
    assert 400 == service.drain(b'{"logs": [{}]}', headers).status
    assert_stored(send(service, '"corrected"', "corrected"))


def test_a_dry_run_leaves_its_key_free(service: Service) -> None:
    """It stores nothing, so it needs no key."""
    headers = {"Authorization": TOKEN, KEY: '"dry"'}
    body = json.dumps(make_batch("dry")).encode()
    for _ in range(2):
        answer = service.request("POST", "/v1/drain?dry_run=true", body, headers)
        assert ("valid", None) == (answer.body["status"], answer.headers[REPLAYED])
    assert_stored(send(service, '"dry"', "wet"))


def test_replay_of_a_partial_batch_repeats_its_errors(service: Service) -> None:
    """Nothing is stored again."""
    logs = [*make_batch("left in")["logs"], {"message": "left out"}]
    headers = {"Authorization": TOKEN, KEY: '"partial"'}
    body = json.dumps({"logs": logs}).encode()
    first, second = (
        service.request("POST", "/v1/drain?partial=true", body, headers) for _ in range(2)
    )
    assert (200, 1, None) == (first.status, first.body["rejected"], first.headers[REPLAYED])
    assert (200, first.body, "true") == (second.status, second.body, second.headers[REPLAYED])
    assert 1 == messages_of(service)["left in"]


def test_exports_of_opentelemetry_have_keys_too(service: Service) -> None:
    """The same header, with OTLP's own responses."""
    headers = {"Authorization": TOKEN, KEY: '"otlp"', "Content-Type": JSON}
    body = encode(make_export(make_record("from otlp")), JSON)
    first, second = (service.request("POST", "/v1/logs", body, headers) for _ in range(2))
    assert (200, {}, None) == (first.status, first.body, first.headers[REPLAYED])
    assert (200, {}, "true") == (second.status, second.body, second.headers[REPLAYED])
    body = encode(make_export(make_record("another")), JSON)
    answer = service.request("POST", "/v1/logs", body, headers)
    assert (422, 9) == (answer.status, answer.body["code"])
    assert answer.body["message"].startswith("key_reused: ")


def test_of_many_at_once_one_stores(service: Service) -> None:
    """Clients that race with one key get 200 or 409, and the batch is stored once."""
    answers: list[Answer] = []
    threads = [
        threading.Thread(target=lambda: answers.append(send(service, '"race"', "raced")))
        for _ in range(30)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 30 == len(answers)
    assert {200, 409} >= {answer.status for answer in answers}
    in_use = [answer for answer in answers if answer.status == 409]
    assert all("key_in_use" == answer.body["code"] for answer in in_use)
    assert all("1" == answer.headers["Retry-After"] for answer in in_use)
    assert 1 == sum(answer.status == 200 and not answer.headers[REPLAYED] for answer in answers)
    assert_replayed(send(service, '"race"', "raced"))
    assert 1 == messages_of(service)["raced"]


# --- What dies, and what comes after


def test_a_key_outlives_reloads_restarts_and_kills(tmp_path: Path) -> None:
    """Its record is in the data directory, with the segments."""
    service = Service(tmp_path, workers=2).start()
    try:
        assert_stored(send(service, '"first"', "first"))
        service.reload()
        assert_replayed(send(service, '"first"', "first"))
        assert 0 == service.stop()
        service.start()
        assert_replayed(send(service, '"first"', "first"))
        assert_stored(send(service, '"second"', "second"))
        service.kill()
        service.start()
        assert_replayed(send(service, '"second"', "second"))
        assert_replayed(send(service, '"first"', "first"))
        assert 422 == send(service, '"second"', "other").status
        assert Counter(first=1, second=1) == messages_of(service)
    finally:
        service.kill()


def test_a_key_knows_its_batch_in_a_compressed_segment(tmp_path: Path) -> None:
    """Sealed by its worker or, after a kill, by another one, and then compressed."""
    with Service(tmp_path, workers=2, compress="zstd") as service:
        assert_stored(send(service, '"sealed"', "sealed"))
        service.reload()
        assert_stored(send(service, '"recovered"', "recovered"))
        service.kill()
        service.start()
        wait_for(lambda: 2 == len(service.files()) == len(service.files("*.zst")))
        for name in ("sealed", "recovered"):
            assert_replayed(send(service, f'"{name}"', name))
        assert Counter(sealed=1, recovered=1) == messages_of(service)


def test_an_upgrade_knows_the_keys_of_the_old_service(tmp_path: Path) -> None:
    """Two masters serve one data directory for a while."""
    with Service(tmp_path, workers=1) as service:
        for number in range(10):
            assert_stored(send(service, f'"old-{number}"', f"{number}"))
        service.signal(signal.SIGUSR2)
        wait_for(lambda: len(service.pids()) == 4)
        fates: Counter[str | None] = Counter()  # both answer on the one address
        for number in range(30):
            answer = send(service, f'"old-{number}"', f"{number}")
            fates[answer.headers[REPLAYED]] += 1
        for number in range(30):
            assert_replayed(send(service, f'"old-{number}"', f"{number}"))
        assert {"true": 10, None: 20} == fates
        assert Counter({f"{number}": 1 for number in range(30)}) == messages_of(service)


def test_batch_of_a_removed_segment_is_not_stored_again(tmp_path: Path) -> None:
    """Retention or an operator may have removed it."""
    with Service(tmp_path, workers=1, segment_bytes=1) as service:
        assert_stored(send(service, '"gone"', "gone"))
        (path,) = wait_for(lambda: service.files("*.ndjson"))
        path.unlink()
        assert_replayed(send(service, '"gone"', "gone"))
        service.kill()
        service.start()
        assert_replayed(send(service, '"gone"', "gone"))
        assert [] == service.files()


@pytest.mark.parametrize("pattern", ["keys.db*", "keys.db", "keys.db-wal", "keys.db-shm", "keys*"])
def test_service_continues_without_its_key_database(tmp_path: Path, pattern: str) -> None:
    """Deleting any of its files loses the keys and nothing else."""
    with Service(tmp_path, workers=2) as service:
        assert_stored(send(service, '"a"', "a"))
        wait_for(lambda: accepted(send(service, '"a"', "a")) and all_have_opened_keys(service))
        for path in service.files(pattern):
            path.unlink()
        assert 200 == send(service, None, "plain").status
        assert 200 == wait_for(lambda: accepted(send(service, '"a"', "a"))).status
        for _ in range(10):  # the other worker may notice only now, and reject once
            assert_replayed(wait_for(lambda: accepted(send(service, '"a"', "a"))))
        assert_stored(send(service, '"b"', "b"))
        assert_replayed(send(service, '"b"', "b"))
        assert Counter(a=2, b=1, plain=1) == messages_of(service)
        assert "Traceback" not in service.log()


def all_have_opened_keys(service: Service) -> bool:
    """Return whether each worker has opened the database; one that has not finds other files."""
    database = str(service.data_dir / "keys.db")
    return all(database in open_paths(pid) for pid in service.worker_pids())


def accepted(answer: Answer) -> Answer | None:
    """Return a response that is 200; any other one must ask for a retry."""
    assert answer.status in (200, 409, 503)
    return answer if answer.status == 200 else None


@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="needs sqlite3")
def test_an_operator_finds_a_key(tmp_path: Path) -> None:
    """With the commands of docs/operations.md, while the service runs."""
    guide = (ROOT / "docs" / "operations.md").read_text()
    (commands,) = re.findall(r"```sh\n(token=[^`]*sqlite3[^`]*)```", guide)
    with Service(tmp_path, tokens=None) as service:
        token = (service.data_dir / "token").read_text().strip()
        assert_stored(send(service, "my-key", "a", token=token))
        (segment,) = service.files("*.open")
        found = subprocess.run(
            ["bash", "-ec", commands], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        assert (
            f"|{segment.name.partition('.ndjson')[0]}|0|{segment.stat().st_size}|" in found.stdout
        )


def test_a_killed_worker_leaves_its_keys(service: Service) -> None:
    """A lock ends with its process, and the record stays."""
    assert_stored(send(service, '"survivor"', "survivor"))
    for pid in service.worker_pids():
        service.kill_worker(pid)
        service.wait_for_workers([pid])
        assert_replayed(send(service, '"survivor"', "survivor"))
    assert 1 == messages_of(service)["survivor"]
