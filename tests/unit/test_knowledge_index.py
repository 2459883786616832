"""The index's file: what is removed is gone from it, the key opens it alone, and what was changed is refused.

What it finds is told by test_knowledge_stores.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import KnowledgeError, UsageError
from cloister.knowledge.index import Index
from cloister.knowledge.retrieval import fused, joined
from knowledge_parts import SIZE, ids, put, vectors

KEY, OTHER = b"\x01" * 32, b"\x02" * 32
CANARY = "Zugzwangquark"


def opened(path: Path, key: bytes = KEY, **settings: Any) -> Index:
    return Index.open(path, key, **({"model": "mini", "dimensions": SIZE} | settings))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index.db"


@pytest.fixture
def index(path: Path) -> Iterator[Index]:
    it = opened(path)
    yield it
    it.close()


def test_what_is_removed_is_gone_with_its_words_and_vectors(index: Index) -> None:
    own = put(index, f"{CANARY} was here", "another")
    put(index, "stays", name="b.pdf", seed=3)
    assert index.remove("clinic", "a.pdf")
    assert not index.remove("clinic", "a.pdf")
    assert index.by_words(CANARY, ["clinic"], 5) == []
    assert ids(index.by_vector(own[0], ["clinic"], 5)) == [3]
    with index._database.turn() as turn:
        names = [
            name for (name,) in turn.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        ]
        held = b"".join(
            field if isinstance(field, bytes) else str(field).encode()
            for name in names
            for row in turn.execute(f'SELECT * FROM "{name}"').fetchall()  # noqa: S608 -- its own tables
            for field in row
        )  # fmt: skip
    assert CANARY.lower().encode() not in held.lower()
    assert CANARY.lower()[:8].encode() not in held.lower()
    assert own[0].tobytes() not in held
    assert own[0].tobytes()[:16] not in held
    assert index.remove("clinic", "b.pdf")
    assert index.documents(["clinic"]) == []


def test_it_is_all_there_when_it_is_opened_again(path: Path) -> None:
    it = opened(path)
    own = put(it, "Asthma.", "Diabetes.")
    it.close()
    it = opened(path)
    assert len(it.by_words("diabetes", ["clinic"], 5)) == 1
    assert ids(it.by_vector(own[1], ["clinic"], 1)) == [2]
    it.close()


@pytest.mark.parametrize("settings", [{"model": "another"}, {"dimensions": SIZE * 2}])
def test_vectors_of_another_model_are_not_mixed_in(path: Path, settings: dict[str, Any]) -> None:
    opened(path).close()
    with pytest.raises(UsageError, match="was made with the"):
        opened(path, **settings)


def test_nothing_is_readable_without_the_key(path: Path) -> None:
    it = opened(path)
    own = put(it, f"{CANARY} and more")
    it.close()
    stored = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert CANARY.encode() not in stored
    assert b"SQLite format" not in stored
    assert own[0].tobytes()[:16] not in stored
    with pytest.raises(KnowledgeError, match="another key"):
        opened(path, OTHER)
    with pytest.raises(UsageError, match="32 bytes"):
        opened(path, b"short")


def read_all(path: Path) -> None:
    """Everything that is in it."""
    it = opened(path)
    try:
        for number in range(60):
            it.passages(it.by_words(f"passage {number}", ["clinic"], 60), ["clinic"])
            it.by_vector(vectors(1)[0], ["clinic"], 60)
        it.documents(["clinic"])
    finally:
        it.close()


def test_a_file_that_was_changed_anywhere_is_refused(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    it = opened(path)
    put(it, *(f"{CANARY} passage {number} of some length, so that there are pages" for number in range(60)))
    it.close()
    read_all(path)
    whole = path.read_bytes()
    for place in range(100, len(whole), len(whole) // 12):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(KnowledgeError) as refused:
            read_all(path)
        assert CANARY not in str(refused.value)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(KnowledgeError):
        read_all(path)
    assert capfd.readouterr().err == ""


# By both.


def test_what_both_ways_find_comes_first() -> None:
    words, vectors = [(1, 8.0), (2, 6.0), (3, 4.0)], [(3, 0.95), (4, 0.8)]
    assert joined([fused(words, vectors)]) == [1, 3, 2, 4]
    assert joined([fused([], vectors)]) == [3, 4]
    assert joined([fused(words, [])]) == [1, 2, 3]
    assert joined([fused([], [])]) == joined([]) == []


def test_what_one_way_does_not_have_counts_there_as_its_last_does() -> None:
    ranking = fused([(1, 8.0), (2, 2.0)], [(1, 0.9), (3, 0.5)])
    assert ranking.scores == pytest.approx({1: 0.93, 2: 0.425, 3: 0.425})
    assert ranking.rest == pytest.approx(0.425)
    # Another wording that has neither 1 nor 3 does not change their order, and what both have comes before.
    assert joined([ranking, fused([(2, 1.0)], [(2, 0.9), (4, 0.6)])]) == [1, 2, 3, 4]
