import os
import time
from pathlib import Path

import pytest

from astralog import tokens_file
from astralog.settings import InvalidSettings
from astralog.tokens_file import (
    ALL_SCOPES,
    SHOWN_PROBLEMS,
    Scope,
    WatchedFile,
    by_digest,
    digest_of,
    parse,
)
from tests.support.service import wait_for, write_tokens


def grants(content: bytes) -> dict[bytes, set[str] | None]:
    """Return the projects of each token in a file, or None for all projects."""
    known = {token.digest: token.projects for token in parse(content, "file")}
    shown = {b"one", b"two", b"three", b"fo#ur", b"#five", b"jalape\xc3\xb1o", b"\xff"}
    found = {text: known[digest_of(text)] for text in shown if digest_of(text) in known}
    assert len(found) == len(known), "there are tokens that nobody wrote"
    return {
        text: projects if projects is None else set(projects) for text, projects in found.items()
    }


def problems_of(content: bytes) -> list[str]:
    with pytest.raises(InvalidSettings) as rejected:
        by_digest(parse(content, "file"))
    return rejected.value.problems


#: Two tokens whose SHA-256 begin with the same 8 hex digits.
SAME_NAME = b"t26821\nt49091\n"


def test_two_tokens_of_the_same_name_are_a_fault() -> None:
    """Their batches would be counted together, and each would see those of the other."""
    assert problems_of(b"one\n" + SAME_NAME) == [
        "file, line 3: The token has the same name as that of file, line 2, 3b787b99; "
        "use another one."
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"one\n", {b"one": None}),
        (b"one", {b"one": None}),
        (b"one\r\ntwo\rthree\n", {b"one": None, b"two": None, b"three": None}),
        (b"\n \t\n  one\ta  b\n", {b"one": {"a", "b"}}),
        (b"one a # not b any more\n", {b"one": {"a"}}),
        (b"one a #b\n", {b"one": {"a"}}),
        (b"one a#b c#\n", {b"one": {"a#b", "c#"}}),
        (b"one # all projects\ntwo a\t#b\n", {b"one": None, b"two": {"a"}}),
        (b"# one\n #two\n\t# three a\nfo#ur #\n", {b"fo#ur": None}),
        ("jalape\xf1o \xe4\n".encode(), {"jalape\xf1o".encode(): {"\xe4"}}),
        (b"\xff\n", {b"\xff": None}),
        (b"one a a\n", {b"one": {"a"}}),
    ],
)
def test_a_line_is_a_token_and_its_projects(
    content: bytes, expected: dict[bytes, set[str] | None]
) -> None:
    """`#` starts a comment outside a word; words are separated by spaces and tabs."""
    assert expected == grants(content)


@pytest.mark.parametrize(
    ("content", "problems"),
    [
        (b"", ["file: Holds no token."]),
        (b"# one\n", ["file: Holds no token."]),
        (b"one a\ntwo\none b\n", ["file, line 3: The token of file, line 1 again."]),
        (b"one\none\n", ["file, line 2: The token of file, line 1 again."]),
        (b"\xef\xbb\xbfone\n", ["file: Begins with a byte order mark; remove it."]),
        (b"Bearer one\n", ["file, line 1: Write the token without `Bearer`."]),
        (b"one \xff\n", ["file, line 1: A project's name is not valid UTF-8."]),
        (
            b"o\x01e\nt\x00o\n",
            [
                "file, line 1: The token has a space or a control character.",
                "file, line 2: The token has a space or a control character.",
            ],
        ),
    ],
)
def test_faulty_and_ambiguous_lines_are_reported(content: bytes, problems: list[str]) -> None:
    """Every wrong line is named by its number, and no token is shown."""
    assert problems == problems_of(content)


