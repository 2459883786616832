"""Corpora in three formats: read, checked, refused with the line; divided among parties without losing a sentence."""

from __future__ import annotations

import contextlib
import io
import json
from collections import Counter
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import FormatError, UsageError
from cloister.federated.training.corpus import Columns, Sentence, TagSet, documents, read_corpus
from cloister.federated.training.partition import WAYS, partition
from shared_data import shared

TAGS = TagSet(("LOC", "PER"))
SENTENCES = (
    Sentence(("Ada", "Lovelace", "wrote", "."), ("B-PER", "I-PER", "O", "O"), "a"),
    Sentence(("#", "Rome"), ("O", "B-LOC"), "b"),
)
CONLL = b"""# newdoc id = a
Ada\tB-PER
Lovelace\tI-PER
wrote\tO
.\tO

# newdoc id = b
# text = # Rome
#\tO
Rome\tB-LOC
"""


def jsonl() -> bytes:
    lines = [{"tokens": one.words, "tags": one.tags, "document": one.document} for one in SENTENCES]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def parquet(**columns: Any) -> bytes:
    usual = {
        "tokens": [list(one.words) for one in SENTENCES],
        "tags": [list(one.tags) for one in SENTENCES],
        "document": [one.document for one in SENTENCES],
    }
    sink = io.BytesIO()
    pq.write_table(pa.table(usual | columns), sink)
    return sink.getvalue()


def read(data: bytes, kind: Any, tags: TagSet = TAGS, **settings: Any) -> tuple[Sentence, ...]:
    return read_corpus(io.BytesIO(data), kind, tags, what="file", **settings)


@pytest.mark.parametrize(("kind", "data"), [("conll", CONLL), ("jsonl", jsonl()), ("parquet", parquet())])
def test_the_same_sentences_come_out_of_every_format(kind: Any, data: bytes) -> None:
    assert read(data, kind) == SENTENCES


def test_columns_are_named_and_documents_begin_where_the_file_says() -> None:
    data = b"-DOCSTART- -X- O O\n\nAda NNP x B-PER\n\nRome NNP x B-LOC\n\n-DOCSTART- -X- O O\n\nit PRP x O\n"
    found = read(data, "conll", columns=Columns(0, 3))
    assert [one.words for one in found] == [("Ada",), ("Rome",), ("it",)]
    assert [len(group) for group in documents(found)] == [2, 1]


@pytest.mark.parametrize(
    ("kind", "data", "words"),
    [
        pytest.param("conll", b"Ada\tB-PER\nof\tI-LOC\n", "I-LOC at word 2 continues nothing", id="I behind another kind"),
        pytest.param("conll", b"Ada\tI-PER\n", "continues nothing", id="I at the beginning"),
        pytest.param("conll", b"Ada\tB-ORG\n", "none of the task's", id="a kind that the task lacks"),
        pytest.param("conll", b"Ada\tB-PER\nx\ty\tO\n", "line 2 has 3 columns, and not 2", id="another width"),
        pytest.param("conll", b"Ada\n", "columns", id="no tags"),
        pytest.param("conll", b"\xff\tO\n", "line 1 is not UTF-8", id="not UTF-8"),
        pytest.param("conll", b"\n\n", "no sentences", id="empty"),
        pytest.param("conll", b"a\tO\n" * 5000, "more than 4096 words", id="a sentence without end"),
        pytest.param("conll", b"a" * (1 << 21), "longer than", id="a line without end"),
        pytest.param("jsonl", b'{"tokens": ["a"], "tags": ["O"], "x": 1}\n', "line 1", id="an unknown field"),
        pytest.param("jsonl", b'{"tokens": ["a", "b"], "tags": ["O"]}\n', "2 words and 1 tags", id="fewer tags"),
        pytest.param("jsonl", b'{"tokens": [], "tags": []}\n', "0 words", id="no words"),
        pytest.param("jsonl", b'{"tokens": [""], "tags": ["O"]}\n', "empty", id="an empty word"),
        pytest.param("jsonl", b'{"tokens": ["a"], "tags": [3]}\n', "line 1", id="tags that are numbers"),
        pytest.param("parquet", parquet(tags=[[0], [1]]), "lists of texts", id="Parquet, tags that are numbers"),
        pytest.param("parquet", b"PAR1 not", "not a Parquet file", id="no Parquet"),
    ],
)  # fmt: skip
def test_what_is_not_as_it_should_be_is_refused_with_its_place(kind: Any, data: bytes, words: str) -> None:
    with pytest.raises(FormatError, match="file") as refusal:
        read(data, kind)
    assert words in str(refusal.value)


