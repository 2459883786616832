"""An index in a sealed tree: kept with each change, and never older than what the broker remembers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.broker.wire import TreeVersion
from cloister.errors import CloisterError, KnowledgeError, NetworkError, RolledBack, Superseded
from cloister.knowledge.index import Index
from cloister.knowledge.kept import _RUN, KeptIndex, _runs
from cloister.knowledge.passages import Passage
from cloister.knowledge.store import Document
from cloister.workload.tree_record import TreeRecord

KEY, URI = b"k" * 32, "kbs:///default/knowledge/index"
CANARY = "Zugzwangquark"


class Memory:
    """A broker's memory of trees, by its own rule: what follows names what it follows."""

    def __init__(self) -> None:
        self.newest: TreeVersion | None = None
        self.away = False

    def tree(self, uri: str) -> TreeVersion | None:
        assert uri == URI
        return self.newest

    def record_tree(self, uri: str, newest: TreeVersion, *, after: TreeVersion | None) -> None:
        if self.away:
            raise NetworkError("the broker does not answer")
        if after != self.newest:
            raise Superseded("another version was recorded")
        self.newest = newest


@contextmanager
def opened(folder: Path, memory: Memory | None, place: Path) -> Iterator[tuple[Index, KeptIndex]]:
    record = None if memory is None else TreeRecord(memory, URI)
    with KeptIndex.restored(folder, place, kek=KEY, key_uri=URI, record=record) as kept:
        index = Index.open(place, KEY, model="m", dimensions=8)
        try:
            kept.keep(index)
            yield index, kept
        finally:
            index.close()


def put(index: Index, name: str, texts: int = 1) -> None:
    vectors = np.eye(8, dtype=np.float32)[np.arange(texts) % 8]
    passages = [Passage(f"{CANARY} {name} {number}") for number in range(texts)]
    index.add(Document("clinic", name, name, os.urandom(32), texts, 1), passages, vectors)


def names(index: Index) -> list[str]:
    return [one.name for one in index.documents(["clinic"])]


def test_what_was_kept_is_there_again_and_nothing_of_it_is_readable(tmp_path: Path) -> None:
    memory, tree = Memory(), tmp_path / "tree"
    with opened(tree, memory, tmp_path / "one") as (index, kept):
        put(index, "a.md", 40)
        kept.keep(index)
        put(index, "b.md", 3)
        index.remove("clinic", "a.md")
        kept.keep(index)
        put(index, "never kept.md")
    with opened(tree, memory, tmp_path / "two") as (index, _):
        assert names(index) == ["b.md"]
        assert len(index.by_words(CANARY, ["clinic"], 10)) == 3
    held = b"".join(path.read_bytes() for path in tree.rglob("*") if path.is_file())
    assert CANARY.encode() not in held
    assert b"SQLite" not in held


def test_what_did_not_change_is_no_new_version(tmp_path: Path) -> None:
    memory = Memory()
    with opened(tmp_path / "tree", memory, tmp_path / "one") as (index, kept):
        put(index, "a.md")
        kept.keep(index)
        before = memory.newest
        kept.keep(index)
        index.by_words(CANARY, ["clinic"], 1)
        kept.keep(index)
        assert memory.newest == before


def test_an_older_copy_of_the_whole_index_is_refused(tmp_path: Path) -> None:
    memory, tree, old = Memory(), tmp_path / "tree", tmp_path / "old"
    with opened(tree, memory, tmp_path / "one") as (index, kept):
        put(index, "a.md")
        kept.keep(index)
    shutil.copytree(tree, old)
    with opened(tree, memory, tmp_path / "two") as (index, kept):
        index.remove("clinic", "a.md")
        kept.keep(index)
    shutil.rmtree(tree)
    shutil.copytree(old, tree)
    with pytest.raises(RolledBack), opened(tree, memory, tmp_path / "three"):
        pass
    with opened(tree, None, tmp_path / "four") as (index, _):
        assert names(index) == ["a.md"]  # nobody remembers: the limit that is documented


def test_an_index_that_was_taken_away_does_not_begin_anew(tmp_path: Path) -> None:
    memory, tree = Memory(), tmp_path / "tree"
    with opened(tree, memory, tmp_path / "one") as (index, kept):
        put(index, "a.md")
        kept.keep(index)
    shutil.rmtree(tree)
    with pytest.raises(RolledBack, match="the broker knows version"), opened(tree, memory, tmp_path / "two"):
        pass


def test_a_single_older_page_is_refused(tmp_path: Path) -> None:
    memory, tree = Memory(), tmp_path / "tree"
    with opened(tree, memory, tmp_path / "one") as (index, kept):
        put(index, "a.md", 30)
        kept.keep(index)
    before = {path: path.read_bytes() for path in tree.rglob("*") if path.is_file()}
    with opened(tree, memory, tmp_path / "two") as (index, kept):
        index.remove("clinic", "a.md")
        put(index, "b.md", 30)
        kept.keep(index)
    changed = [path for path, data in before.items() if path.exists() and path.read_bytes() != data]
    assert changed
    for number, path in enumerate(changed):
        now = path.read_bytes()
        path.write_bytes(before[path])
        with pytest.raises(CloisterError), opened(tree, memory, tmp_path / f"three-{number}"):
            pass
        path.write_bytes(now)


def test_a_change_that_nobody_records_is_told_and_kept_when_it_is_done_again(tmp_path: Path) -> None:
    memory, tree = Memory(), tmp_path / "tree"
    with opened(tree, memory, tmp_path / "one") as (index, kept):
        memory.away = True
        put(index, "a.md")
        with pytest.raises(KnowledgeError, match="was not kept on the disk"):
            kept.keep(index)
        before = memory.newest
        memory.away = False
        kept.keep(index)
        assert memory.newest != before
    with opened(tree, memory, tmp_path / "two") as (index, _):
        assert names(index) == ["a.md"]


def test_of_two_who_write_copies_of_one_index_the_second_is_told(tmp_path: Path) -> None:
    memory, tree, copy = Memory(), tmp_path / "tree", tmp_path / "copy"
    with opened(tree, memory, tmp_path / "one") as (index, kept):
        put(index, "a.md")
        kept.keep(index)
    shutil.copytree(tree, copy)
    with opened(tree, memory, tmp_path / "two") as (index, kept), ExitStack() as second:
        other, theirs = second.enter_context(opened(copy, memory, tmp_path / "three"))
        put(index, "b.md")
        kept.keep(index)
        put(other, "c.md")
        with pytest.raises(KnowledgeError, match="was not kept"):
            theirs.keep(other)
        with suppress(CloisterError):  # it tries once more as it closes
            second.close()
        assert names(index) == ["a.md", "b.md"]


@given(st.sets(st.integers(0, 2000)))
def test_runs_are_neighbours_and_all_of_them(numbers: set[int]) -> None:
    ordered = sorted(numbers)
    runs = list(_runs(ordered))
    assert [number for first, count in runs for number in range(first, first + count)] == ordered
    assert all(1 <= count <= _RUN for _, count in runs)
