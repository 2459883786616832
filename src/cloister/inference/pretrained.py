"""Encoders, classifiers and decoders out of a Hugging Face directory that lies in memory, and their tokenizers.

Only architectures that ``transformers`` has itself are opened, from safetensors alone: no code of the directory is run, no
pickle is read, nothing is asked of a network. Weights that the directory lacks are refused, save those of a new head.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from cloister.errors import UsageError
from cloister.inference.model_files import TOKENIZER_FILES, ModelFiles
from cloister.inference.quiet import quietly

_SAFE: Final[dict[str, Any]] = {"local_files_only": True, "trust_remote_code": False}
_ERRORS: Final = (ValueError, KeyError, OSError, RuntimeError, ImportError, AttributeError, TypeError)


def check_directory(model: ModelFiles) -> None:
    """Raises UsageError for what a task cannot learn from."""
    if model.kind != "huggingface":
        raise UsageError(
            f"a task learns from a Hugging Face directory, and this is a model of the kind {model.kind}",
            todo="name config.json with .safetensors files",
        )


def open_encoder(folder: Path) -> Any:
    """A ``PreTrainedModel`` that gives ``last_hidden_state``, in float32."""
    from transformers import MODEL_MAPPING  # noqa: PLC0415 -- slow to import

    with quietly():
        config = open_config(folder)
        kind = _kind(MODEL_MAPPING, config, "encoder")
        pooling = "add_pooling_layer" in inspect.signature(kind.__init__).parameters
        more: dict[str, Any] = {"add_pooling_layer": False} if pooling else {}
        return load(kind, folder, config=config, **more)


def open_config(folder: Path) -> Any:
    """Its ``config.json``."""
    from transformers import AutoConfig  # noqa: PLC0415 -- as above

    try:
        return AutoConfig.from_pretrained(folder, **_SAFE)
    except _ERRORS as error:
        raise UsageError(
            f"transformers does not know the model's architecture ({type(error).__name__})",
            todo="the model needs code of its own, which is not run, or a newer transformers",
        ) from None


def open_classifier(folder: Path, labels: Sequence[str]) -> Any:
    """A ``PreTrainedModel`` with a head of as many labels, which is drawn where the folder has none."""
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING as KINDS  # noqa: PLC0415 -- as above

    with quietly():
        config = open_config(folder)
        kind = _kind(KINDS, config, "classifier")
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: number for number, label in enumerate(labels)}
        config.problem_type = "single_label_classification"
        inside = f"{kind.base_model_prefix}."
        # What pools for the head is part of it: many encoders come without.
        return load(
            kind, folder, config=config, new=lambda name: not name.startswith(inside) or ".pooler." in name
        )


def open_decoder(folder: Path) -> Any:
    """A ``PreTrainedModel`` with a language-model head."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING as KINDS  # noqa: PLC0415 -- as above

    with quietly():
        config = open_config(folder)
        return load(_kind(KINDS, config, "language model"), folder, config=config)


def _kind(kinds: Any, config: Any, what: str) -> Any:
    found = kinds.get(type(config), None)
    if not inspect.isclass(found):
        raise UsageError(f"the model's architecture is no {what} that transformers has")
    return found


def load(kind: Any, folder: Path, *, new: Callable[[str], bool] = lambda name: False, **settings: Any) -> Any:
    """``kind`` with the folder's weights. Those of whose names ``new`` says so may be lacking, and are drawn."""
    from safetensors import SafetensorError  # noqa: PLC0415 -- as above

    try:
        model, found = kind.from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **settings,
        )
    except (*_ERRORS, SafetensorError) as error:
        raise UsageError(
            f"transformers cannot load the model ({type(error).__name__})",
            todo="it needs weights as safetensors that fit its config.json",
        ) from None
    lacking = [name for name in found["missing_keys"] if not new(name)]
    count = len(lacking) + len(found["mismatched_keys"])
    if count:
        # transformers would make them up, and whoever loads it would have other random numbers.
        raise UsageError(f"the model's files lack {count} of its weights", todo="download it again")
    return model


def open_tokenizer(folder: Path) -> Any:
    """A fast tokenizer. Raises UsageError."""
    from transformers import AutoTokenizer  # noqa: PLC0415 -- as above

    with quietly():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, **_SAFE)
        except _ERRORS as error:
            raise UsageError(
                f"transformers cannot load the model's tokenizer ({type(error).__name__})",
                todo="the directory needs tokenizer.json",
            ) from None
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UsageError("the model's tokenizer has no tokenizer.json", todo="convert it with transformers")
    return tokenizer


def save_pretrained(model: Any, folder: Path) -> None:
    """``config.json`` and safetensors."""
    with quietly():
        model.save_pretrained(folder)


def copy_tokenizer(model: ModelFiles, folder: Path) -> None:
    """The tokenizer's files, as they came."""
    for name in TOKENIZER_FILES:
        if name in model.descriptors:
            (folder / name).write_bytes(model.read(name))


def check_length(model: Any, length: int) -> None:
    """Raises UsageError where the model has not as many positions."""
    most = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(most, int) or most < 1:
        return
    for name, module in model.named_modules():
        # RoBERTa counts positions from behind the one that stands for padding.
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            most -= module.padding_idx + 1
    if most < length:
        raise UsageError(f"the model reads {most} tokens at once, and not {length}", todo="lower the length")
