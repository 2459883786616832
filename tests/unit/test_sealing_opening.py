"""``cloister.sealing.open``: paths and URLs, bytes and text; and nothing heavy before it is used."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

import cloister.sealing
from cloister.errors import UsageError
from cloister.sealing import access as registry
from cloister.sealing.access import Access
from cloister.sealing.index import open_index
from sealing_samples import OWNER, STRANGER, URI, Keys, sealed_folder


@pytest.fixture
def access() -> Iterator[Access]:
    registry.forget()
    yield Access(keys=Keys(), signers=frozenset([OWNER.public_key]), signing_key=STRANGER, output_key=URI)
    registry.forget()
    MemoryFileSystem.store.clear()


def test_text_and_bytes_come_back(access: Access, tmp_path: Path) -> None:
    path = tmp_path / "notes.sealed/a.txt"
    with cloister.sealing.open(path, "w", access=access) as text:
        text.write("Größe\nzwei\n")
    with cloister.sealing.open(path, access=access) as data:
        assert data.read() == "Größe\nzwei\n".encode()
    with cloister.sealing.open(str(path), "r", access=access) as text:
        assert list(text) == ["Größe\n", "zwei\n"]
    with cloister.sealing.open(path, "w", access=access, encoding="latin-1", newline="\r\n") as text:
        text.write("Größe\n")
    with cloister.sealing.open(path, "rb", access=access) as data:
        assert data.read() == "Größe\r\n".encode("latin-1")
    assert open_index(tmp_path / "notes.sealed", signers=[STRANGER.public_key]).version == 2


@pytest.mark.parametrize(
    "form", ["{path}", "sealed://{path}", "file://{path}", "sealed::file://{path}", "sealed://file://{path}"]
)
def test_a_path_may_be_written_in_every_form(access: Access, tmp_path: Path, form: str) -> None:
    folder, _ = sealed_folder(tmp_path, {"a.txt": b"alpha"})
    registry.register(access)
    with cloister.sealing.open(form.format(path=folder / "a.txt")) as file:
        assert file.read() == b"alpha"


def test_a_relative_path_starts_where_the_process_is(
    access: Access, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = sealed_folder(tmp_path, {"sub/a.txt": b"alpha"})
    monkeypatch.chdir(folder / "..")
    with cloister.sealing.open(f"{folder.name}/sub/a.txt", access=access) as file:
        assert file.read() == b"alpha"


@pytest.mark.parametrize(
    "url", ["memory://x.sealed/a", "sealed://memory://x.sealed/a", "sealed::memory://x.sealed/a"]
)
def test_other_filesystems_are_named_by_their_url(access: Access, url: str) -> None:
    with cloister.sealing.open(url, "wb", access=access) as file:
        file.write(b"alpha")
    with cloister.sealing.open("memory://x.sealed/a", access=access, verify="segments") as file:
        assert file.read() == b"alpha"


def test_an_access_that_is_made_later_is_made_once(access: Access, tmp_path: Path) -> None:
    folder, _ = sealed_folder(tmp_path, {"a.txt": b"alpha"})
    made: list[Access] = []

    def provide() -> Access:
        made.append(access)
        return access

    registry.register_later(provide)
    assert not made
    for _ in range(2):
        with cloister.sealing.open(folder / "a.txt") as file:
            assert file.read() == b"alpha"
    assert len(made) == 1


def test_without_access_nothing_opens(tmp_path: Path) -> None:
    registry.forget()
    folder, _ = sealed_folder(tmp_path, {"a.txt": b"alpha"})
    with pytest.raises(UsageError, match="has no access to sealed files"):
        cloister.sealing.open(folder / "a.txt")


@pytest.mark.parametrize(
    ("mode", "options", "says"),
    [
        pytest.param("ab", {}, "cloister mount", id="append"),
        pytest.param("r+", {}, "cloister mount", id="change in place"),
        pytest.param("rb", {"encoding": "utf-8"}, "has no encoding", id="bytes with an encoding"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    access: Access, tmp_path: Path, mode: Any, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        cloister.sealing.open(tmp_path / "x.sealed/a", mode, access=access, **options)


def test_importing_the_room_imports_neither_fsspec_nor_anything_heavy() -> None:
    script = """
import sys, cloister.sealing, cloister.sealing.access
heavy = {"fsspec", "pyarrow", "pandas", "torch", "wrapt", "numpy"} & set(sys.modules)
assert not heavy, heavy
assert callable(cloister.sealing.open)
assert "pyarrow" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=dict(os.environ), check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_room_has_no_other_names_to_offer() -> None:
    with pytest.raises(AttributeError, match="close"):
        _ = cloister.sealing.close  # type: ignore[attr-defined]
