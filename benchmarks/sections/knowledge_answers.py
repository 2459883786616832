"""Questions to documents, from the question to the first token of its answer, and what of it is retrieval.

The API as `cloister serve --knowledge` has it, called in one process without the sealed channel (its own page says what that
adds): all-MiniLM-L6-v2, an encrypted index of 2,000 documents of MedQuAD in memory, and a LLaMA shape of 1.1 B in Q4_0 with
random weights on llama.cpp. The passages come with the first event; the first token comes when the model has read them. How
near questions are to what answers them is told by cosines: those of documents' own questions, and of questions about other
things, decide what "not in the documents" means (`least_nearness` of the rules).
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx2
import numpy as np
from rich.progress import track

from benchmarks.random_models import q4_0
from benchmarks.report import Result, Table, shown
from benchmarks.sections import Options, about
from benchmarks.sections.knowledge_retrieval import COLLECTION, medquad
from cloister.inference.api_keys import ApiKeys
from cloister.inference.app import create_app
from cloister.inference.engines import EngineSettings, open_engine
from cloister.inference.model_files import ModelFiles
from cloister.inference.token_count import counter_of
from cloister.knowledge import Encoder, Index, Library
from cloister.knowledge.opening import usual_encoder
from cloister.knowledge.passages import Block
from cloister.knowledge.reader import Read
from cloister.knowledge.room import knowledge_room
from cloister.knowledge.rules import Rights, Rules

DOCUMENTS: Final = 2000
ASKED: Final = 12
PASSAGES: Final = 4
KEY: Final = "the-benchmark-s-own-key"
ELSEWHERE: Final = (
    "How do I repair a bicycle chain?", "Who won the chess olympiad in 2022?", "What is the capital of Mongolia?",
    "How is sourdough bread baked?", "When does the train to Basel leave?", "Which strings suit a classical guitar?",
    "How do I change the oil of my car?", "What does the law say about notice periods of tenants?",
    "Who painted the Night Watch?", "How do I write a for loop in Rust?", "What was the score of yesterday's match?",
    "How high is Kilimanjaro?", "Which bank has the best mortgage?", "What is the plot of Hamlet?",
    "How many moons has Jupiter?", "How do I prune an apple tree?", "What is our company's travel policy?",
    "When was the Treaty of Westphalia signed?", "How does a heat pump work?", "Which visa do I need for Japan?",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Timed:
    """Seconds of one question."""

    passages: float
    first: float


def run(options: Options) -> Result:
    most = 100 if options.quick else DOCUMENTS
    records = list(medquad(most))
    encoder = Encoder.open(usual_encoder(), name="all-MiniLM-L6-v2")
    rules = Rules(
        users={"asker": hashlib.sha256(KEY.encode()).hexdigest()},
        collections={COLLECTION: Rights(readers=("asker",))},
        least_nearness=0,
    )
    with tempfile.TemporaryDirectory(prefix="knowledge-", dir="/dev/shm") as folder:
        index = Index.open(
            Path(folder) / "index", bytes(32), model=encoder.name, dimensions=encoder.dimensions
        )
        library = Library(index, encoder, read=lambda _name, content: Read("", (Block(content.decode()),)))
        began = time.perf_counter()
        for one in track(records, description="adding", transient=True):
            library.add(COLLECTION, str(one["_id"]), one["text"].encode())
        adding = time.perf_counter() - began
        near, far = nearness(library, [str(one["question"]) for one in records])
        timed = asyncio.run(answered(options, library, rules, records))
        library.close()
    return _result(len(records), adding, near, far, timed)


def nearness(library: Library, questions: Sequence[str]) -> tuple[list[float], list[float]]:
    """The largest cosine of each question's passages: questions of the documents, and others."""
    drawn = random.Random(8).sample(list(questions), min(200, len(questions)))
    found = [
        [
            max((hit.nearness for hit in library.hits([one], [COLLECTION], most=8)), default=-1.0)
            for one in asked
        ]
        for asked in (drawn, ELSEWHERE)
    ]
    return found[0], found[1]


async def answered(
    options: Options, library: Library, rules: Rules, records: Sequence[dict[str, Any]]
) -> list[Timed]:
    path = q4_0(options.models, "llama-1b")
    with ModelFiles.of_path(path) as files:
        count = counter_of(files)
        engine = open_engine("llamacpp", files, EngineSettings(context_length=4096, slots=1))
    keys = ApiKeys.of_digests(bytes.fromhex(one) for one in rules.users.values())
    app = create_app(engine, model_name="llama", api_keys=keys, room=knowledge_room(library, rules, count))
    asked = random.Random(9).sample(list(records), 3 if options.quick else ASKED)
    found = []
    headers = {"authorization": f"Bearer {KEY}"}
    async with httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app=app), base_url="http://service", headers=headers, timeout=600
    ) as client:
        for one in asked:
            found.append(await timed(client, str(one["question"])))
    engine.close()
    return found


async def timed(client: httpx2.AsyncClient, question: str) -> Timed:
    asked = {"question": question, "collections": [COLLECTION], "passages": PASSAGES}
    began = time.perf_counter()
    searched = await client.post("/v1/knowledge/search", json=asked)
    between = time.perf_counter()
    # One token is asked for, so that the answer is complete with it.
    answer = await client.post("/v1/knowledge/answer", json=asked | {"max_tokens": 1})
    assert (searched.status_code, answer.status_code) == (200, 200), answer.text[:200]
    return Timed(between - began, time.perf_counter() - between)


def _result(
    documents: int, adding: float, near: Sequence[float], far: Sequence[float], timed: Sequence[Timed]
) -> Result:
    def row(name: str, seconds: Sequence[float]) -> tuple[str, ...]:
        return name, *(shown(float(np.quantile(seconds, part)), "s") for part in (0.5, 0.95))

    quantiles = (0.05, 0.25, 0.5, 0.75, 0.95)

    def spread(name: str, cosines: Sequence[float]) -> tuple[str, ...]:
        over = sum(one >= 0.3 for one in cosines) / len(cosines)
        return name, *(f"{np.quantile(cosines, part):.2f}" for part in quantiles), f"{over:.0%}"

    first = [one.first for one in timed]
    retrieved = [one.passages for one in timed]
    return Result(
        title="Answers from documents",
        text=about(__doc__),
        tables=(
            Table(
                f"{len(timed)} questions, {PASSAGES} passages each",
                ("", "p50", "p95"),
                (
                    row("embed and retrieve", retrieved),
                    row(
                        "prompt and first token by the model",
                        [a - b for a, b in zip(first, retrieved, strict=True)],
                    ),
                    row("from the question to the first token", first),
                ),
                f"{documents} documents were added one by one in {adding:.0f} s ({documents / adding:.1f} a second).",
            ),
            Table(
                "The best passage's cosine",
                ("questions", *(f"{part:.0%}" for part in quantiles), "0.30 and over"),
                (spread("the documents' own", near), spread("about other things", far)),
                "Columns are quantiles.",
            ),
        ),
        figures={"near": list(near), "far": list(far)},
    )
