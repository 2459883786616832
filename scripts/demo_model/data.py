"""From MedQuAD records to weighted question/answer pairs and training rows.

Everything here is a pure function of the corpus and a seed: the same seed gives the same pairs, the same held-out
split and the same rows in the same order, which is what makes training resumable from a row number alone.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .questions import FOLLOW_UPS, QUESTIONS, SMALL_TALK, SYSTEM
from .text import clean_answer, count_words, proper_words, shorten
from .topics import ALIASES, COMMON, RENAME

MAX_WORDS, FOCUS_WORDS = 70, 55  # the length of answers in the two phases of training
HELD_OUT = 0.03

# Which collection's answer represents a question that several collections answer: plain-language ones first.
_RANK_INFO = [
    "MPlusHealthTopics",
    "NHLBI",
    "NIDDK",
    "NINDS",
    "CDC",
    "NIHSeniorHealth",
    "CancerGov",
    "GHR",
    "GARD",
]
_RANK_REST = [
    "NHLBI",
    "NIDDK",
    "CDC",
    "NIHSeniorHealth",
    "NINDS",
    "MPlusHealthTopics",
    "CancerGov",
    "GARD",
    "GHR",
]

# How often a pair is shown in one pass over the data. Rare diseases have boilerplate answers and are asked for least.
_SOURCE_WEIGHT = {"GARD": 0.12, "GHR": 0.12, "NINDS": 0.6, "CancerGov": 0.6, "NIHSeniorHealth": 0.8}
_TYPE_WEIGHT = {
    "inheritance": 0.1,
    "frequency": 0.15,
    "genetic changes": 0.15,
    "research": 0.3,
    "stages": 0.5,
}
_FOCUS_WEIGHT = {"GARD": 0.05, "GHR": 0.05, "NINDS": 0.1, "CancerGov": 0.1}  # 0.3 for the others
COMMON_WEIGHT = 4.0
SMALL_TALK_SHARE = 8  # conversations per group of small talk in one pass

_DERIVED = {  # question types recovered from the sentences of a general health-topic summary
    "symptoms": re.compile(
        r"^(?!.*(?:treat|medicine|prevent)).*(?:\bsymptoms? (?:include|are|of|may|can|vary|usually|often)"
        r"|\bsigns\b|\byou (?:may|might) (?:have|feel|notice))",
        re.IGNORECASE | re.DOTALL,
    ),
    "treatment": re.compile(
        r"\btreat(?:ments?|ed|ing|s)?\b|\bmedicines?\b|\bsurgery\b|\bcure\b", re.IGNORECASE
    ),
    "causes": re.compile(r"\bcause[sd]?\b|\bcaused by\b", re.IGNORECASE),
    "prevention": re.compile(r"\bprevent(?:ed|ing|ion)?\b|\blower your risk\b|\bavoid\b", re.IGNORECASE),
    "susceptibility": re.compile(r"\brisk\b|\bmore likely\b|\bmore common\b", re.IGNORECASE),
    "exams and tests": re.compile(r"\btests?\b|\bdiagnos\w+\b", re.IGNORECASE),
}
_ANAPHORA = re.compile(
    r"(?:For example|Now|Those|However|This|These|They|But|In this|It|Its|Other|Also|Then|Both|Some of|Another|Such)\b"
)


@dataclass(frozen=True)
class Pair:
    """One question (a condition and a question type) with its answer."""

    name: str
    qtype: str
    answer: str
    brief: str
    source: str
    weight: float

    @property
    def focus(self) -> float:
        """The weight in the second phase of training, which is spent on what visitors ask for most."""
        if self.name in COMMON:
            return 2.0 if self.qtype in ("information", "symptoms", "treatment", "causes") else 1.0
        if self.source == "MPlusHealthTopics" and self.qtype == "information":
            return 1.0
        return _FOCUS_WEIGHT.get(self.source, 0.3) * self.weight

    @property
    def key(self) -> str:
        return f"{self.name.lower()}|{self.qtype}"


def corpus_path() -> Path:
    """Where MedQuAD lies: under CLOISTER_SHARED, by default a folder `shared` beside the repository."""
    shared = Path(os.environ.get("CLOISTER_SHARED", str(Path(__file__).resolve().parents[3] / "shared")))
    return shared / "data" / "medquad" / "corpus.jsonl.gz"


def read_corpus(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        raise SystemExit(
            f"MedQuAD corpus not found at {path}: set CLOISTER_SHARED to the folder that holds data/medquad"
        )
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def name_of(title: str, proper: set[str]) -> str:
    """The condition's name as one writes it inside a sentence ("What I need to know about Gas" -> "gas")."""
    title = re.sub(r"\s+", " ", title).strip()
    title = RENAME.get(title.lower(), title)
    title = re.sub(r"^(?:What I need to know about|Parasites -|Causes of|Overview of) ?", "", title)
    title = re.sub(r" and How Its Treated$", "", title)
    title = re.sub(r"\s*\((?:also known as )?[^)]*\)$", "", title)
    title = re.sub(r"^([^:]{4,}):.*$", r"\1", title)

    def lower(match: re.Match[str]) -> str:
        word = match.group(0)
        plain = word.removesuffix("'s")
        keep = sum(c.isupper() for c in plain) != 1 or plain in proper or len(word) == 1 or plain != word
        return word if keep else word[0].lower() + word[1:]

    return re.sub(r"[A-Za-z][A-Za-z0-9.']*", lower, title).strip(" ?.")


