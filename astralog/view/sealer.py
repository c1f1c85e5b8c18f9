"""Encrypt texts that a client returns, so that it cannot read or change them."""

import hashlib
import hmac
import os
import zlib
from base64 import urlsafe_b64decode, urlsafe_b64encode

TAG_BYTES = 16

#: Random bytes added to a text, since a repeated text would reveal that nothing has changed.
NONCE_BYTES = 8

#: The length of a hidden text is padded to a multiple of this number of bytes.
BLOCK_BYTES = 512


class Sealer:
    """Encrypts and authenticates texts with a secret that all workers share.

    The tag is a keyed digest of the text, and the text is masked with a stream that is made of the
    tag (a synthetic initialization vector, as RFC 5297 has it). Equal texts are sealed alike.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def seal(self, text: str) -> str:
        """Return the text sealed; the length of the text is not hidden."""
        return self._seal(text.encode())

    def seal_hidden(self, text: str) -> str:
        """Return the text sealed; its length and its repetitions are hidden."""
        packed = zlib.compress(text.encode())
        data = os.urandom(NONCE_BYTES) + len(packed).to_bytes(4, "big") + packed
        return self._seal(data.ljust(-(-len(data) // BLOCK_BYTES) * BLOCK_BYTES, b"\0"))

    def open(self, sealed: str) -> str:
        """Return the text that `seal` sealed; raises ValueError for anything else."""
        return self._open(sealed).decode()

    def open_hidden(self, sealed: str) -> str:
        """Return the text that `seal_hidden` sealed; raises ValueError for anything else."""
        data = self._open(sealed)[NONCE_BYTES:]
        end = 4 + int.from_bytes(data[:4], "big")
        try:
            return zlib.decompress(data[4:end]).decode()
        except zlib.error:  # an authentic text of the other kind
            raise ValueError("not a sealed text") from None

    def _seal(self, data: bytes) -> str:
        tag = self._tag(data)
        return urlsafe_b64encode(tag + self._mask(tag, data)).rstrip(b"=").decode()

    def _open(self, sealed: str) -> bytes:
        content = urlsafe_b64decode(sealed.encode("ascii") + b"==")
        tag, masked = content[:TAG_BYTES], content[TAG_BYTES:]
        data = self._mask(tag, masked)
        if not hmac.compare_digest(tag, self._tag(data)):
            raise ValueError("not a sealed text")
        return data

    def _tag(self, data: bytes) -> bytes:
        return hashlib.blake2b(data, digest_size=TAG_BYTES, key=self._secret).digest()

    def _mask(self, tag: bytes, data: bytes) -> bytes:
        stream = hashlib.shake_256(b"stream" + self._secret + tag).digest(len(data))
        mixed = int.from_bytes(data, "big") ^ int.from_bytes(stream, "big")
        return mixed.to_bytes(len(data), "big")
