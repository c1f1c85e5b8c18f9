"""A data directory keeps its node's name forever."""

import os
import socket
from pathlib import Path

import pytest

from astralog.forward.cursor import Cursor, NodeNameError, resolve_node, save_node
from astralog.store import forward_state

NAME = "20261123T062500.000000Z-1"


def deliver(directory: Path, node: str) -> None:
    """Leave the files of a delivery."""
    save_node(directory, node)
    note_delivery(directory, node)


def note_delivery(directory: Path, node: str) -> None:
    """Leave a cursor with a fact."""
    cursor = Cursor(directory, node, "http://host/db/logs")
    cursor.open([])
    cursor.begin(NAME)
    cursor.close()


def damage(path: Path, kind: str) -> None:
    """Damage a file as a disk fault or an operator might."""
    content = path.read_bytes()
    path.unlink()
    if kind == "torn":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "empty":
        path.touch()
    elif kind == "zeros":
        path.write_bytes(bytes(len(content)))
    elif kind == "foreign":
        path.write_text("https://nodejs.org\n")
    else:
        path.mkdir()


DAMAGES = ["torn", "empty", "zeros", "foreign", "directory"]


def test_before_the_first_delivery_the_setting_counts(tmp_path: Path) -> None:
    """Without it, the host's name; a start that delivered nothing fixes no name."""
    assert resolve_node(tmp_path, "a") == "a"
    assert resolve_node(tmp_path, "") == socket.gethostname()
    cursor = Cursor(tmp_path, "a", "http://host/db/logs")
    cursor.open([])
    cursor.close()
    assert resolve_node(tmp_path, "b") == "b"


def test_first_delivery_fixes_the_name(tmp_path: Path) -> None:
    """Later changes of the host's name have no effect."""
    deliver(tmp_path, "ä-%-node")
    assert resolve_node(tmp_path, "") == "ä-%-node"
    assert resolve_node(tmp_path, "ä-%-node") == "ä-%-node"
    assert "ä-%-node" in (tmp_path / "node").read_text()


def test_other_name_is_refused_in_one_line(tmp_path: Path) -> None:
    """The message has both names and the remedy."""
    deliver(tmp_path, "a")
    with pytest.raises(NodeNameError) as raised:
        resolve_node(tmp_path, "b")
    text = str(raised.value)
    assert "\n" not in text
    for part in ("ASTRALOG_NODE is b", "as node a", "unset ASTRALOG_NODE", "remove node and"):
        assert part in text
    for name in ("node", "forward.cursor"):
        (tmp_path / name).unlink()
    assert resolve_node(tmp_path, "b") == "b"


@pytest.mark.parametrize("kind", DAMAGES)
def test_cursor_replaces_a_damaged_name_file(tmp_path: Path, kind: str) -> None:
    """The cursor has the name as well, as long as it has facts."""
    deliver(tmp_path, "a")
    damage(tmp_path / "node", kind)
    assert resolve_node(tmp_path, "") == "a"
    assert resolve_node(tmp_path, "a") == "a"
    with pytest.raises(NodeNameError, match="as node a"):
        resolve_node(tmp_path, "b")


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("wanted", ["", "a", "b"])
def test_damaged_file_alone_is_refused(tmp_path: Path, kind: str, wanted: str) -> None:
    """The name under which the table has these segments is unknown."""
    deliver(tmp_path, "a")
    (tmp_path / "forward.cursor").unlink()
    damage(tmp_path / "node", kind)
    with pytest.raises(NodeNameError, match="node is damaged: remove it, and set ASTRALOG_NODE"):
        resolve_node(tmp_path, wanted)


def test_cursor_replaces_a_lost_name_file(tmp_path: Path) -> None:
    """As after an update from a version without that file."""
    note_delivery(tmp_path, "a")
    assert resolve_node(tmp_path, "") == "a"
    with pytest.raises(NodeNameError, match="as node a"):
        resolve_node(tmp_path, "b")


def test_file_of_another_node_is_refused(tmp_path: Path) -> None:
    """A cursor with another name shows that the file was misplaced."""
    deliver(tmp_path, "a")
    save_node(tmp_path, "b")
    for wanted in ("", "a", "b"):
        with pytest.raises(NodeNameError, match="this node is b, but forward.cursor says a"):
            resolve_node(tmp_path, wanted)


def test_name_is_durable_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is synced before it is renamed, and the directory after that."""
    calls: list[str] = []
    sync = os.fsync

    def note(fd: int) -> None:
        calls.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name)
        sync(fd)

    monkeypatch.setattr(os, "fsync", note)
    save_node(tmp_path, "a")
    assert calls == ["node.new", tmp_path.name]
    assert forward_state.read_node(tmp_path) == "a"
