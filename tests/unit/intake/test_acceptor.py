"""The steps of a request, with a protocol for the tests: a body is the text of one line."""

import gzip
import io
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import gevent
import pytest

from astralog.auth import Tokens
from astralog.errors import Rejection
from astralog.intake.acceptor import Accepted, Acceptor
from astralog.intake.body import BodyReader
from astralog.intake.decoder import SLOT_TIMEOUT_SECONDS, Context, Decoded, InvalidLogs
from astralog.intake.options import Options
from astralog.settings import Settings
from astralog.store.commit_queue import CommitQueue
from astralog.store.keys.claims import Claim
from astralog.store.memory_budget import OVERHEAD_BYTES, MemoryReservation
from astralog.store.queue import Batch
from tests.support.fake_system import Disk
from tests.support.service import TOKEN, write_tokens

MAX_BODY_BYTES = 10_000


class Books:
    """Counters that record their calls."""

    def __init__(self) -> None:
        self.counted: list[tuple[Any, ...]] = []
        self.tokens: list[str | None] = []

    def accept(
        self, size: int, logs: int, started_at: float, committing_at: float, token: str
    ) -> None:
        assert 0 < started_at <= committing_at
        self.tokens.append(token)
        self.counted.append(("accepted", size, logs))

    def replay(self, size: int, started_at: float) -> None:
        assert started_at > 0
        self.counted.append(("replayed", size))

    def reject(
        self, error: BaseException, size: int, logs: int, started_at: float, token: str | None
    ) -> None:
        self.tokens.append(token)
        self.counted.append((getattr(error, "code", repr(error)), size, logs))

    def reject_logs(self, code: str, logs: int) -> None:
        self.counted.append((f"of these {code}", logs))


class Service:
    """An acceptor with its parts."""

    def __init__(self, settings: Settings) -> None:
        self.queue = CommitQueue(settings, lambda batches, size, logs, late_logs: None)
        self.books = Books()
        self.contexts: list[Context] = []
        bodies = BodyReader(MAX_BODY_BYTES, timeout_seconds=10)
        self._acceptor = Acceptor(Tokens(settings), bodies, self.queue, self.books)
        self._data_dir = settings.data_dir

    def post(
        self,
        body: bytes = b"text",
        query: str = "",
        token: str = TOKEN,
        key: str | None = None,
        encoding: str = "",
        stream: io.BytesIO | None = None,
        **parameters: Any,
    ) -> Accepted:
        environ = {
            "HTTP_AUTHORIZATION": token,
            "QUERY_STRING": query,
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": encoding,
            "wsgi.input": stream or io.BytesIO(body),
        }
        if key is not None:
            environ["HTTP_IDEMPOTENCY_KEY"] = key
        return self._acceptor.accept(environ, self._decode, **parameters)

    def code_of(self, *arguments: Any, **named: Any) -> str:
        with pytest.raises(Rejection) as rejected:
            self.post(*arguments, **named)
        return rejected.value.code

    def _decode(self, body: bytes, context: Context) -> Decoded:
        self.contexts.append(context)
        if body == b"broken":
            raise Rejection("invalid_json", "It is broken.")
        invalid = InvalidLogs()
        for number in range(body.count(b"!")):
            invalid.add(number, {"text": ["Too loud."]})
        invalid.seen = invalid.count
        valid = body.strip(b" ")
        batch = Batch(valid * 10 + b"\n", 1) if valid.strip(b"!") else Batch(b"", 0)
        return Decoded(batch, invalid if invalid.count else None)

    def stored(self) -> bytes:
        return b"".join(path.read_bytes() for path in self._data_dir.glob("*.ndjson*"))


@pytest.fixture
def service(settings: Settings) -> Iterator[Service]:
    made = Service(replace(settings, queue_bytes=MAX_BODY_BYTES))
    yield made
    made.queue.stop(1)


def test_result_of_a_decoder_is_stored_and_counted(service: Service) -> None:
    """A protocol has its own decoder; the other steps are the same for all."""
    accepted = service.post(b"text")
    assert Accepted(Decoded(Batch(b"text" * 10 + b"\n", 1))) == accepted
    assert b"text" * 10 + b"\n" == service.stored()
    assert [("accepted", 4, 1)] == service.books.counted


