"""What only a start makes, where it is missing: the data directory and its token."""

import contextlib
import os
import secrets
from pathlib import Path

from astralog.auth import TOKEN_FILE_NAME
from astralog.settings import InvalidSettings, Settings
from astralog.store.files import make_directory, sync_directory


def make_missing(settings: Settings) -> None:
    """Make the data directory and the first token, where they are missing.

    Raises InvalidSettings where the directory cannot be made or written.
    """
    try:
        make_directory(settings.data_dir)
        if not os.access(settings.data_dir, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError("not readable and writable")
        if not (settings.tokens or settings.tokens_file):
            make_token_file(settings.data_dir)
    except OSError as error:
        reason = error.strerror or error
        if isinstance(error, FileExistsError):
            reason = "It exists, and is no directory"
        raise InvalidSettings([f"ASTRALOG_DATA_DIR: {settings.data_dir}: {reason}."]) from None


def make_token_file(data_dir: Path) -> Path:
    """Return the path of the data directory's token, after making a random one at first start.

    Several processes may do so at once: the first one's token is everyone's.
    """
    path = data_dir / TOKEN_FILE_NAME
    if not path.exists():
        draft = data_dir / f".{TOKEN_FILE_NAME}-{os.getpid()}"
        try:
            fd = os.open(draft, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
            with open(fd, "w") as file:
                file.write(secrets.token_urlsafe(32) + "\n")
                file.flush()
                os.fsync(fd)
            with contextlib.suppress(FileExistsError):
                os.link(draft, path)
        finally:
            draft.unlink(missing_ok=True)
        sync_directory(data_dir)
    return path
