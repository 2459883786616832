"""The byte-level BPE tokenizer, the chat format, and the packing of conversations into rows."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

# ChatML. System messages are rendered, and training shows the model various ones, which it learns to disregard.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab: int) -> Tokenizer:
    """Byte-level BPE with GPT-2's splitting rule, which GGUF engines know under the name `gpt-2`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[PAD, START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    tokenizer: Tokenizer = Tokenizer.from_file(str(path))
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    partial = path.with_suffix(".partial")
    tokenizer.save(str(partial))
    partial.replace(path)


Row = tuple[list[int], list[int]]


class ChatEncoder:
    """Encodes turns as the chat template renders them, with a weight per token: 1 where the model must learn it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.pad, start, self.end = (self._id(token) for token in (PAD, START, END))
        self.newline = tokenizer.encode("\n").ids
        self.system = [start, *tokenizer.encode("system\n").ids]
        self.user = [start, *tokenizer.encode("user\n").ids]
        self.assistant = [start, *tokenizer.encode("assistant\n").ids]

    def _id(self, token: str) -> int:
        number = self.tokenizer.token_to_id(token)
        assert number is not None, token
        return number

    def prompt(self, question: str) -> list[int]:
        return [*self.user, *self.tokenizer.encode(question).ids, self.end, *self.newline, *self.assistant]

    def encode(self, turns: list[tuple[str, str]], system: str = "") -> tuple[list[int], list[int]]:
        ids: list[int] = []
        if system:
            ids += [*self.system, *self.tokenizer.encode(system).ids, self.end, *self.newline]
        weights = [0] * len(ids)
        for question, answer in turns:
            prompt = self.prompt(question)
            reply = [*self.tokenizer.encode(answer).ids, self.end]
            ids += prompt + reply + self.newline
            weights += [0] * len(prompt) + [1] * len(reply) + [0] * len(self.newline)
        return ids, weights


def pack(samples: list[Row], length: int, pad: int, lookahead: int = 64) -> list[Row]:
    """Put whole conversations into rows of `length` tokens, filling each row from the next few that still fit."""
    rows: list[Row] = []
    queue = [s for s in samples if len(s[0]) <= length]
    queue.reverse()
    while queue:
        ids: list[int] = []
        weights: list[int] = []
        window = [queue.pop() for _ in range(min(lookahead, len(queue)))]
        rest: list[Row] = []
        for sample in window:
            if len(ids) + len(sample[0]) <= length:
                ids += sample[0]
                weights += sample[1]
            else:
                rest.append(sample)
        queue.extend(reversed(rest))
        fill = length - len(ids)
        rows.append((ids + [pad] * fill, weights + [0] * fill))
    return rows
