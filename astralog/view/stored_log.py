"""A log that is read from a segment."""

import msgspec


class StoredLog(msgspec.Struct):
    """One log; `metadata` is its JSON text, empty if there is none."""

    project_id: str
    timestamp: str
    level: str
    service: str
    message: str
    metadata: msgspec.Raw = msgspec.Raw()

    @property
    def metadata_text(self) -> str:
        """The metadata as it is stored."""
        return bytes(self.metadata).decode()


_decoder = msgspec.json.Decoder(StoredLog)


def decode(line: bytes) -> StoredLog | None:
    """Return the log of a stored line, None if the line is not a log."""
    try:
        return _decoder.decode(line)
    except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
        return None
