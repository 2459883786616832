"""A byte-level BPE tokenizer trained on the text that the project ships, so that models can be made without downloads.

Deterministic: the same text gives the same tokenizer. A vocabulary that the text cannot fill stays shorter; who makes a
model pads it. Prompts of an exact number of tokens are made of words that are one token each.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final

SPECIAL: Final = ("<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>")
_ROOT: Final = Path(__file__).resolve().parent.parent


def _texts() -> Iterator[str]:
    for folder, pattern in (("docs", "**/*.md"), ("src", "**/*.py"), ("tests", "**/*.py")):
        for path in sorted((_ROOT / folder).glob(pattern)):
            yield path.read_text("utf-8")


def tokenizer_json(folder: Path, vocabulary: int, *, special: tuple[str, ...] = SPECIAL) -> str:
    """``tokenizer.json`` for a vocabulary of that size, trained if ``folder`` does not keep one: models that are made in
    different years, and have to understand each other, get the same."""
    path = folder / f"tokenizer-{vocabulary}.json"
    if not path.exists():
        path.write_text(train(vocabulary, special=special), "utf-8")
    return path.read_text("utf-8")


def train(vocabulary: int, *, special: tuple[str, ...] = SPECIAL) -> str:
    """``tokenizer.json`` with at most ``vocabulary`` tokens, ``special`` the first of them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: PLC0415 -- to make models only

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    return str(tokenizer.to_str())


_WORDS: Final = (
    " the", " key", " model", " of", " and", " is", " a", " to", " that", " in", " file", " not", " are", " it", " by",
    " with", " for", " its", " be", " as", " one", " has", " what", " from", " which",
)  # fmt: skip
"""One token each in every tokenizer trained on English text."""


def prompt(tokens: int, seed: int) -> str:
    """About ``tokens`` tokens, another text for each ``seed``; how many they were is told by the answer's usage."""
    words = random.Random(seed)
    return "".join(words.choice(_WORDS) for _ in range(tokens)).strip()