def test_decoder_receives_projects_and_options(settings: Settings, tmp_path: Path) -> None:
    """Its context has the token's projects, the query's options, and the deadline for its slot."""
    path = tmp_path / "tokens"
    path.write_text("bound mine\nfree\n")
    service = Service(replace(settings, tokens="", tokens_file=str(path)))
    service.post(token="bound", query="level=info&dry_run=true")
    service.post(token="free", query="dry_run=true")
    bound, free = service.contexts
    assert ({"mine"}, Options({"level": "info"}, is_dry_run=True)) == (
        bound.projects,
        bound.options,
    )
    assert (None, bound.slots) == (free.projects, free.slots)
    now = time.monotonic()
    assert now < bound.deadline < free.deadline < now + SLOT_TIMEOUT_SECONDS
    bound.check_project("mine", logs=2)
    free.check_project("theirs", logs=2)
    with pytest.raises(Rejection, match="'theirs'") as rejected:
        bound.check_project("theirs", logs=2)
    assert ("forbidden_project", 2) == (rejected.value.code, rejected.value.logs)


def test_rejection_ends_the_steps_early(service: Service, disk: Disk) -> None:
    """No later step is executed, and every rejection is counted once."""
    assert "unauthorized" == service.code_of(token="wrong", query="nonsense=1")
    assert "bad_request" == service.code_of(query="nonsense=1")
    assert "bad_request" == service.code_of(query="level=info", parameters=("project_id",))
    assert "body_too_large" == service.code_of(b"x" * (MAX_BODY_BYTES + 1))
    assert [] == service.contexts
    assert "invalid_json" == service.code_of(b"broken")
    disk.free = -1
    assert "storage_full" == service.code_of(b"text")  # as the disk says
    assert "storage_full" == service.code_of(b"text")  # as is known by then
    assert 2 == len(service.contexts)
    counted = [("unauthorized", 0, 0), ("bad_request", 0, 0), ("bad_request", 0, 0)]
    counted += [("body_too_large", 0, 0), ("invalid_json", 6, 0), ("storage_full", 4, 1)]
    counted += [("storage_full", 0, 0)]
    assert counted == service.books.counted
    name = sha256(TOKEN.encode()).hexdigest()[:8]
    assert [None, *[name] * 6] == service.books.tokens
    assert b"" == service.stored()


def test_invalid_logs_of_a_partial_batch_count_as_rejected(service: Service) -> None:
    """The logs of a batch stored in part count as accepted or as rejected."""
    accepted = service.post(b"text!!")
    assert accepted.decoded.invalid is not None
    assert [("accepted", 6, 1), ("of these invalid_batch", 2)] == service.books.counted
    assert b"text!!" in service.stored()


@pytest.mark.parametrize("body", [b"text", b"text!"])
def test_a_dry_run_leaves_nothing(service: Service, body: bytes) -> None:
    """A dry run and its rejection are neither stored nor counted."""
    accepted = service.post(body, "dry_run=true")
    assert (True, 1) == (accepted.is_dry_run, accepted.decoded.batch.logs)
    assert "invalid_json" == service.code_of(b"broken", "dry_run=true")
    assert (b"", []) == (service.stored(), service.books.counted)


