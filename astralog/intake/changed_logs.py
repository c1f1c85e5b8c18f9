"""Logs that a query's options change: default values, and fields under other names."""

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

import msgspec

from astralog.deadlines import in_runs, in_turns
from astralog.intake.columns import ALIKE_LOGS, Columns, NotAlikeError
from astralog.intake.logs import PLAIN, Loader, drop_null_metadata, store_timestamps
from astralog.intake.mapping import change_log, move_alike, move_lines
from astralog.intake.members import Members, without_line_breaks
from astralog.intake.options import Options
from astralog.intake.schema import REQUIRED, IncompleteLog, MovedLog
from astralog.intake.strict_json import check_utf8


class _IncompleteBatch(msgspec.Struct, forbid_unknown_fields=True):
    """A batch whose missing fields are filled in."""

    logs: list[IncompleteLog]


class _ObjectBatch(msgspec.Struct, forbid_unknown_fields=True):
    """A batch whose fields are moved before they are checked."""

    logs: list[Members]


class _FillingLoader(Loader):
    """Load logs whose missing fields have default values."""

    def _finish(
        self, logs: list[Any], text: bytes, options: Options, *, has_breaks: bool
    ) -> list[Any]:
        _fill_in(logs, options.defaults)
        return super()._finish(logs, text, options, has_breaks=has_breaks)


def _fill_in(logs: list[Any], defaults: Mapping[str, str]) -> None:
    """Fill in missing fields; raises ValueError for one without a default."""
    for run in in_runs(logs):
        for log in run:
            for name, value in defaults.items():
                if getattr(log, name) is None:
                    setattr(log, name, value)
    for name in REQUIRED - defaults.keys():
        if None in map(attrgetter(name), logs):
            raise ValueError(f"{name} is missing")


class _MovingLoader(Loader):
    """Load logs whose fields have other names; metadata is an object then."""

    def load_lines(self, text: bytes, options: Options) -> list[Any]:
        """Return the logs in the lines of a text; lines that are alike are decoded in part."""
        if options.moves_unknown:
            try:
                return move_lines(text, options)
            except (NotAlikeError, ValueError):
                pass
        return super().load_lines(text, options)

    def _finish(
        self, logs: list[Any], text: bytes, options: Options, *, has_breaks: bool
    ) -> list[Any]:
        check_utf8(text)
        if has_breaks:
            logs = list(map(without_line_breaks, logs))
        return _change(logs, options)


def _change(logs: list[Members], options: Options) -> list[Any]:
    """Return the structs of logs after the changes of the options; raises COMPILED_ERRORS."""
    changed: list[Any] = []
    for run in in_runs(logs, ALIKE_LOGS):
        try:
            changed += move_alike(Columns(run), options)
        except (NotAlikeError, ValueError):
            moved = [change_log(log, options) for log in in_turns(run)]
            structs = msgspec.convert(moved, list[MovedLog])
            drop_null_metadata(structs)
            changed += store_timestamps(structs)
    return changed


_FILLING = _FillingLoader(_IncompleteBatch, IncompleteLog)
_MOVING = _MovingLoader(_ObjectBatch, Members)


def find_loader(options: Options) -> Loader:
    """Return the loader for logs with these options."""
    if not options.changes_logs:
        return PLAIN
    return _MOVING if options.moves_fields else _FILLING
