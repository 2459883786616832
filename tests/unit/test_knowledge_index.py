"""The index: what is added is found in its collection alone, what is removed is gone, and the key opens it alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloister.errors import KnowledgeError, UsageError
from cloister.knowledge.index import Document, Index, Scored
from cloister.knowledge.passages import Passage
from cloister.knowledge.retrieval import Retrieval, fused, joined

KEY, OTHER = b"\x01" * 32, b"\x02" * 32
SIZE = 16
CANARY = "Zugzwangquark"


def document(
    name: str = "a.pdf", collection: str = "clinic", *, digest: bytes = b"d" * 32, passages: int = 1
) -> Document:
    return Document(collection, name, f"Title of {name}", digest, passages, 1_800_000_000)


def vectors(count: int, seed: int = 0) -> Any:
    found = np.random.default_rng(seed).normal(size=(count, SIZE)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


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


def put(index: Index, *texts: str, name: str = "a.pdf", collection: str = "clinic", seed: int = 0) -> Any:
    own = vectors(len(texts), seed)
    passages = [Passage(text, ("Part", "Chapter"), 2, 3) for text in texts]
    assert index.add(
        document(name, collection, digest=bytes([seed]) * 32, passages=len(texts)), passages, own
    )
    return own


def ids(found: list[Scored]) -> list[int]:
    return [one for one, _ in found]


def test_what_is_added_is_found_by_its_words_and_by_its_vector(index: Index) -> None:
    own = put(index, "Asthma is of the lungs.", "Diabetes makes thirsty.", "糖尿病的症状。")
    found = index.passages(ids(index.by_words("asthma?", ["clinic"], 5)), ["clinic"])
    assert [one.passage.text for one in found] == ["Asthma is of the lungs."]
    assert (found[0].document, found[0].title, found[0].number) == ("a.pdf", "Title of a.pdf", 1)
    assert found[0].passage == Passage("Asthma is of the lungs.", ("Part", "Chapter"), 2, 3)
    assert [
        one.number for one in index.passages(ids(index.by_words("糖尿病", ["clinic"], 5)), ["clinic"])
    ] == [3]
    for place, vector in enumerate(own):
        assert ids(index.by_vector(vector, ["clinic"], 3))[0] == place + 1


def test_words_of_another_form_and_of_headings_are_found(index: Index) -> None:
    put(index, "Symptoms are coughing.", "Nothing.")
    assert len(index.by_words("symptom cough", ["clinic"], 5)) == 1
    assert len(index.by_words("chapters", ["clinic"], 5)) == 2


def test_the_vectors_ranking_is_the_cosines(index: Index) -> None:
    own = put(index, *(f"passage {number}" for number in range(300)))
    asked = vectors(1, seed=9)[0]
    right = [int(place) + 1 for place in np.argsort(-(own @ asked), kind="stable")[:5]]
    found = index.by_vector(asked, ["clinic"], 5)
    assert ids(found) == right
    assert [score for _, score in found] == pytest.approx(
        [float(own[one - 1] @ asked) for one in right], abs=1e-5
    )


def test_nothing_of_another_collection_takes_part(index: Index) -> None:
    put(index, "Asthma here.", "Thirst here.", seed=1)
    before = index.by_words("asthma thirst here", ["clinic"], 5)
    own = put(index, *(["asthma asthma secret"] * 50), name="b.pdf", collection="board", seed=2)
    # Not its passages, and not what it does to how rare a word is.
    assert index.by_words("asthma thirst here", ["clinic"], 5) == before
    assert index.by_words("secret", ["clinic"], 5) == []
    secret = index.by_words("secret", ["board"], 5)
    assert index.passages(ids(secret), ["clinic"]) == []
    assert set(ids(index.by_vector(own[0], ["clinic"], 50))) == {1, 2}
    assert [one.name for one in index.documents(["clinic"])] == ["a.pdf"]
    assert len(index.by_words("asthma", ["clinic", "board"], 100)) == 51


@pytest.mark.parametrize("collections", [[], ["nobody's"], ["clinic' OR 1=1 --"], ["CLINIC"], ["clinic\0"]])
def test_who_may_see_nothing_finds_nothing(index: Index, collections: list[str]) -> None:
    own = put(index, "Asthma.")
    assert index.by_words("asthma", collections, 5) == []
    assert index.by_vector(own[0], collections, 5) == []
    assert index.passages([1], collections) == []
    assert index.documents(collections) == []


def test_a_document_that_is_there_is_not_added_again_and_a_new_version_takes_its_place(index: Index) -> None:
    put(index, "old words", seed=1)
    assert not index.add(document(digest=b"\x01" * 32), [Passage("old words")], vectors(1, 1))
    put(index, "new words", "and more", seed=2)
    assert index.by_words("old", ["clinic"], 5) == []
    assert len(index.by_words("words", ["clinic"], 5)) == 1
    assert [one.passages for one in index.documents(["clinic"])] == [2]
    assert index.digest("clinic", "a.pdf") == b"\x02" * 32


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


def test_a_document_is_there_as_a_whole_or_not_at_all(index: Index) -> None:
    put(index, "old words", seed=1)
    broken = [Passage("fresh parts"), Passage("half \ud800 a character")]
    with pytest.raises(UsageError, match="halves of characters"):
        index.add(document(digest=b"\x07" * 32), broken, vectors(2))
    assert len(index.by_words("old", ["clinic"], 5)) == 1
    assert index.by_words("fresh", ["clinic"], 5) == []
    assert index.digest("clinic", "a.pdf") == b"\x01" * 32


def test_vectors_are_found_as_they_come_and_go_between_questions(index: Index) -> None:
    own = put(index, *(f"passage {number}" for number in range(300)))
    assert ids(index.by_vector(own[7], ["clinic"], 1)) == [8]  # from now on its signs are in memory
    more = put(index, "another", name="b.pdf", seed=4)
    assert ids(index.by_vector(more[0], ["clinic"], 1)) == [301]
    with pytest.raises(UsageError, match="halves of characters"):
        index.add(document("c.pdf"), [Passage("half \ud800 a character")], vectors(1, 5))
    assert ids(index.by_vector(vectors(1, 5)[0], ["clinic"], 400)) == ids(
        sorted(index.by_vector(vectors(1, 5)[0], ["clinic"], 400), key=lambda one: (-one[1], one[0]))
    )
    assert index.remove("clinic", "a.pdf")
    assert ids(index.by_vector(own[7], ["clinic"], 400)) == [301]
    assert index.remove("clinic", "b.pdf")
    other = put(index, "of another collection", collection="board", seed=6)
    assert index.by_vector(other[0], ["clinic"], 5) == []
    assert ids(index.by_vector(other[0], ["board"], 5)) == [1]


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


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 1025, "a\0"])
def test_names_that_are_none_are_refused(index: Index, name: str) -> None:
    with pytest.raises(UsageError, match="a name has"):
        index.add(document(name), [], vectors(0))
    with pytest.raises(UsageError, match="a name has"):
        index.add(document("a", name), [], vectors(0))


def test_vectors_that_do_not_belong_to_the_passages_are_refused(index: Index) -> None:
    for wrong in (vectors(2), np.zeros((1, SIZE + 1), np.float32), np.full((1, SIZE), np.nan, np.float32)):
        with pytest.raises(UsageError, match="came with vectors"):
            index.add(document(), [Passage("x")], wrong)
    with pytest.raises(UsageError, match="has 16 numbers"):
        index.by_vector(np.zeros(3, np.float32), ["clinic"], 1)
    for most in (0, -1, 1001):
        with pytest.raises(UsageError, match="can be asked for"):
            index.by_vector(vectors(1)[0], ["clinic"], most)


def test_threads_share_it(index: Index) -> None:
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(5):
                own = document(f"{number}-{turn}", digest=bytes([number, turn]) * 16)
                index.add(own, [Passage(f"w{number}x{turn}")], vectors(1, number))
                assert len(index.by_words(f"w{number}x{turn}", ["clinic"], 5)) == 1
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(index.documents(["clinic"])) == 30


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


def test_a_question_is_answered_by_words_by_vectors_and_by_both(index: Index) -> None:
    own = put(index, "asthma", "diabetes", "thirst")
    retrieval = Retrieval(index, lambda texts, **_: np.stack([own[2] for _ in texts]))
    assert retrieval.ids("asthma", ["clinic"], most=3, way="words") == [1]
    assert retrieval.ids("asthma", ["clinic"], most=1, way="vectors") == [3]
    assert set(retrieval.ids("asthma", ["clinic"], most=2)) == {1, 3}
    assert [one.passage.text for one in retrieval.find("thirst", ["clinic"], most=1)] == ["thirst"]
    assert retrieval.find("thirst", ["board"], most=5) == []
