"""What a launcher measures: the events of a launch and the digest of a program."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from cloister.attester import launch
from cloister.attester.launch import launch_events, program_digest
from cloister.encoding import labelled_hash
from cloister.errors import AttesterError
from cloister.evidence.eventlog import CONFIG_EVENT, MODEL_INDEX_EVENT, PROGRAM_EVENT

PROGRAM, INDEX = bytes(32), b"\x01" * 32


@pytest.fixture
def package(tmp_path: Path) -> Path:
    root = tmp_path / "package"
    (root / "room").mkdir(parents=True)
    (root / "__init__.py").write_text("")
    (root / "room" / "door.py").write_text("open = False\n")
    (root / "room" / "model.gguf").write_bytes(bytes(3 << 20))
    return root


def test_events_name_configuration_program_and_model_index_in_this_order() -> None:
    events = launch_events(config=b"{}", program=PROGRAM, model_index=INDEX)
    assert [(event.name, event.payload) for event in events] == [
        (CONFIG_EVENT, hashlib.sha256(b"{}").digest()),
        (PROGRAM_EVENT, PROGRAM),
        (MODEL_INDEX_EVENT, INDEX),
    ]


def test_without_a_sealed_model_there_is_no_model_event() -> None:
    events = launch_events(config=b"{}", program=PROGRAM, model_index=None)
    assert [event.name for event in events] == [CONFIG_EVENT, PROGRAM_EVENT]


@pytest.mark.parametrize("size", [0, 31, 33, 48])
def test_a_digest_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(AttesterError, match="program"):
        launch_events(config=b"", program=bytes(size), model_index=None)
    with pytest.raises(AttesterError, match="model index"):
        launch_events(config=b"", program=PROGRAM, model_index=bytes(size))


def test_the_program_digest_is_the_one_the_specification_gives(package: Path) -> None:
    parts = []
    for name in sorted(["__init__.py", "room/door.py", "room/model.gguf"]):
        parts += [name.encode(), hashlib.sha256((package / name).read_bytes()).digest()]
    assert program_digest(package) == labelled_hash("cloister/program/v1", *parts)


def test_byte_code_caches_do_not_count(package: Path) -> None:
    before = program_digest(package)
    (package / "room" / "__pycache__").mkdir()
    (package / "room" / "__pycache__" / "door.pyc").write_bytes(b"anything")
    assert program_digest(package) == before


def test_where_the_package_lies_does_not_count(package: Path, tmp_path: Path) -> None:
    before = program_digest(package)
    assert program_digest(package.rename(tmp_path / "elsewhere")) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "room" / "door.py").write_text("open = True\n"),
        lambda root: (root / "room" / "door.py").rename(root / "room" / "gate.py"),
        lambda root: (root / "room" / "door.py").rename(root / "door.py"),
        lambda root: (root / "room" / "more.py").write_text(""),
        lambda root: (root / "room" / "model.gguf").write_bytes(bytes((3 << 20) + 1)),
        lambda root: (root / ".hidden").write_text(""),
    ],
    ids=["altered", "renamed", "moved", "added", "longer-data", "hidden"],
)
def test_any_other_program_has_another_digest(change: object, package: Path) -> None:
    before = program_digest(package)
    assert callable(change)
    change(package)
    assert program_digest(package) != before


@pytest.mark.parametrize("link", ["file", "directory", "dangling", "fifo"])
def test_what_leads_outside_or_is_no_file_is_refused(link: str, package: Path, tmp_path: Path) -> None:
    target = tmp_path / "outside"
    if link == "directory":
        target.mkdir()
    elif link == "file":
        target.write_text("evil = True\n")
    if link == "fifo":
        os.mkfifo(package / "pipe")
    else:
        (package / "link.py").symlink_to(target)
    with pytest.raises(AttesterError, match="cannot be measured"):
        program_digest(package)


@pytest.mark.parametrize(("bound", "value"), [("MAX_FILES", 2), ("MAX_BYTES", 1 << 20), ("MAX_DEPTH", 0)])
def test_a_program_over_a_bound_is_refused(
    bound: str, value: int, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, bound, value)
    with pytest.raises(AttesterError, match="cannot be measured"):
        program_digest(package)


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_nothing_to_measure_is_refused(name: str, tmp_path: Path) -> None:
    root = tmp_path / name
    if name == "empty":
        root.mkdir()
    with pytest.raises(AttesterError, match="cannot be measured"):
        program_digest(root)


def test_this_package_can_be_measured_where_it_is_installed() -> None:
    assert len(program_digest(Path(launch.__file__).parent.parent)) == 32