def _held_out(key: str, seed: int) -> bool:
    if key.split("|", maxsplit=1)[0] in COMMON:
        return False
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32 < HELD_OUT


def build_pairs(records: list[dict[str, str]], seed: int) -> tuple[list[Pair], list[Pair]]:
    """Clean the corpus, keep one answer per question, and split it into training and held-out pairs."""
    texts = [r["text"] for r in records]
    counts, proper = count_words(texts), proper_words(texts)
    best: dict[str, tuple[int, Pair]] = {}
    summaries: list[tuple[str, list[str], bool]] = []
    for record in records:
        qtype, source = record["qtype"], record["source"]
        name = name_of(record["title"], proper)
        if (
            not name
            or qtype == "support groups"
            or (source == "GHR" and qtype == "treatment")
            or len(name.split()) > 9
        ):
            continue
        sentences = clean_answer(record["text"], counts)
        answer = shorten(sentences, MAX_WORDS)
        if len(answer.split()) < 9 or len(answer.split()) > MAX_WORDS * 1.5:
            continue
        order = _RANK_INFO if qtype == "information" else _RANK_REST
        rank = order.index(source) * 10
        head = name.lower().split()[0].rstrip("s")
        if head not in answer.lower():
            rank += 5  # an answer that never names its subject is usually a fragment of a longer page
        weight = _SOURCE_WEIGHT.get(source, 1.0) * _TYPE_WEIGHT.get(qtype, 1.0)
        weight = max(weight, COMMON_WEIGHT) if name in COMMON else weight
        pair = Pair(name, qtype, answer, shorten(sentences, FOCUS_WORDS) or answer, source, weight)
        if pair.key not in best or rank < best[pair.key][0]:
            best[pair.key] = (rank, pair)
        if source == "MPlusHealthTopics":
            summaries.append((name, sentences, _held_out(pair.key, seed)))
    for name, sentences, held in summaries:
        for qtype, pattern in _DERIVED.items():
            key = f"{name.lower()}|{qtype}"
            picked = [s for s in sentences if pattern.search(s)]
            while picked and _ANAPHORA.match(picked[0]):
                picked.pop(0)
            answer = shorten(picked, MAX_WORDS)
            if held or key in best or len(answer.split()) < 12:
                continue
            weight = 2.0 if name in COMMON else 0.5
            best[key] = (
                0,
                Pair(
                    name, qtype, answer, shorten(picked, FOCUS_WORDS) or answer, "MPlusHealthTopics", weight
                ),
            )
    pairs = [p for _, p in best.values()]
    train = [p for p in pairs if not _held_out(p.key, seed)]
    return train, [p for p in pairs if _held_out(p.key, seed)]


def ask(pair: Pair, rng: random.Random | None, follow_up: bool = False) -> str:
    """Phrase the pair's question: the canonical form without `rng`, else one of the many ways a person might put it."""
    forms = QUESTIONS[pair.qtype]
    if rng is None:
        return forms[0].format(n=pair.name)
    if follow_up and pair.qtype in FOLLOW_UPS:
        return rng.choice(FOLLOW_UPS[pair.qtype])
    name = rng.choice(ALIASES.get(pair.name, [pair.name]))
    draw = rng.random()
    if draw < 0.15:
        name = name.title().replace("'S", "'s")
    form = forms[0] if rng.random() < 0.4 else rng.choice(forms)
    if form.startswith("What is ") and re.search(r"[^s]s$", name) and rng.random() < 0.5:
        form = form.replace("What is ", "What are ", 1)
    question = form.format(n=name)
    question = question[0].upper() + question[1:]
    if rng.random() < 0.2:
        question = question.lower()
    if rng.random() < 0.15:
        question = question.rstrip("?.")
    return question


Turn = tuple[str, str]


def system_message(pairs: list[Pair], rng: random.Random) -> str:
    """Usually nothing; else an instruction, sometimes with a passage as a retrieval program would add it."""
    draw = rng.random()
    if draw < 0.85:
        return ""
    message = rng.choice(SYSTEM)
    if draw < 0.90:
        message += "\n\n" + rng.choice(pairs).answer
    return message


def conversations(
    pairs: list[Pair], seed: int, deck: int, focus: bool = False
) -> Iterator[tuple[list[Turn], str]]:
    """One shuffled pass over the data: mostly single questions, some with a follow-up or a system message."""
    rng = random.Random(f"{seed}/{deck}")
    topics: dict[str, list[Pair]] = defaultdict(list)
    chosen: list[Pair | None] = [None] * (SMALL_TALK_SHARE * len(SMALL_TALK))
    for pair in pairs:
        topics[pair.name].append(pair)
        weight = pair.focus if focus else pair.weight
        chosen += [pair] * (int(weight) + (rng.random() < weight % 1))
    rng.shuffle(chosen)
    for pair_or_none in chosen:
        if pair_or_none is None:
            questions, answer = rng.choice(SMALL_TALK)
            question = rng.choice(questions)
            yield [(question.lower() if rng.random() < 0.3 else question, answer)], system_message(pairs, rng)
            continue
        pair = pair_or_none
        turns = [(ask(pair, rng), pair.brief if focus else pair.answer)]
        others = [p for p in topics[pair.name] if p.qtype != pair.qtype and p.qtype in FOLLOW_UPS]
        if others and rng.random() < 0.12:
            other = rng.choice(others)
            turns.append((ask(other, rng, follow_up=True), other.brief if focus else other.answer))
        yield turns, system_message(pairs, rng)
