"""Signed documents on a disk: whole or not at all."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from cloister.errors import ManifestError, UsageError
from cloister.manifest.signed import MAX_SIGNED, encode_signed
from cloister.manifest.storage import read_bounded, read_signed, write_signed, write_whole
from manifest_parts import manifest, signed


def test_what_is_written_is_read(tmp_path: Path) -> None:
    document = signed(manifest(), "alice")
    write_signed(tmp_path / "v1.json", document, replace=False)
    assert read_signed(tmp_path / "v1.json") == document
    assert (tmp_path / "v1.json").read_bytes() == encode_signed(document)
    assert stat.S_IMODE((tmp_path / "v1.json").stat().st_mode) == 0o644


def test_without_replace_nothing_is_overwritten_not_even_a_dangling_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").write_bytes(b"mine")
    for name in ("link", "file"):
        with pytest.raises(UsageError, match="exists"):
            write_whole(tmp_path / name, b"yours", replace=False)
    assert (tmp_path / "file").read_bytes() == b"mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_of_two_writers_one_wins(tmp_path: Path) -> None:
    won: list[int] = []
    begin = threading.Barrier(8)

    def one(number: int) -> None:
        begin.wait(10)
        try:
            write_whole(tmp_path / "it", bytes([number]), replace=False)
        except UsageError:
            return
        won.append(number)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(won) == 1
    assert (tmp_path / "it").read_bytes() == bytes(won)
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "it"
    file.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)  # what a full disk says, at the last moment
    with pytest.raises(UsageError, match="No space left"):
        write_whole(file, b"new", replace=True)
    assert file.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


def test_what_is_not_there_or_too_long_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_signed(tmp_path / "missing")
    with pytest.raises(UsageError, match="cannot be read"):
        read_signed(tmp_path)
    (tmp_path / "long").write_bytes(bytes(MAX_SIGNED + 1))
    with pytest.raises(UsageError, match="longer than"):
        read_signed(tmp_path / "long")
    (tmp_path / "short").write_bytes(b"")
    assert read_bounded(tmp_path / "short", limit=10, what="it") == b""
    with pytest.raises(ManifestError):
        read_signed(tmp_path / "short")