@pytest.mark.parametrize(
    ("line", "projects", "scopes", "rate"),
    [
        (b"one", None, ALL_SCOPES, None),
        (b"one allow=write", None, (Scope.WRITE,), None),
        (b"one a allow=read b", {"a", "b"}, (Scope.READ,), None),
        (b"one rate=5MB/s a", {"a"}, ALL_SCOPES, 5e6),
        (b"one rate=0.5KB/s allow=write # rate=1MB/s", None, (Scope.WRITE,), 500.0),
        (b"one rate=2GB/s", None, ALL_SCOPES, 2e9),
    ],
)
def test_options_follow_a_token(
    line: bytes, projects: set[str] | None, scopes: tuple[Scope, ...], rate: float | None
) -> None:
    """Each word with an equals sign is an option, anywhere after the token."""
    (token,) = parse(line, "file")
    assert token.projects == projects
    assert token.scopes == scopes
    assert token.rate == rate


def test_token_may_contain_an_equals_sign() -> None:
    """Base64 ends with one; the first word is always the token."""
    (token,) = parse(b"c2VjcmV0Cg== allow=write", "file")
    assert token.digest == digest_of(b"c2VjcmV0Cg==")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (b"alow=write", "Unknown option; there are allow and rate."),
        (b"=write", "Unknown option; there are allow and rate."),
        (b"allow=", "Option allow is write or read; without it, both are allowed."),
        (b"allow=write,read", "Option allow is write or read; without it, both are allowed."),
        (b"allow=Write", "Option allow is write or read; without it, both are allowed."),
        (b"allow=write allow=write", "Option allow occurs twice."),
        (b"rate=1MB/s rate=2MB/s", "Option rate occurs twice."),
        *(
            (b"rate=" + rate, "Option rate is a number with KB/s, MB/s or GB/s, such as 5MB/s.")
            for rate in (b"", b"5", b"5MB", b"0MB/s", b"5mb/s", b"-5MB/s", b"5 MB/s", b"1e3KB/s")
        ),
        (b"\xff=1", "Unknown option; there are allow and rate."),
    ],
)
def test_faulty_option_is_one_line_without_the_token(words: bytes, problem: str) -> None:
    """The message has the number of the line, and neither the token nor the option."""
    assert problems_of(b"two\none a " + words) == [f"file, line 2: {problem}"]


@pytest.mark.parametrize("line", [b"one\n", b"t\x01o\n"])
def test_few_of_many_faulty_lines_are_named(line: bytes) -> None:
    """The message for a file of another kind is not megabytes long."""
    problems = problems_of(b"one\n" + 1000 * line)
    assert len(problems) == SHOWN_PROBLEMS + 1
    assert problems[0].startswith("file, line 2: ")
    assert problems[-1] == f"{1000 - SHOWN_PROBLEMS} more lines are faulty."


def test_the_name_of_a_token_is_no_token() -> None:
    """It is 8 hex digits, and different for different tokens."""
    one, two = parse(b"one\ntwo\n", "file")
    assert (8, 8) == (len(one.name), len(two.name))
    assert one.name != two.name
    assert int(one.name, 16) >= 0


# --- A file that is being written


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a file that does not exist yet."""
    return tmp_path / "tokens"


def age(path: Path, seconds: float) -> None:
    """Set the time of a file's last change to some seconds ago."""
    now = time.time()
    os.utime(path, (now, now - seconds))


def test_a_file_is_read_when_it_changes(path: Path) -> None:
    """The same content is not read twice; content or a file of the same size and age is read."""
    file = WatchedFile(path, "file")
    write_tokens(path, "one\n")
    assert [b"one\n", None] == [file.read_changed(), file.read_changed()]
    other = path.with_name("other")
    write_tokens(other, "two\n")
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.replace(path)
    assert [b"two\n", None] == [file.read_changed(), file.read_changed()]
    status = path.stat()
    path.write_bytes(b"six\n")

    def has_another_ctime() -> bool:
        """Change it until then: before Linux 6.13, its clock ticks every few milliseconds."""
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        return path.stat().st_ctime_ns != status.st_ctime_ns

    wait_for(has_another_ctime)
    assert [b"six\n", None] == [file.read_changed(), file.read_changed()]


