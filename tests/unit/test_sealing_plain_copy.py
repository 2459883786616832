"""Copying a file system out in the clear: all or nothing, nothing outside, links only where they stay inside."""

from __future__ import annotations

import errno
import stat
from pathlib import Path
from typing import cast

import pytest

from cloister.errors import CloisterError, FormatError, TamperedFile, UsageError
from cloister.sealing.plain_copy import copy_out, read_out, walk
from cloister.sealing.posix import Files, Kind, OpenFile, Status
from sealing_samples import patterned

Node = bytes | str | dict[str, "Node"]
"""A file, a link's target, a directory."""
WHEN = 1_700_000_000_123_456_789


class _Open:
    def __init__(self, data: bytes, status: Status) -> None:
        self.status = status
        self._data = data

    def read(self, offset: int, length: int) -> bytes:
        if b"TAMPERED" in self._data[offset : offset + length]:
            raise OSError(errno.EIO, "Input/output error")
        return self._data[offset : offset + length]

    def close(self) -> None:
        pass


class Memory:
    """A file system that says whatever it was given."""

    def __init__(self, root: dict[str, Node]) -> None:
        self._root = root

    def _node(self, path: str) -> Node:
        node: Node = self._root
        for name in path.split("/") if path else ():
            node = node[name]  # type: ignore[index,assignment]
        return node

    def names(self, path: str) -> tuple[str, ...]:
        return tuple(cast("dict[str, Node]", self._node(path)))

    def status(self, path: str) -> Status:
        node = self._node(path)
        kind: Kind = "file" if isinstance(node, bytes) else "link" if isinstance(node, str) else "directory"
        mode = 0o755 if path.endswith(".sh") else 0o644
        size = 0 if kind == "directory" else len(node)
        return Status(kind, 1, mode, size, size, modified_ns=WHEN, changed_ns=WHEN)

    def open(self, path: str, *, write: bool) -> OpenFile:
        assert not write
        return cast("OpenFile", _Open(cast("bytes", self._node(path)), self.status(path)))

    def read_link(self, path: str) -> str:
        return cast("str", self._node(path))


def files(root: dict[str, Node]) -> Files:
    return cast("Files", Memory(root))


TREE: dict[str, Node] = {
    "run.sh": b"#!/bin/sh\n",
    "empty": b"",
    "logs": {},
    "checkpoints": {"1": {"weights": patterned(2_500_000)}, "latest": "1", "up": "../run.sh"},
}


def test_all_of_it_is_copied(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    out = tmp_path / "out"
    assert copy_out(files(TREE), out, progress=lambda *step: seen.append(step)) == (3, 2_500_010)
    assert seen[-1] == (2_500_010, 2_500_010)
    assert (out / "checkpoints" / "latest" / "weights").read_bytes() == patterned(2_500_000)
    assert (out / "checkpoints" / "up").read_bytes() == b"#!/bin/sh\n"
    modes = {
        path: stat.S_IMODE((out / path).lstat().st_mode)
        for path in ("run.sh", "empty", "logs", "checkpoints/1")
    }
    assert modes == {"run.sh": 0o700, "empty": 0o600, "logs": 0o700, "checkpoints/1": 0o700}
    assert (out / "empty").stat().st_mtime_ns == WHEN


def test_holes_stay_holes(tmp_path: Path) -> None:
    copy_out(files({"sparse": bytes(4 << 20) + b"x" + bytes(2 << 20)}), tmp_path / "out")
    sparse = tmp_path / "out" / "sparse"
    assert sparse.read_bytes() == bytes(4 << 20) + b"x" + bytes(2 << 20)
    assert sparse.stat().st_blocks * 512 <= 1 << 20


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "a\0b", "../../escaped"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(FormatError):
        copy_out(files({"good": b"x", "folder": {name: b"escaped"}}), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.rglob("escaped"))


@pytest.mark.parametrize(
    "target",
    ["/etc/passwd", "../../x", "../..", "", "here/../../../x", "self/../x", "a\0b", "../folder/../../../x"],
)
def test_a_link_that_leads_or_could_lead_outside_is_refused(tmp_path: Path, target: str) -> None:
    with pytest.raises(FormatError, match="the link 'folder/link' leads"):
        copy_out(files({"folder": {"link": target, "self": "."}, "x": b"1"}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    """A directory and a link of one name cannot be; a link is made when all files are there."""
    copy_out(files({"a": ".", "b": {"a": "../a"}, "c": b"1"}), tmp_path / "out")
    assert (tmp_path / "out" / "b" / "a" / "c").read_bytes() == b"1"


def test_what_does_not_authenticate_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TamperedFile, match="'bad' does not authenticate"):
        copy_out(files({"good": b"x", "bad": b"TAMPERED"}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_too_many_folders_inside_one_another_are_refused(tmp_path: Path) -> None:
    root: dict[str, Node] = {}
    node = root
    for _ in range(200):
        node["d"] = below = {}  # type: ignore[var-annotated]
        node = below
    with pytest.raises(CloisterError):
        copy_out(files(root), tmp_path / "out")


def test_a_range_of_a_file(tmp_path: Path) -> None:
    parts: list[bytes] = []
    content = patterned(2_500_000)
    assert read_out(files({"f": content}), "f", parts.append, start=5, end=2_000_000) == 1_999_995
    assert b"".join(parts) == content[5:2_000_000]
    with pytest.raises(UsageError, match="none from 2500001 on"):
        read_out(files({"f": content}), "f", parts.append, start=2_500_001)
    assert [entry.path for entry in walk(files(TREE))][:2] == ["checkpoints", "empty"]
