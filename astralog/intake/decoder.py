"""What a protocol's decoder is given, and what it returns."""

from collections.abc import Collection
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from astralog.errors import SHOWN_CHARACTERS, Rejection
from astralog.intake.body import Reservation, Unbounded
from astralog.intake.invalid_logs import InvalidLogs
from astralog.intake.lanes import Lanes
from astralog.intake.options import Options
from astralog.store.commit_queue import Batch


class Context(NamedTuple):
    """What a decoder must know of a request beside its body.

    `projects` are those that the token may write, None for all. `reservation` holds the body; a
    decoder that holds more than that over a pause has it reserved, as `LineWriter` does.
    """

    projects: Collection[str] | None
    options: Options
    lanes: Lanes
    deadline: float
    reservation: Reservation = Unbounded()

    def fast_turn(self, size: int) -> AbstractContextManager[None]:
        """Return the context for decoding `size` bytes at a stretch, in at most 100 ms.

        Raises Rejection `queue_full` where others take too long.
        """
        return self.lanes.fast.turn(size, self.deadline)

    def slow_turn(self, size: int) -> AbstractContextManager[None]:
        """Return the context for decoding `size` bytes with pauses in which others are served.

        What holds more objects than a fast turn over a pause does so within it. Raises Rejection
        `queue_full` where others take too long.
        """
        return self.lanes.slow.turn(size, self.deadline)

    def check_project(self, name: str, logs: int) -> None:
        """Raise Rejection `forbidden_project`, for `logs` logs, unless the token may write it."""
        if self.projects is not None and name not in self.projects:
            shown = name[:SHOWN_CHARACTERS]
            message = f"The token may not write the project {shown!r}; nothing was stored"
            raise Rejection("forbidden_project", message, logs=logs)


class Decoded(NamedTuple):
    """The valid logs of a body, encoded; and with `partial=true` the invalid ones, if any."""

    batch: Batch
    invalid: InvalidLogs | None = None


class Decoder(Protocol):
    """Turns the body of a request into the lines that are stored."""

    def __call__(self, body: bytes, context: Context, /) -> Decoded:
        """Return the batch in a body.

        Raises Rejection: `invalid_json`, `invalid_batch`, `forbidden_project`, `queue_full`, or
        `body_too_large` for what is too dear to decode.
        """