@pytest.mark.parametrize(
    ("content", "rest"),
    [
        (b"one\n", tokens_file.REST_SECONDS),
        (b"one\r", tokens_file.REST_SECONDS),
        (b"one", tokens_file.UNFINISHED_REST_SECONDS),
        (b"one org-a", tokens_file.UNFINISHED_REST_SECONDS),
        (b"", tokens_file.UNFINISHED_REST_SECONDS),
    ],
)
def test_file_is_read_once_it_stops_changing(path: Path, content: bytes, rest: float) -> None:
    """A file that has just changed may be half-written, above all without a final line break."""
    file = WatchedFile(path, "file")
    path.write_bytes(content)
    age(path, -60)
    assert file.read_changed() is None
    age(path, rest)
    assert content == file.read_changed()


def test_a_half_written_line_grants_nothing(path: Path) -> None:
    """Neither a token without its projects nor the first half of a token is accepted."""
    file = WatchedFile(path, "file")
    whole = b"one org-a org-b\ntwo org-c\n"
    for length in range(1, len(whole)):
        path.write_bytes(whole[:length])
        age(path, tokens_file.REST_SECONDS)
        content = file.read_changed()
        assert content in (None, b"one org-a org-b\n")
    path.write_bytes(whole)
    age(path, tokens_file.REST_SECONDS)
    assert whole == file.read_changed()


def test_file_that_changes_during_its_read_is_read_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The content may be half old and half new, so the next check reads it again."""
    write_tokens(path, "one\n")
    file = WatchedFile(path, "file")
    read = tokens_file.read_file

    def read_and_write(path: Path, place: str) -> bytes:
        content = read(path, place)
        write_tokens(path, "longer\n")
        return content

    with monkeypatch.context() as patch:
        patch.setattr(tokens_file, "read_file", read_and_write)
        assert file.read_changed() is None
    assert b"longer\n" == file.read_changed()


def test_file_with_a_future_time_is_read_after_a_pause(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If another machine's clock is ahead, only this process's own observation counts."""
    monkeypatch.setattr(tokens_file, "REST_SECONDS", 0.2)
    file = WatchedFile(path, "file")
    path.write_bytes(b"one\n")
    age(path, -3600)
    assert file.read_changed() is None
    time.sleep(0.2)
    assert b"one\n" == file.read_changed()


def test_start_waits_until_the_file_is_complete(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start does not continue with half of the tokens, and does not wait forever."""
    monkeypatch.setattr(tokens_file, "REST_SECONDS", 0.2)
    path.write_bytes(b"one\n")
    assert b"one\n" == WatchedFile(path, "file").read_whole()
    monkeypatch.setattr(tokens_file, "WHOLE_SECONDS", 0)
    age(path, -3600)
    with pytest.raises(InvalidSettings, match=r"file: Is still being written\."):
        WatchedFile(path, "file").read_whole()


def test_a_file_that_cannot_be_read_is_named(path: Path, tmp_path: Path) -> None:
    """The message has the path and the reason."""
    for target, reason in ((path, "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(InvalidSettings, match=rf"file: {reason}\."):
            WatchedFile(target, "file").read_whole()


def test_a_file_that_is_none_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe would block its reader, and a device may have no end."""
    fd_count = len(os.listdir("/proc/self/fd"))
    pipe = path.with_name("pipe")
    os.mkfifo(pipe)
    for target in (pipe, Path("/dev/zero")):
        with pytest.raises(InvalidSettings, match="file: Is not a file, but a pipe or a device"):
            WatchedFile(target, "file").read_changed()
    write_tokens(path, "one\n")
    monkeypatch.setattr(tokens_file, "MAX_FILE_BYTES", 3)
    with pytest.raises(InvalidSettings, match="file: Is larger than 3 bytes"):
        WatchedFile(path, "file").read_changed()
    with pytest.raises(InvalidSettings, match="Is a directory"):
        WatchedFile(path.parent, "file").read_changed()
    assert fd_count == len(os.listdir("/proc/self/fd"))
