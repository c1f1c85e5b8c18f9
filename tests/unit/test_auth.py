import errno
import hashlib
import logging
import os
import stat
import threading
import time
from base64 import b64encode
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest

from astralog import auth, tokens_file
from astralog.auth import NAMED_TOKENS, TOKEN_FILE_NAME, Tokens
from astralog.browsers import QUERY_TOKEN
from astralog.errors import Rejection
from astralog.server.start import make_token_file
from astralog.settings import InvalidSettings, Settings
from astralog.tokens_file import MAX_TOKEN_BYTES, Scope, WatchedFile, digest_of
from tests.support.fake_system import BreakOs
from tests.support.greenlets import wait_until
from tests.support.service import TIMEOUT_SECONDS, write_tokens

SECRET = "s3cret-Token"


def in_base64(text: str) -> str:
    """Return a text in base64, the form that Basic and ApiKey use."""
    return b64encode(text.encode()).decode()


def environ_of(authorization: str | None) -> dict[str, str]:
    """Return a request with this Authorization header, or without any."""
    return {} if authorization is None else {"HTTP_AUTHORIZATION": authorization}


def is_known(tokens: Tokens, authorization: str | None) -> bool:
    """Return whether a header contains a known token."""
    try:
        tokens.authorize(environ_of(authorization), Scope.WRITE)
    except Rejection:
        return False
    return True


