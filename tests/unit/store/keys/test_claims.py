"""Keys, their claims and their locks."""

import errno
import hashlib
import os
import zlib
from pathlib import Path

import pytest

from astralog.errors import KEY_REUSED
from astralog.store.keys.claims import Claim, Key, KeyLocks, Outcome, make_key

DIGEST = bytes(range(16))
KEY = Key("00000000", DIGEST, bytes(16))


def test_a_key_is_found_with_the_tools_of_any_system() -> None:
    """Its digest is a SHA-256 of two texts, so an operator can compute it."""
    token = hashlib.sha256(b"secret").digest()
    key = make_key(token, "00000000", "my-key", b"body", "/v1/drain")
    text = hashlib.sha256(b"secret").hexdigest() + ":my-key"
    assert hashlib.sha256(text.encode()).hexdigest()[:32] == key.digest.hex()


def test_another_token_or_key_has_another_digest() -> None:
    """Token and key identify the batch; body and context show whether it is the same."""
    same = make_key(b"t", "n", "k", b"body", "/a")
    assert same == make_key(b"t", "n", "k", b"body", "/a")
    for token, key in ((b"T", "k"), (b"t", "K")):
        assert same.digest != make_key(token, "n", key, b"body", "/a").digest
    for body, context in ((b"Body", "/a"), (b"body", "/b"), (b"body2", "/a"), (b"y", "/a\nbod")):
        assert same.body != make_key(b"t", "n", "k", body, context).body


def test_bodies_of_one_checksum_differ() -> None:
    """Bodies with the same CRC-32 and length differ in 128 bits."""
    one, two = b"plumless", b"buckeroo"
    assert (len(one), zlib.crc32(one)) == (len(two), zlib.crc32(two))
    assert make_key(b"t", "n", "k", one, "").body != make_key(b"t", "n", "k", two, "").body
    assert 16 == len(make_key(b"t", "n", "k", one, "").body)


def test_rejected_claim_has_its_cause() -> None:
    """A batch that is stored, now or earlier, has none."""
    claim = Claim(KEY, 1, lambda key: None)
    assert claim.cause is None
    claim.reject(KEY_REUSED)
    assert claim.outcome is Outcome.REJECTED
    assert claim.cause == KEY_REUSED
    assert not claim.is_replayed


def test_the_last_holder_unlocks_a_key() -> None:
    """Requests, commits and lines that cannot be truncated end in any order."""
    unlocked: list[Key] = []
    claim = Claim(KEY, 1, unlocked.append)
    claim.add_holder()
    claim.add_holder()
    claim.release()
    claim.release()
    assert [] == unlocked
    claim.release()
    assert [KEY] == unlocked


def test_one_process_locks_a_key(tmp_path: Path) -> None:
    """Another one gets it after its release; other keys are free."""
    one, two = KeyLocks(tmp_path), KeyLocks(tmp_path)
    for locks in (one, two):
        locks.open()
    assert (True, False) == (one.lock(DIGEST), two.lock(DIGEST))
    assert two.lock(DIGEST[::-1])
    one.unlock(DIGEST)
    assert two.lock(DIGEST)
    two.close()
    assert one.lock(DIGEST)
    one.close()


def test_locks_that_cannot_be_opened_fail_as_the_disk_does(tmp_path: Path) -> None:
    """If the directory is missing, no key is locked, and releases still work."""
    (tmp_path / "data").mkdir()
    locks = KeyLocks(tmp_path / "data")
    locks.open()
    assert locks.lock(DIGEST)
    (tmp_path / "data").rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError):
        locks.open()
    with pytest.raises(OSError, match="Bad file descriptor"):
        locks.lock(DIGEST)
    locks.unlock(DIGEST)


def test_failed_close_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The descriptor may belong to another file by then."""
    locks = KeyLocks(tmp_path)
    locks.open()
    closed: list[int] = []

    def close(fd: int) -> None:
        closed.append(fd)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "close", close)
        with pytest.raises(OSError, match="Input/output error"):
            locks.close()
        locks.close()
    (fd,) = closed
    os.close(fd)
