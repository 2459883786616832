"""Both that keep documents, the index in memory and a server: what is added is found, in its collection alone."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import mesh_parts as mesh
from cloister.errors import UsageError
from cloister.knowledge.index import Index
from cloister.knowledge.passages import Passage
from cloister.knowledge.pgvector.store import PgvectorStore
from cloister.knowledge.retrieval import Retrieval
from cloister.knowledge.store import Scored, Store
from cloister.knowledge.stores import find_plugin
from knowledge_parts import SIZE, document, ids, put, texts, vectors
from pgvector import SERVER, Front, fresh, fronted, pgvector_server, place
from postgres import Postgres

KINDS = ("embedded", "pgvector")


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with pgvector_server() as running:
        yield running


@pytest.fixture(scope="module")
def front(server: Postgres) -> Iterator[Front]:
    with fronted(server, mesh.member(SERVER).server()) as one:
        yield one


def embedded(path: Path) -> Index:
    return Index.open(path / "index.db", b"\x01" * 32, model="mini", dimensions=SIZE)


def on_server(server: Postgres, front: Front) -> PgvectorStore:
    where = place(front, fresh(server), mesh.member("assistant"))
    return PgvectorStore.open(where, model="mini", dimensions=SIZE)


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "embedded":
        it: Store = embedded(tmp_path)
    else:
        it = on_server(request.getfixturevalue("server"), request.getfixturevalue("front"))
    yield it
    it.close()


def test_what_is_added_is_found_by_its_words_and_by_its_vector(store: Store) -> None:
    own = put(store, "Asthma is of the lungs.", "Diabetes makes thirsty.", "糖尿病的症状。")
    found = store.passages(ids(store.by_words("asthma?", ["clinic"], 5)), ["clinic"])
    assert [one.passage.text for one in found] == ["Asthma is of the lungs."]
    assert (found[0].document, found[0].title, found[0].number) == ("a.pdf", "Title of a.pdf", 1)
    assert found[0].passage == Passage("Asthma is of the lungs.", ("Part", "Chapter"), 2, 3)
    for question in ("糖尿病", "尿病"):
        assert texts(store, store.by_words(question, ["clinic"], 5)) == ["糖尿病的症状。"]
    assert store.by_words("病尿", ["clinic"], 5) == []
    for number, vector in enumerate(own, 1):
        nearest = store.by_vector(vector, ["clinic"], 3)
        assert [one.number for one in store.passages(ids(nearest[:1]), ["clinic"])] == [number]


def test_words_of_another_form_and_of_headings_are_found(store: Store) -> None:
    put(store, "Symptoms are coughing.", "Nothing.")
    assert len(store.by_words("symptom cough", ["clinic"], 5)) == 1
    assert len(store.by_words("chapters", ["clinic"], 5)) == 2


def test_the_vectors_ranking_is_the_cosines(store: Store) -> None:
    own = put(store, *(f"passage {number}" for number in range(300)))
    asked = vectors(1, seed=9)[0]
    right = [int(number) for number in np.argsort(-(own @ asked), kind="stable")[:5]]
    found = store.by_vector(asked, ["clinic"], 5)
    assert texts(store, found) == [f"passage {number}" for number in right]
    cosines = [float(own[number] @ asked) for number in right]
    assert [score for _, score in found] == pytest.approx(cosines, abs=1e-5)
    near = store.nearness(asked, ids(found), ["clinic"])
    assert [near[one] for one in ids(found)] == pytest.approx(cosines, abs=1e-5)
    assert store.nearness(asked, ids(found), ["board"]) == {}


def test_nothing_of_another_collection_takes_part(store: Store) -> None:
    put(store, "Asthma here.", "Thirst here.", seed=1)
    before = store.by_words("asthma thirst here", ["clinic"], 5)
    own = put(store, *(["asthma asthma secret"] * 50), name="b.pdf", collection="board", seed=2)
    # Not its passages, and not what it does to how rare a word is.
    assert store.by_words("asthma thirst here", ["clinic"], 5) == before
    assert store.by_words("secret", ["clinic"], 5) == []
    secret = store.by_words("secret", ["board"], 5)
    assert len(secret) == 5
    assert store.passages(ids(secret), ["clinic"]) == []
    assert set(ids(store.by_vector(own[0], ["clinic"], 50))) == set(ids(before))
    assert store.nearness(own[0], ids(secret), ["clinic"]) == {}
    assert [one.name for one in store.documents(["clinic"])] == ["a.pdf"]
    assert len(store.by_words("asthma", ["clinic", "board"], 100)) == 51


@pytest.mark.parametrize("collections", [[], ["nobody's"], ["clinic' OR 1=1 --"], ["CLINIC"], ["clinic\0"]])
def test_who_may_see_nothing_finds_nothing(store: Store, collections: list[str]) -> None:
    own = put(store, "Asthma.")
    (there,) = ids(store.by_words("asthma", ["clinic"], 5))
    assert store.by_words("asthma", collections, 5) == []
    assert store.by_vector(own[0], collections, 5) == []
    assert store.nearness(own[0], [there], collections) == {}
    assert store.passages([there], collections) == []
    assert store.documents(collections) == []


@pytest.mark.parametrize(
    "question", ["'; DROP TABLE facts; --", '" OR "', "NEAR(x y)", "x:y*", "", "?!", "\0", ":names"]
)
def test_a_question_is_words_and_no_operators(store: Store, question: str) -> None:
    put(store, "Asthma.")
    assert store.by_words(question, ["clinic"], 5) == []
    assert len(store.by_words(question + " asthma", ["clinic"], 5)) == 1


def test_a_document_that_is_there_is_not_added_again_and_a_new_version_takes_its_place(store: Store) -> None:
    put(store, "old words", seed=1)
    assert not store.add(document(digest=b"\x01" * 32), [Passage("old words")], vectors(1, 1))
    put(store, "new words", "and more", seed=2)
    assert store.by_words("old", ["clinic"], 5) == []
    assert len(store.by_words("words", ["clinic"], 5)) == 1
    assert [one.passages for one in store.documents(["clinic"])] == [2]
    assert store.digest("clinic", "a.pdf") == b"\x02" * 32


def test_a_document_is_there_as_a_whole_or_not_at_all(store: Store) -> None:
    put(store, "old words", seed=1)
    broken = [Passage("fresh parts"), Passage("half \ud800 a character")]
    with pytest.raises(UsageError, match="halves of characters"):
        store.add(document(digest=b"\x07" * 32), broken, vectors(2))
    assert len(store.by_words("old", ["clinic"], 5)) == 1
    assert store.by_words("fresh", ["clinic"], 5) == []
    assert store.digest("clinic", "a.pdf") == b"\x01" * 32


def test_vectors_are_found_as_they_come_and_go_between_questions(store: Store) -> None:
    own = put(store, *(f"passage {number}" for number in range(300)))
    assert texts(store, store.by_vector(own[7], ["clinic"], 1)) == ["passage 7"]
    more = put(store, "another", name="b.pdf", seed=4)
    assert texts(store, store.by_vector(more[0], ["clinic"], 1)) == ["another"]
    with pytest.raises(UsageError, match="halves of characters"):
        store.add(document("c.pdf"), [Passage("half \ud800 a character")], vectors(1, 5))
    everything = store.by_vector(vectors(1, 5)[0], ["clinic"], 250)
    assert everything == sorted(everything, key=lambda one: (-one[1], one[0]))
    assert len(everything) == 250
    assert store.remove("clinic", "a.pdf")
    assert not store.remove("clinic", "a.pdf")
    assert texts(store, store.by_vector(own[7], ["clinic"], 400)) == ["another"]
    assert store.remove("clinic", "b.pdf")
    other = put(store, "of another collection", collection="board", seed=6)
    assert store.by_vector(other[0], ["clinic"], 5) == []
    assert texts(store, store.by_vector(other[0], ["board"], 5), "board") == ["of another collection"]
    assert store.documents(["clinic"]) == []


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 1025, "a\0"])
def test_names_that_are_none_are_refused(store: Store, name: str) -> None:
    with pytest.raises(UsageError, match="a name has"):
        store.add(document(name), [], vectors(0))
    with pytest.raises(UsageError, match="a name has"):
        store.add(document("a", name), [], vectors(0))


def test_vectors_that_do_not_belong_to_the_passages_are_refused(store: Store) -> None:
    for wrong in (vectors(2), np.zeros((1, SIZE + 1), np.float32), np.full((1, SIZE), np.nan, np.float32)):
        with pytest.raises(UsageError, match="came with vectors"):
            store.add(document(), [Passage("x")], wrong)
    with pytest.raises(UsageError, match="has 16 numbers"):
        store.by_vector(np.zeros(3, np.float32), ["clinic"], 1)
    for most in (0, -1, 1001):
        with pytest.raises(UsageError, match="can be asked for"):
            store.by_vector(vectors(1)[0], ["clinic"], most)
        with pytest.raises(UsageError, match="can be asked for"):
            store.by_words("a", ["clinic"], most)


def test_threads_share_it(store: Store) -> None:
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(5):
                own = document(f"{number}-{turn}", digest=bytes([number, turn]) * 16)
                store.add(own, [Passage(f"w{number}x{turn}")], vectors(1, number))
                assert len(store.by_words(f"w{number}x{turn}", ["clinic"], 5)) == 1
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(store.documents(["clinic"])) == 30


def test_a_question_is_answered_by_words_by_vectors_and_by_both(store: Store) -> None:
    own = put(store, "asthma", "diabetes", "thirst")
    retrieval = Retrieval(store, lambda texts, **_: np.stack([own[2] for _ in texts]))

    def found(question: str, most: int, way: str = "hybrid") -> list[str]:
        return [one.passage.text for one in retrieval.find(question, ["clinic"], most=most, way=way)]  # type: ignore[arg-type]

    assert found("asthma", 3, "words") == ["asthma"]
    assert found("asthma", 1, "vectors") == ["thirst"]
    assert set(found("asthma", 2)) == {"asthma", "thirst"}
    assert found("thirst", 1) == ["thirst"]
    assert retrieval.find("thirst", ["board"], most=5) == []


AWKWARD = [
    "null",
    "NuLL",
    "NULL",
    "",
    "\\",
    '"',
    '\\"',
    "{a,b}",
    ",",
    "'; --",
    "a\\nb",
    "\t",
    "x\0y",
    "%s :name $1",
    "é" * 3000,
]


def test_texts_that_steer_a_database_are_texts(store: Store) -> None:
    passages = [Passage(f"{text} told{number}", (text or "x",)) for number, text in enumerate(AWKWARD)]
    store.add(document("awkward.md", passages=len(passages)), passages, vectors(len(passages)))
    for number, passage in enumerate(passages):
        (found,) = texts(store, store.by_words(f"told{number}", ["clinic"], 5))
        assert found.replace("\ufffd", "\0") == passage.text
    assert len(store.by_words("null", ["clinic"], 50)) == 3
    assert store.passages(ids(store.by_words("told3", ["clinic"], 5)), ["null"]) == []


def test_words_and_names_of_any_length_are_kept(store: Store) -> None:
    gene = "".join(random.Random(3).choices("acgt0123456789", k=8000))
    name = "".join(chr(random.Random(4).randrange(0x4E00, 0x9FFF)) for _ in range(1000)) + "".join(
        chr(one) for one in random.Random(5).sample(range(0x4E00, 0x9FFF), 24)
    )
    put(store, f"the gene {gene}", name=name)
    assert len(store.by_words(gene, ["clinic"], 5)) == 1
    assert store.by_words(gene[:-1], ["clinic"], 5) == []
    assert store.digest("clinic", name) is not None
    assert store.digest("clinic", "a\0b") is None
    assert store.remove("clinic", name)


def test_vectors_of_nothing_are_refused(store: Store) -> None:
    with pytest.raises(UsageError, match="nothing but zeros"):
        store.add(document(), [Passage("x")], np.zeros((1, SIZE), np.float32))
    with pytest.raises(UsageError, match="nothing but zeros"):
        store.by_vector(np.zeros(SIZE, np.float32), ["clinic"], 1)


def test_both_rank_alike(tmp_path: Path, server: Postgres, front: Front) -> None:
    chosen = random.Random(7)
    words = [
        "asthma",
        "lungs",
        "lung",
        "café",
        "naïve",
        "糖尿病",
        "症状",
        "running",
        "the",
        "x²",
        "ﬁbre",
        "COVID-19",
    ]
    words += ["ไทย", "ü"]
    stores: list[Store] = [embedded(tmp_path), on_server(server, front)]
    for number in range(20):
        lines = [
            " ".join(chosen.choices(words, k=chosen.randint(1, 30))) for _ in range(chosen.randint(1, 12))
        ]
        for store in stores:
            put(store, *lines, name=f"{number % 17}.md", seed=number)
    for _ in range(60):
        question = " ".join(chosen.choices(words, k=chosen.randint(1, 6)))
        one, other = (store.by_words(question, ["clinic"], 1000) for store in stores)
        assert len(one) == len(other), question
        # FTS5 counts words twice where there are rare and common ones (texts.py), so its scores are the double then.
        shares = [
            {
                where: score / ranked[0][1]
                for where, (_, score) in zip(places(store, ranked), ranked, strict=True)
            }
            for store, ranked in zip(stores, (one, other), strict=True)
        ]
        assert shares[0] == pytest.approx(shares[1]), question
        asked = vectors(1, chosen.randrange(1000))[0]
        near = [places(store, store.by_vector(asked, ["clinic"], 10)) for store in stores]
        assert near[0] == near[1]
    for store in stores:
        store.close()


def places(store: Store, ranked: list[Scored]) -> list[tuple[str, int]]:
    return [(one.document, one.number) for one in store.passages(ids(ranked), ["clinic"])]


def test_a_kind_of_server_that_no_package_brings_is_refused() -> None:
    assert find_plugin("pgvector") == PgvectorStore.open
    with pytest.raises(UsageError, match="no store of documents is called qdrant here"):
        find_plugin("qdrant")
