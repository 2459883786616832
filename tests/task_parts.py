"""What tasks of federated training are opened with: tiny models of random weights, and a party's files."""

from __future__ import annotations

import contextlib
import io
import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from cloister.errors import UsageError
from cloister.federated.tasks import ExamplePrivacy, Opening, Settings, Spend
from cloister.federated.updates import Arrays
from cloister.inference.model_files import ModelFiles

WORDS = (
    "in",
    "the",
    "old",
    "city",
    "of",
    "new",
    "york",
    "rome",
    "he",
    "went",
    "to",
    ".",
    "good",
    "bad",
    "so",
)
MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PRIVACY = ExamplePrivacy(noise=1.0, clip=1.0, delta=1e-5, epsilon=8.0)


def save_encoder(folder: Path, *, seed: int = 1, positions: int = 64) -> Path:
    """A BERT of 20,000 weights with its tokenizer."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    from cloister.inference.pretrained import save_pretrained

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = folder.parent / f"{folder.name}.vocab.txt"
    vocabulary.write_text("\n".join([*MARKS, *WORDS, "y", "##ork"]) + "\n")
    BertTokenizerFast(str(vocabulary)).save_pretrained(folder)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=positions,
    )  # fmt: skip
    save_pretrained(BertModel(config), folder)
    return folder


def save_decoder(folder: Path, *, seed: int = 1) -> Path:
    """A LLaMA of 20,000 weights with a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from cloister.inference.pretrained import save_pretrained

    folder.mkdir(parents=True, exist_ok=True)
    names = ["<unk>", "<s>", "</s>", *WORDS]
    backend = Tokenizer(
        models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(names), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    save_pretrained(LlamaForCausalLM(config), folder)
    return folder


@contextlib.contextmanager
def opening(
    folder: Path,
    settings: Settings,
    files: Mapping[str, bytes] | None = None,
    *,
    proximal: float = 0.0,
    privacy: ExamplePrivacy | None = None,
    seed: int = 0,
    spend: Spend | None = None,
) -> Iterator[Opening]:
    """Of the model in ``folder``; ``files`` are the party's data."""
    held = files or {}

    def read(name: str) -> BinaryIO:
        if name not in held:
            raise UsageError(f"there is no {name} here")
        return io.BytesIO(held[name])

    with ModelFiles.of_path(folder) as model:
        yield Opening(model, settings, read, proximal, privacy, seed, spend)


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def texts(count: int, seed: int, words: tuple[str, ...] = WORDS) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(words, k=draw.randint(3, 9))) for _ in range(count)]


def same(one: Arrays, other: Arrays) -> bool:
    """Names, and every bit."""
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def distance(one: Arrays, other: Arrays) -> float:
    """How far they are apart, all tensors together."""
    return float(np.sqrt(sum(np.square(one[name] - other[name]).sum() for name in one)))