@pytest.mark.parametrize(
    ("authorization", "expected"),
    [
        (SECRET, True),
        (f"Bearer {SECRET}", True),
        (f"bearer {SECRET}", True),
        (f"BEARER {SECRET}", True),
        (f"bEaReR   {SECRET}", True),
        (f"Splunk {SECRET}", True),
        (f"sPLUNK {SECRET}", True),
        (f"Basic {in_base64(':' + SECRET)}", True),
        (f"basic  {in_base64('any user:' + SECRET)}", True),
        (f"ApiKey {in_base64('key-id:' + SECRET)}", True),
        (f"APIKEY {in_base64(':' + SECRET)}", True),
        (f"Basic {in_base64('user:other:' + SECRET)}", False),
        (f"Basic {in_base64(SECRET)}", False),
        (f"Basic {in_base64(SECRET + ':')}", False),
        (f"Basic {in_base64('user:' + SECRET)}=", False),
        (f"Bearer {in_base64('user:' + SECRET)}", False),
        (f"ApiKey {SECRET}", False),
        ("Splunk", False),
        ("Basic", False),
        ("ApiKey ", False),
        (f"  {SECRET} ", True),
        ("other", True),
        (None, False),
        ("", False),
        (" ", False),
        ("Bearer", False),
        ("Bearer ", False),
        ("wrong", False),
        (SECRET.lower(), False),
        (SECRET + "x", False),
        (SECRET[:-1], False),
        (f"Bearer{SECRET}", False),
        (f"Bearer Bearer {SECRET}", False),
        (f"Basic {SECRET}", False),
        (f"Token {SECRET}", False),
        (f"{SECRET},other", False),
        (f"{SECRET} other", False),
        (f"{SECRET}\0", False),
        ("\xff\xfe", False),
        ("x" * 1_000_000, False),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_token_is_accepted_alone_or_in_a_known_scheme(
    authorization: str | None, expected: bool
) -> None:
    """A known token is accepted alone or in a scheme of any letter case, and nothing else is."""
    tokens = Tokens(Settings(tokens=f"{SECRET},other"))
    assert expected is is_known(tokens, authorization)


def test_token_in_the_query_precedes_the_header(settings: Settings, tmp_path: Path) -> None:
    """Also after a request with this header alone."""
    path = tmp_path / "tokens"
    write_tokens(path, b"one allow=write\ntwo allow=write\n")
    tokens = Tokens(replace(settings, tokens="", tokens_file=str(path)))
    one = tokens.authorize(environ_of("one"), Scope.WRITE)
    two = tokens.authorize({QUERY_TOKEN: "two"}, Scope.WRITE)
    assert two == tokens.authorize({QUERY_TOKEN: "two"} | environ_of("one"), Scope.WRITE) != one


@pytest.mark.parametrize(
    ("authorization", "words"),
    [
        ("wrong", auth.UNKNOWN),
        ("Basic eDp5", auth.UNKNOWN),
        ("Basic ???", auth.OTHER_SCHEME),
        ("Digest eDp5", auth.OTHER_SCHEME),
        (f"Bearer%20{SECRET}", auth.ESCAPED_BLANK),
        (f"bearer%20{SECRET}x", auth.ESCAPED_BLANK),
        (f'"{SECRET}"', auth.QUOTED),
        (f"Bearer '{SECRET}'", auth.QUOTED),
        (f"Bearer {SECRET}'", auth.QUOTED),
        (f"{SECRET}\\n", auth.ESCAPED_LINE_END),
        (f"Bearer {SECRET}%0A", auth.ESCAPED_LINE_END),
        (f"{SECRET},{SECRET}", auth.COMMA),
        (f"Bearer {SECRET},Bearer {SECRET}", auth.COMMA),
    ],
)
def test_rejection_explains_a_malformed_token(
    settings: Settings, authorization: str, words: str
) -> None:
    """The hint depends on the form alone, so it reveals nothing about the rest of the token."""
    with pytest.raises(Rejection) as rejected:
        Tokens(replace(settings, tokens=SECRET)).authorize(environ_of(authorization), Scope.WRITE)
    assert words in rejected.value.message
    assert SECRET not in rejected.value.message


@pytest.mark.parametrize("authorization", [None, "Bearer my-guess", "my-guess"])
def test_rejection_reveals_no_token(
    authorization: str | None,
) -> None:
    """The message of a 401 contains no token and is the same for every wrong one."""
    with pytest.raises(Rejection) as rejected:
        Tokens(Settings(tokens=SECRET)).authorize(environ_of(authorization), Scope.WRITE)
    assert "unauthorized" == rejected.value.code
    assert SECRET not in rejected.value.message
    assert "my-guess" not in rejected.value.message


def cpu_seconds(tokens: Tokens, authorization: str) -> float:
    """Return this thread's CPU seconds for checking a header many times."""
    start = time.thread_time()
    for _ in range(3000):
        is_known(tokens, authorization)
    return time.thread_time() - start


@pytest.mark.parametrize("shown", ["token-0", "token-19999", "wrong"])
def test_many_tokens_make_no_request_more_expensive(settings: Settings, shown: str) -> None:
    """Each of 20,000 tokens is found as fast as a single token is."""
    many = Tokens(replace(settings, tokens=",".join(f"token-{n}" for n in range(20_000))))
    one = Tokens(replace(settings, tokens="token-0"))
    assert is_known(many, shown) is (shown != "wrong")
    assert cpu_seconds(many, shown) < 10 * cpu_seconds(one, shown)


def test_a_token_may_hold_any_byte_that_a_header_carries(settings: Settings) -> None:
    """A token outside ASCII is compared as the bytes that the client sends."""
    token = "jalapeño-\U0001f336"
    tokens = Tokens(replace(settings, tokens=token))
    as_wsgi_has_it = token.encode().decode("latin-1")
    assert is_known(tokens, as_wsgi_has_it)
    assert is_known(tokens, f"Bearer {as_wsgi_has_it}")
    assert not is_known(tokens, "jalape\xf1o-")


def test_token_that_is_not_utf8_is_compared_as_bytes(settings: Settings, tmp_path: Path) -> None:
    """Neither the tokens file nor the environment has to be UTF-8."""
    path = tmp_path / "tokens"
    write_tokens(path, b"\xff\xfe\x80\n")
    for changed in (
        replace(settings, tokens="", tokens_file=str(path)),
        replace(settings, tokens=os.fsdecode(b"\xff\xfe\x80")),
    ):
        assert is_known(Tokens(changed), "\xff\xfe\x80")
        assert not is_known(Tokens(changed), "\xff\xfe")


def test_several_tokens_come_from_the_environment(settings: Settings) -> None:
    """Tokens are separated by commas; spaces around them and empty entries are ignored."""
    tokens = Tokens(replace(settings, tokens=" one, two ,,three,"))
    for token in ("one", "two", "three"):
        assert is_known(tokens, token)
    assert not is_known(tokens, "")
    assert not is_known(tokens, "one, two")


def test_tokens_come_from_a_file(settings: Settings, tmp_path: Path) -> None:
    """A tokens file has one token per line, and may have comments and empty lines."""
    path = tmp_path / "tokens"
    write_tokens(path, b"# who: team a\none\n\n  two  \r\n   # three\nfo#ur\n\tfive,six")
    tokens = Tokens(replace(settings, tokens="", tokens_file=str(path)))
    for token in ("one", "two", "fo#ur", "five,six"):
        assert is_known(tokens, token)
    for other in ("# who: team a", "# three", "three", "", "five", "test-token"):
        assert not is_known(tokens, other)
    assert not (tmp_path / TOKEN_FILE_NAME).exists()


def test_environment_and_file_may_both_list_tokens(settings: Settings, tmp_path: Path) -> None:
    """Both sources may be set at once, for example while a token is replaced."""
    path = tmp_path / "tokens"
    write_tokens(path, "two\n")
    tokens = Tokens(replace(settings, tokens="one", tokens_file=str(path)))
    assert is_known(tokens, "one")
    assert is_known(tokens, "two")


@pytest.mark.parametrize("tokens", [",", " ", " , ,"])
def test_list_without_tokens_stops_the_start(settings: Settings, tokens: str) -> None:
    """An empty list is rejected; it neither admits everybody nor locks everybody out."""
    with pytest.raises(InvalidSettings) as rejected:
        Tokens(replace(settings, tokens=tokens))
    assert ["ASTRALOG_TOKENS: Holds no token."] == rejected.value.problems


@pytest.mark.parametrize("content", [b"", b"\n\n", b"# only a comment\n"])
def test_tokens_file_without_tokens_stops_the_start(
    settings: Settings, tmp_path: Path, content: bytes
) -> None:
    """The message names the file."""
    path = tmp_path / "tokens"
    write_tokens(path, content)
    with pytest.raises(InvalidSettings) as rejected:
        Tokens(replace(settings, tokens="", tokens_file=str(path)))
    assert [f"ASTRALOG_TOKENS_FILE: {path}: Holds no token."] == rejected.value.problems


def test_a_tokens_file_that_cannot_be_read_stops_the_start(
    settings: Settings, tmp_path: Path
) -> None:
    """For a missing file and for a directory, the message has the path and the reason."""
    missing = tmp_path / "missing"
    for path, reason in ((missing, "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(InvalidSettings) as rejected:
            Tokens(replace(settings, tokens_file=str(path)))
        assert [f"ASTRALOG_TOKENS_FILE: {path}: {reason}."] == rejected.value.problems


@pytest.mark.parametrize("token", ["two words", "tab\there", "bell\x07", "delete\x7f", "nul\0"])
def test_token_with_a_space_or_control_character_stops_the_start(
    settings: Settings, token: str
) -> None:
    """The message names its position and never its text."""
    with pytest.raises(InvalidSettings) as rejected:
        Tokens(replace(settings, tokens=f"good,{token}"))
    expected = "ASTRALOG_TOKENS, token 2: The token has a space or a control character."
    assert [expected] == rejected.value.problems


def test_a_token_may_be_as_long_as_a_header_field(settings: Settings) -> None:
    """The longest token is accepted; one byte more stops the start."""
    token = "t" * MAX_TOKEN_BYTES
    assert Tokens(replace(settings, tokens=token)).authorize(
        environ_of(f"Bearer {token}"), Scope.WRITE
    )
    with pytest.raises(InvalidSettings) as rejected:
        Tokens(replace(settings, tokens=f"{token}t"))
    assert ["ASTRALOG_TOKENS, token 1: A token has at most 4000 bytes."] == rejected.value.problems


def test_faulty_line_of_a_tokens_file_is_named_by_its_number(
    settings: Settings, tmp_path: Path
) -> None:
    """The message does not contain the token."""
    path = tmp_path / "tokens"
    write_tokens(path, b"good\n# comment\nse\x01cret\n")
    with pytest.raises(InvalidSettings) as rejected:
        Tokens(replace(settings, tokens_file=str(path)))
    message = f"ASTRALOG_TOKENS_FILE: {path}, line 3: The token has a space or a control character."
    assert [message] == rejected.value.problems


def test_a_token_may_be_bound_to_projects(settings: Settings, tmp_path: Path) -> None:
    """The words after a token are its projects; a token without any may write all projects."""
    path = tmp_path / "tokens"
    write_tokens(path, "bound  org-xyz\torg-ä \nbare\n")
    tokens = Tokens(replace(settings, tokens="listed", tokens_file=str(path)))
    assert {"org-xyz", "org-ä"} == tokens.authorize(environ_of("bound"), Scope.WRITE).projects
    assert tokens.authorize(environ_of("bare"), Scope.WRITE).projects is None
    assert tokens.authorize(environ_of("listed"), Scope.WRITE).projects is None
    with pytest.raises(Rejection):
        tokens.authorize(environ_of("org-xyz"), Scope.WRITE)


def test_tokens_are_read_again_when_their_file_changes(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A token is replaced without a restart; a faulty file changes nothing and is logged once."""
    path = tmp_path / "tokens"
    write_tokens(path, "old\n")
    tokens = Tokens(replace(settings, tokens="", tokens_file=str(path)))
    assert is_known(tokens, "old")
    write_tokens(path, "old\nnewer\n")
    tokens.check()
    assert is_known(tokens, "newer")
    for content in ("# none\n", None):
        write_tokens(path, content) if content else path.unlink()
        for _ in range(3):
            tokens.check()
            assert is_known(tokens, "newer")
    write_tokens(path, "newer\n")
    tokens.check()
    assert not is_known(tokens, "old")
    assert is_known(tokens, "newer")
    assert [
        f"tokens not reloaded: ASTRALOG_TOKENS_FILE: {path}: Holds no token.",
        f"tokens not reloaded: ASTRALOG_TOKENS_FILE: {path}: No such file or directory.",
    ] == [record.message for record in caplog.records if record.levelno == logging.ERROR]


@pytest.mark.parametrize("content", [None, "# none\n", "one\none\n"])
def test_faulty_file_is_logged_at_its_start_and_its_end(
    settings: Settings,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    content: str | None,
) -> None:
    """Failed checks in between log nothing, however many there are."""
    path = tmp_path / "tokens"
    write_tokens(path, "one\n")
    caplog.set_level(logging.INFO)
    tokens = Tokens(replace(settings, tokens="", tokens_file=str(path)))
    assert not tokens.are_several
    for episode in range(2):
        write_tokens(path, content) if content else path.unlink()
        for _ in range(3):
            tokens.check()
        write_tokens(path, f"one\ntwo{episode}\n")
        for _ in range(3):
            tokens.check()
        assert tokens.are_several
    problem = {None: ": No such file or directory.", "# none\n": ": Holds no token."}.get(
        content, f", line 2: The token of ASTRALOG_TOKENS_FILE: {path}, line 1 again."
    )
    assert caplog.messages == 2 * [
        f"tokens not reloaded: ASTRALOG_TOKENS_FILE: {path}{problem}",
        "tokens are reloaded again",
        "read 2 tokens",
    ]
    assert capfd.readouterr().err == ""


def test_a_faulty_file_is_parsed_once(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a long file would block the interpreter twice per second."""
    path = tmp_path / "tokens"
    write_tokens(path, "one\n")
    tokens = Tokens(replace(settings, tokens="", tokens_file=str(path)))
    parse = Mock(wraps=tokens_file.parse)
    monkeypatch.setattr(tokens_file, "parse", parse)
    write_tokens(path, "# none\n")
    for _ in range(3):
        tokens.check()
    parse.assert_called_once()


def test_a_changed_file_is_followed_once_started(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checks run periodically, and continue after one that fails unexpectedly."""
    monkeypatch.setattr(auth, "CHECK_SECONDS", 0.01)
    path = tmp_path / "tokens"
    write_tokens(path, "old\n")
    tokens = Tokens(replace(settings, tokens="", tokens_file=str(path)))
    failures = iter([MemoryError(), RuntimeError()])
    read = WatchedFile.read_changed

    def fail_first(file: WatchedFile) -> bytes | None:
        for failure in failures:
            raise failure
        return read(file)

    monkeypatch.setattr(WatchedFile, "read_changed", fail_first)
    tokens.start()
    assert is_known(tokens, "old")
    write_tokens(path, "new\n")
    wait_until(lambda: is_known(tokens, "new"))
    assert not is_known(tokens, "old")


def test_start_checks_the_file_first(settings: Settings, tmp_path: Path) -> None:
    """A worker that inherits its tokens does not accept one that was removed meanwhile."""
    path = tmp_path / "tokens"
    write_tokens(path, "old\n")
    tokens = Tokens(replace(settings, tokens="", tokens_file=str(path)))
    write_tokens(path, "new\n")
    tokens.start()
    assert [False, True] == [is_known(tokens, token) for token in ("old", "new")]


def test_hanging_tokens_file_blocks_nothing(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """During a check that hangs, a worker starts, greenlets run, and the tokens stay the same."""
    monkeypatch.setattr(auth, "FIRST_CHECK_SECONDS", 0.1)
    path = tmp_path / "tokens"
    write_tokens(path, "old\n")
    tokens = Tokens(replace(settings, tokens="", tokens_file=str(path)))
    hanging, disk_is_back = threading.Event(), threading.Event()
    answers: list[bool] = []

    def hang(file: WatchedFile) -> None:
        hanging.set()
        answers.append(disk_is_back.wait(TIMEOUT_SECONDS))

    monkeypatch.setattr(WatchedFile, "read_changed", hang)
    tokens.start()
    wait_until(hanging.is_set)
    assert is_known(tokens, "old")
    assert [] == answers
    disk_is_back.set()


def test_token_in_environment_and_file_stops_the_start(settings: Settings, tmp_path: Path) -> None:
    """Removed from one of them, it would still be known. Repeated in one list, it is one token."""
    path = tmp_path / "tokens"
    write_tokens(path, "one org-xyz\n")
    with pytest.raises(InvalidSettings) as rejected:
        Tokens(replace(settings, tokens="two,one", tokens_file=str(path)))
    line = f"ASTRALOG_TOKENS_FILE: {path}, line 1: The token of ASTRALOG_TOKENS, token 2 again."
    assert [line] == rejected.value.problems
    assert is_known(Tokens(replace(settings, tokens="one,one")), "one")


def test_name_identifies_a_known_token(settings: Settings) -> None:
    """The name is made of the token's digest; an unknown token has no name in any scheme."""
    tokens = Tokens(replace(settings, tokens=SECRET))
    name = hashlib.sha256(SECRET.encode()).hexdigest()[:8]
    assert (
        name == tokens.name_of(environ_of(SECRET)) == tokens.name_of(environ_of(f"Bearer {SECRET}"))
    )
    for shown in (None, "", "Bearer", "other", f"Basic {SECRET}", SECRET[:-1]):
        assert tokens.name_of(environ_of(shown)) is None


def test_first_tokens_are_counted_by_name(settings: Settings, tmp_path: Path) -> None:
    """Those of the list, then those of the file in its order, as the file has them now."""
    path = tmp_path / "tokens"
    write_tokens(path, "".join(f"token-{number}\n" for number in range(NAMED_TOKENS)))
    tokens = Tokens(replace(settings, tokens_file=str(path)))
    names = [digest_of(f"token-{number}".encode())[:4].hex() for number in range(NAMED_TOKENS)]
    assert [tokens.is_named(name) for name in names] == [True] * (NAMED_TOKENS - 1) + [False]
    write_tokens(path, f"token-{NAMED_TOKENS - 1}\n")
    tokens.check()
    assert tokens.is_named(names[-1])
    assert not tokens.is_named(names[0])


@pytest.mark.parametrize("shown", [f"Basic {SECRET}", f"Token {SECRET}", f"bearer bearer {SECRET}"])
def test_unsupported_scheme_is_explained(shown: str) -> None:
    """The message lists the supported schemes, even if the token itself is right."""
    with pytest.raises(Rejection, match="Unsupported scheme") as rejected:
        Tokens(Settings(tokens=SECRET)).authorize(environ_of(shown), Scope.WRITE)
    assert SECRET not in rejected.value.message


def test_first_start_creates_a_token(settings: Settings, tmp_path: Path) -> None:
    """If none is configured, a random token is created that only its owner can read."""
    path = make_token_file(tmp_path)
    tokens = Tokens(replace(settings, tokens=""))
    assert tmp_path / TOKEN_FILE_NAME == path
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)
    token = path.read_text().strip()
    assert len(token) >= 32
    assert is_known(tokens, token)
    assert not is_known(tokens, "")
    assert [path] == list(tmp_path.iterdir())


def test_the_first_token_is_durable(tmp_path: Path, break_os: BreakOs) -> None:
    """Its bytes and its name are synced before the token is shown."""
    fsync = break_os("fsync", errno.EIO, times=0)
    make_token_file(tmp_path)
    draft, directory = (call.split(" ")[0] for call in fsync.calls)
    assert (str(tmp_path), str(tmp_path)) == (os.path.dirname(draft), directory)


def test_a_token_that_cannot_be_written_leaves_no_file(tmp_path: Path, break_os: BreakOs) -> None:
    """Repeated starts on a full disk do not fill the directory with files."""
    break_os("fsync", errno.ENOSPC)
    with pytest.raises(OSError, match="No space"):
        make_token_file(tmp_path)
    assert [] == list(tmp_path.iterdir())


def test_a_later_start_keeps_the_token(settings: Settings, tmp_path: Path) -> None:
    """An existing token file is kept, even if it was edited by hand."""
    first = make_token_file(tmp_path).read_bytes()
    assert first == make_token_file(tmp_path).read_bytes()
    (tmp_path / TOKEN_FILE_NAME).write_text("by-hand\n")
    assert is_known(Tokens(replace(settings, tokens="")), "by-hand")


def test_two_data_directories_have_different_tokens(tmp_path: Path) -> None:
    """The token is random."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    tokens = {make_token_file(tmp_path / name).read_bytes() for name in "ab"}
    assert 2 == len(tokens)


def test_concurrent_starts_use_the_same_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If another process creates the token at the same moment, its token is used."""
    link = os.link

    def link_too_late(source: Path, target: Path) -> None:
        target.write_text("the other process's\n")
        link(source, target)

    monkeypatch.setattr(os, "link", link_too_late)
    path = make_token_file(tmp_path)
    assert "the other process's\n" == path.read_text()
    assert [path] == list(tmp_path.iterdir())


def test_interrupted_start_leaves_no_partial_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a start dies before its token is on disk, the next start creates one."""

    def die(fd: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", die)
        with pytest.raises(KeyboardInterrupt):
            make_token_file(tmp_path)
    assert not (tmp_path / TOKEN_FILE_NAME).exists()
    assert make_token_file(tmp_path).read_text().strip()


@pytest.mark.parametrize(("allow", "scope"), [("write", Scope.READ), ("read", Scope.WRITE)])
def test_token_is_limited_to_its_scope(settings: Settings, allow: str, scope: Scope) -> None:
    """A token with allow= is 403 for the other scope; its name is known all the same."""
    path = write_tokens(settings.data_dir / "tokens", f"one allow={allow}\n")
    tokens = Tokens(replace(settings, tokens="", tokens_file=str(path)))
    assert tokens.authorize(environ_of("one"), Scope(allow)).scopes == (Scope(allow),)
    with pytest.raises(Rejection) as rejected:
        tokens.authorize(environ_of("one"), scope)
    assert rejected.value.code == "forbidden_scope"
    assert f"allow={allow}" in rejected.value.message
    assert tokens.name_of(environ_of("one")) is not None