@given(data=st.binary(max_size=200), kind=st.sampled_from(["conll", "jsonl", "parquet"]))
def test_any_bytes_are_read_or_refused_by_our_own_error(data: bytes, kind: Any) -> None:
    with contextlib.suppress(FormatError):
        assert read(data, kind)


@pytest.mark.parametrize("kinds", [(), ("A", "A"), ("A B",), ("",), ("O|",)])
def test_kinds_of_entities_are_different_words(kinds: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        TagSet(kinds)


@pytest.mark.parametrize(
    ("name", "kinds", "columns", "sentences", "words", "entities"),
    [
        ("ncbi-disease/train.tsv", ("Disease",), Columns(0, 1), 5432, 136086, 5145),
        ("ncbi-disease/test.tsv", ("Disease",), Columns(0, 1), 940, 24497, 960),
        ("uner-zh-gsdsimp/train.iob2", ("LOC", "ORG", "PER"), Columns(1, 2), 3997, 98616, 6118),
        ("uner-zh-gsdsimp/test.iob2", ("LOC", "ORG", "PER"), Columns(1, 2), 500, 12012, 763),
    ],
)
def test_real_corpora_are_read_whole(
    name: str, kinds: tuple[str, ...], columns: Columns, sentences: int, words: int, entities: int
) -> None:
    with shared(f"data/{name}").open("rb") as file:
        found = read_corpus(file, "conll", TagSet(kinds), what=name, columns=columns)
    tags = Counter(tag[:2] for one in found for tag in one.tags)
    assert (len(found), sum(tags.values()), tags["B-"]) == (sentences, words, entities)


def corpus(count: int) -> list[Sentence]:
    return [
        Sentence((str(place),), (("O", "B-LOC", "B-PER")[place % 3],), f"document {place // 5}")
        for place in range(count)
    ]


@given(
    way=st.sampled_from(WAYS), count=st.integers(1, 80), seed=st.integers(0, 99), data=st.data(),
    concentration=st.sampled_from([0.01, 0.5, 100.0]),
)  # fmt: skip
def test_every_sentence_goes_to_one_party_and_nobody_has_none(
    way: Any, count: int, seed: int, data: st.DataObject, concentration: float
) -> None:
    parties = data.draw(st.integers(1, count))
    whole = corpus(count)
    found = partition(whole, parties, way, seed=seed, concentration=concentration)
    assert Counter(one for part in found for one in part) == Counter(whole)
    assert len(found) == parties
    assert all(found)
    assert found == partition(whole, parties, way, seed=seed, concentration=concentration)


def test_each_way_divides_as_it_says() -> None:
    whole = corpus(300)

    def sizes(way: Literal["iid", "document", "skewed", "unequal"]) -> list[int]:
        return [len(part) for part in partition(whole, 3, way, seed=1, concentration=0.2)]

    assert sizes("iid") == [100, 100, 100]
    assert sizes("unequal") == [171, 86, 43]
    by_document = partition(whole, 3, "document", seed=1)
    assert all(len({one.document for one in part}) * 5 == len(part) for part in by_document)
    shares = [
        Counter(one.tags[0] for one in part)
        for part in partition(whole, 3, "skewed", seed=1, concentration=0.2)
    ]
    held = sorted(share["B-LOC"] for share in shares)
    assert held[0] < 10
    assert held[-1] > 60


@pytest.mark.parametrize(("count", "parties"), [(2, 3), (2, 0), (5000, 2000)])
def test_a_corpus_is_not_divided_among_more_parties_than_it_has_sentences(count: int, parties: int) -> None:
    with pytest.raises(UsageError, match="not divided"):
        partition(corpus(count), parties, "iid", seed=0)