@pytest.mark.parametrize("body", [b"x" * 300, b" " * 3000 + b"x" * 300])
def test_a_batch_is_charged_as_it_is_stored(
    service: Service, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    """The lines replace the body, whether they are longer or shorter."""
    held: list[int] = []
    commit = service.queue.commit

    def note(batch: Batch, reservation: MemoryReservation, claim: Claim | None = None) -> None:
        held.append(service.queue.budget.reserved)
        commit(batch, reservation, claim)

    monkeypatch.setattr(service.queue, "commit", note)
    service.post(body)
    assert [len(service.stored()) + OVERHEAD_BYTES] == held
    assert 0 == service.queue.budget.reserved


def test_a_batch_that_grows_beyond_the_memory_is_rejected(service: Service) -> None:
    """Lines that are ten times as long as the body are charged too."""
    with closing(service.queue.admit()) as other:
        other.resize(MAX_BODY_BYTES // 2)
        assert "queue_full" == service.code_of(b"x" * (MAX_BODY_BYTES // 10))
        service.post(b"x" * (MAX_BODY_BYTES // 50))
    service.post(b"x" * (MAX_BODY_BYTES // 10))
    assert "body_too_large" == service.code_of(b"x" * (MAX_BODY_BYTES // 2))
    assert 0 == service.queue.budget.reserved


def test_the_body_is_gone_while_its_lines_wait(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing holds the body once it is not reserved: no frame, no traceback."""
    service = Service(settings)
    longest: list[int] = []

    def note(*args: Any) -> None:
        longest.append(max(trace.size for trace in tracemalloc.take_snapshot().traces))

    monkeypatch.setattr(service.queue, "commit", note)
    body = gzip.compress(b" " * (MAX_BODY_BYTES - 1) + b"x")
    tracemalloc.start()
    try:
        service.post(body, encoding="gzip")
    finally:
        tracemalloc.stop()
    assert longest[0] < MAX_BODY_BYTES


@pytest.mark.parametrize("query", ["partial=true", "partial=true&dry_run=true"])
def test_a_batch_without_a_valid_log_is_rejected(service: Service, query: str) -> None:
    """200 means that something is stored, except for empty batches and dry runs."""
    with pytest.raises(Rejection) as rejected:
        service.post(b"!!!", query)
    assert ("invalid_batch", 3) == (rejected.value.code, rejected.value.logs)
    assert rejected.value.message == "3 of 3 logs are invalid; nothing was stored"
    assert rejected.value.errors is not None
    assert [0, 1, 2] == list(rejected.value.errors["logs"])
    assert [("invalid_batch", 3, 0)] == service.books.counted or "dry_run" in query
    assert b"" == service.stored()


def test_a_batch_with_a_key_is_stored_once_and_counted_as_a_replay(service: Service) -> None:
    """The logs of a retry are not counted again."""
    first, second = service.post(b"text", key='"k"'), service.post(b"text", key="k")
    assert (False, True) == (first.is_replayed, second.is_replayed)
    assert b"text" * 10 + b"\n" == service.stored()
    assert [("accepted", 4, 1), ("replayed", 4)] == service.books.counted
    assert "key_reused" == service.code_of(b"other", key="k")
    assert ("key_reused", 5, 1) == service.books.counted[-1]
    assert 0 == service.queue.budget.reserved


def test_replay_of_a_partial_batch_repeats_its_errors(service: Service) -> None:
    """Nothing is stored or counted again."""
    query = "partial=true"
    first, second = (service.post(b"text!", query, key="k") for _ in range(2))
    assert first.decoded.invalid
    assert second.decoded.invalid
    assert second.is_replayed
    assert 1 == second.decoded.invalid.count
    assert 1 == service.stored().count(b"\n")
    expected = [("accepted", 5, 1), ("of these invalid_batch", 1), ("replayed", 5)]
    assert expected == service.books.counted


def test_a_rejected_batch_and_a_dry_run_leave_their_key_free(service: Service) -> None:
    """Only a stored batch uses up its key."""
    assert "invalid_json" == service.code_of(b"broken", key="k")
    assert service.post(b"text", "dry_run=true", key="k").is_dry_run
    assert not service.post(b"mended", key="k").is_replayed


@pytest.mark.parametrize("key", ["", '""', 'a"', "a,b", '"a"b', "é", "a" * 256, '"' * 3])
def test_a_malformed_key_is_rejected_before_the_body_is_read(service: Service, key: str) -> None:
    """It could not identify a retry."""
    assert "bad_request" == service.code_of(b"text", key=key)
    assert ("bad_request", 0, 0) == service.books.counted[-1]


def test_token_beyond_its_rate_is_rejected_before_the_body_is_read(
    settings: Settings, tmp_path: Path
) -> None:
    """Decompressed bytes count, a body may overdraw the bucket, and other tokens continue."""
    path = write_tokens(tmp_path / "tokens", "slow rate=0.01KB/s\nfree\n")
    service = Service(replace(settings, tokens="", tokens_file=str(path)))
    body = gzip.compress(b"x" * 150)
    service.post(body, token="slow", encoding="gzip")
    unread = io.BytesIO(body)
    with pytest.raises(Rejection) as rejected:
        service.post(body, token="slow", stream=unread)
    assert rejected.value.code == "rate_limited"
    assert 1 <= rejected.value.retry_after <= 5
    assert unread.tell() == 0
    service.post(body, token="free", encoding="gzip")
    assert [entry[0] for entry in service.books.counted] == ["accepted", "rate_limited", "accepted"]
    service.queue.stop(1)


class MeanwhileUsedUp(io.BytesIO):
    """A body that arrives while another one uses up the token's rate."""

    def __init__(self, body: bytes, use_up: Callable[[], object]) -> None:
        super().__init__(body)
        self._use_up = use_up

    def read1(self, size: int | None = -1, /) -> bytes:
        self._use_up()
        return super().read1(size)


def test_body_that_arrives_after_the_rate_is_used_up_is_rejected(
    settings: Settings, tmp_path: Path
) -> None:
    """Otherwise, as many bodies as there are connections could exceed the rate at once."""
    path = write_tokens(tmp_path / "tokens", "slow rate=0.01KB/s\n")
    service = Service(replace(settings, tokens="", tokens_file=str(path)))
    late = MeanwhileUsedUp(
        b"late", lambda: gevent.spawn(service.post, b"x" * 150, token="slow").get()
    )
    assert service.code_of(b"late", token="slow", stream=late) == "rate_limited"
    assert b"late" not in service.stored()
    service.queue.stop(1)


def test_batch_that_could_not_be_stored_costs_no_rate(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is sent again, and then counts once; a batch that is invalid has cost its bytes."""
    path = write_tokens(tmp_path / "tokens", "slow rate=0.01KB/s\n")
    service = Service(replace(settings, tokens="", tokens_file=str(path)))

    def fail(*_: Any) -> None:
        raise Rejection("queue_full")

    with monkeypatch.context() as broken:
        broken.setattr(service.queue, "commit", fail)
        for _ in range(2):
            assert service.code_of(b"x" * 150, token="slow") == "queue_full"
    service.post(b"x" * 50, token="slow")
    assert service.code_of(b"!" * 150, token="slow") == "invalid_batch"
    assert service.code_of(token="slow") == "rate_limited"
    service.queue.stop(1)


def test_body_is_its_own_key_with_once_body(settings: Settings) -> None:
    """A retry of the same bytes is stored once, compressed or not; another request is not one."""
    service = Service(settings)
    once = "once=body"
    assert not service.post(b"text", once).is_replayed
    assert service.post(b"text", once).is_replayed
    assert service.post(gzip.compress(b"text"), once, encoding="gzip").is_replayed
    assert not service.post(b"text", "once=body&level=info").is_replayed
    assert not service.post(b"other", once).is_replayed
    assert not service.post(b"text", once, key="k").is_replayed
    assert service.post(b"text", "once=body&dry_run=true").is_dry_run
    assert not service.post(b"text").is_replayed
    assert 5 == service.stored().count(b"\n")


@pytest.mark.parametrize("step", ["claim", "commit"])
def test_key_in_use_is_a_503_with_once_body(
    service: Service, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Agents drop a batch after a 409."""

    def reject(*args: Any) -> Claim:
        raise Rejection("key_in_use", "In use.")

    monkeypatch.setattr(service.queue, step, reject)
    for query, key, status in (("once=body", None, 503), ("", "k", 409), ("once=body", "k", 503)):
        with pytest.raises(Rejection) as rejected:
            service.post(b"text", query, key=key)
        assert ("key_in_use", status) == (rejected.value.code, int(rejected.value.status))


def test_invalid_keep_without_a_project_is_rejected_before_the_body(
    settings: Settings, tmp_path: Path
) -> None:
    path = write_tokens(tmp_path / "tokens", "bound mine\nseveral mine yours\nfree\n")
    service = Service(replace(settings, tokens="", tokens_file=str(path)))
    for token in ("several", "free"):
        with pytest.raises(Rejection, match="project_id=") as rejected:
            service.post(token=token, query="invalid=keep")
        assert "bad_request" == rejected.value.code
        service.post(token=token, query="invalid=keep&project_id=mine")
    service.post(token="bound", query="invalid=keep")
    assert ["mine"] * 3 == [context.project for context in service.contexts]


def test_kept_logs_are_not_counted_as_rejected(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    invalid = InvalidLogs(are_kept=True)
    invalid.add(0, {"text": ["Too loud."]})
    decoded = Decoded(Batch(b"text\n", 1), invalid)
    monkeypatch.setattr(service, "_decode", lambda body, context: decoded)
    assert decoded == service.post(b"text!").decoded
    assert [("accepted", 5, 1)] == service.books.counted
