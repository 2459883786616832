"""A tagger as a folder: its encoder as Hugging Face has it, ``head.safetensors`` beside it, and ``tagger.json``.

Any tool that reads Hugging Face directories reads the encoder; :func:`open_tagger` reads all of it, and tags sentences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch

from cloister.encoding import Record, decode_json, encode_json
from cloister.errors import FormatError, UsageError
from cloister.federated.training.corpus import OUTSIDE, Sentence, TagSet
from cloister.federated.training.learning import Reading, predict
from cloister.federated.training.pieces import encoder_of
from cloister.federated.training.tagger import Tagger
from cloister.federated.training.weights import arrays_of, put_arrays
from cloister.federated.updates import decode_arrays, encode_arrays
from cloister.inference.model_files import ModelFiles
from cloister.inference.pretrained import (
    check_directory,
    check_length,
    copy_tokenizer,
    open_encoder,
    open_tokenizer,
    save_pretrained,
)

HEAD_NAME: Final = "head.safetensors"
TAGGER_NAME: Final = "tagger.json"
MAX_HEAD: Final = 64 << 20
MAX_TAGGER: Final = 1 << 16
_ENCODER: Final = "encoder."


class TaggerForm(Record, frozen=True, kw_only=True):
    """What of a tagger its weights do not say."""

    format: Literal["cloister/tagger/v1"] = "cloister/tagger/v1"
    kinds: tuple[str, ...]
    crf: bool
    length: int
    stride: int


@dataclass(frozen=True, slots=True)
class OpenTagger:
    """A tagger, and how it reads."""

    model: Tagger
    reading: Reading

    def tag(self, sentences: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
        """A tag in IOB2 for each word of each sentence."""
        if not all(sentences):
            raise UsageError("a sentence without words cannot be tagged")
        if not sentences:
            return ()
        read = [Sentence(tuple(words), (OUTSIDE,) * len(words)) for words in sentences]
        return predict(self.model, read, self.reading).tags


def new_tagger(model: ModelFiles, form: TaggerForm, *, seed: int) -> OpenTagger:
    """The directory's encoder under a new head, which is the same for the same seed."""
    check_directory(model)
    with model.folder() as folder:
        encoder, tokenizer = open_encoder(folder), open_tokenizer(folder)
    return _assembled(encoder, tokenizer, form, seed)


def save_tagger(tagger: Tagger, form: TaggerForm, model: ModelFiles, folder: Path) -> None:
    """Write it into ``folder``, with the tokenizer of ``model``."""
    save_pretrained(tagger.encoder, folder)
    copy_tokenizer(model, folder)
    (folder / HEAD_NAME).write_bytes(encode_arrays(arrays_of(_head(tagger).items())))
    (folder / TAGGER_NAME).write_bytes(encode_json(form))


def open_tagger(folder: Path) -> OpenTagger:
    """What :func:`save_tagger` wrote. Raises UsageError and FormatError."""
    try:
        form = decode_json(
            (folder / TAGGER_NAME).read_bytes(), TaggerForm, what=TAGGER_NAME, limit=MAX_TAGGER
        )
        head = decode_arrays((folder / HEAD_NAME).read_bytes(), what=HEAD_NAME, limit=MAX_HEAD)
    except OSError as error:
        raise UsageError(
            f"{folder} holds no tagger ({error.strerror})", todo="name a folder that the task ner wrote"
        ) from None
    found = _assembled(open_encoder(folder), open_tokenizer(folder), form, 0)
    parts = _head(found.model)
    if {name: tuple(part.shape) for name, part in parts.items()} != {
        name: one.shape for name, one in head.items()
    }:
        raise FormatError(f"{HEAD_NAME} does not fit {TAGGER_NAME}")
    put_arrays(parts, head)
    return found


def _assembled(encoder: Any, tokenizer: Any, form: TaggerForm, seed: int) -> OpenTagger:
    check_length(encoder, form.length)
    tags = TagSet(form.kinds)
    reading = Reading(*encoder_of(tokenizer), tags, length=form.length, stride=form.stride)
    # Windows that hold no word are refused now, and not at a party's first sentence.
    reading.of(Sentence(("a",), (OUTSIDE,)))
    torch.manual_seed(seed)
    return OpenTagger(Tagger(encoder, tags, crf=form.crf), reading)


def _head(tagger: Tagger) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tagger.state_dict().items() if not name.startswith(_ENCODER)}
