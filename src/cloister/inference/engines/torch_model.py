"""A Hugging Face model in memory, ready to compute packed rows: loaded without code of its own, pickles or a network.

What ``config.json`` names must be an architecture that ``transformers`` itself has, with an attention that can be given
to it (torch_attention.py). That it is computed right is not believed but tried when it is opened: a few tokens, read in
pieces by two rows, must give the logits that ``transformers`` computes for them by itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from cloister.errors import InferenceError, UsageError
from cloister.inference.engines import Precision
from cloister.inference.engines.torch_attention import NAME, KvMemory, Segment, computing, register
from cloister.inference.engines.torch_layers import lean_layers, put
from cloister.inference.lowbit.layer import one_kernel
from cloister.inference.model_files import ModelFiles
from cloister.inference.quiet import quietly

if TYPE_CHECKING:
    from pathlib import Path

    from cloister.inference.lora import LoraAdapter, Pair

TRIED: Final = 24
"""Tokens of the trial at opening."""
AGREEMENT: Final = 0.99
"""Cosine of the logits: below it the architecture does something that the attention here does not. bf16 and layers that
round their inputs to 8 bits leave 0.999."""
NO_WORSE: Final = 2.0
"""Times the error of the model's own layers that lean layers may have."""
_ROUNDING: Final = 1e-5
_LAYERS: Final = frozenset({"full_attention", "sliding_attention"})
_TYPES: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class TorchModel:
    """A decoder of ``transformers`` and what it was read with."""

    model: Any
    """``PreTrainedModel`` with a language-model head, in evaluation."""
    tokenizer: Any
    """``PreTrainedTokenizerFast``"""
    vocabulary: int
    """Logits of one token."""
    trained_context: int | None
    width: int
    """Numbers in a hidden state."""
    ends: frozenset[int]
    """Tokens that end an answer."""

    def logits(
        self, memory: KvMemory, segments: Sequence[Segment], tokens: Sequence[int], wanted: Sequence[int]
    ) -> torch.Tensor:
        """(wanted, vocabulary) float32: logits after those of the packed ``tokens`` whose places are ``wanted``."""
        with torch.inference_mode(), computing(memory, segments):
            found = self.model(
                **_packed(segments, tokens),
                use_cache=False,
                logits_to_keep=torch.tensor(wanted, dtype=torch.long),
            )
            logits: torch.Tensor = found.logits[0].float()
            return logits

    def read(self, memory: KvMemory, segments: Sequence[Segment], tokens: Sequence[int]) -> torch.Tensor:
        """(tokens, width) the last hidden state of the packed ``tokens``; their keys are kept in ``memory``."""
        with torch.inference_mode(), computing(memory, segments):
            found = self.model.base_model(**_packed(segments, tokens), use_cache=False)
            hidden: torch.Tensor = found.last_hidden_state[0]
            return hidden


def load(files: ModelFiles, *, precision: Precision | None, adapter: LoraAdapter | None) -> TorchModel:
    """The model of ``files``, everything in memory. Raises UsageError (not one that is computed here) and InferenceError."""
    with files.folder() as folder, quietly():
        config = _configuration(folder)
        model = _weights(folder, config, precision, adapter)
        _check_architecture(model)
        tokenizer = _tokenizer(folder)
    model.eval()
    text = config.get_text_config()
    return TorchModel(
        model=model,
        tokenizer=tokenizer,
        vocabulary=text.vocab_size,
        trained_context=getattr(text, "max_position_embeddings", None),
        width=text.hidden_size,
        ends=_ends(model, tokenizer),
    )


def prove(opened: TorchModel) -> None:
    """Compare with ``transformers``' own attention, and leave ours in place. Raises UsageError where they differ."""
    # Kernels differ by more than attentions do, on weights that are not trained.
    with one_kernel(opened.model):
        tokens = _trial(opened)
        with torch.inference_mode():
            expected = opened.model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].float()
        register()
        opened.model.set_attn_implementation(NAME)
        error = _error(opened, tokens, expected)
        if not error <= 1 - AGREEMENT:
            raise _not_computed(opened.model, "its answers differ from those of transformers")
        theirs = put(opened.model, lean_layers(opened.model))
        try:
            as_good = _error(opened, tokens, expected) <= NO_WORSE * error + _ROUNDING
        except UsageError:
            as_good = False
        if not as_good:
            put(opened.model, theirs)


def _trial(opened: TorchModel) -> list[int]:
    count = min(TRIED, opened.trained_context or TRIED)
    return [(7919 * place + 13) % opened.vocabulary for place in range(count)]


def _error(opened: TorchModel, tokens: Sequence[int], expected: torch.Tensor) -> float:
    """1 - the cosine of ``expected`` and what comes of reading ``tokens`` in pieces, in rows that end up side by side.

    Raises UsageError for a model that cannot be computed so at all.
    """
    count = len(tokens)
    memory = KvMemory(rows=2, length=count)
    cut = count // 2
    try:
        opened.logits(memory, [Segment(1, 0, cut)], tokens[:cut], [cut - 1])
        rows = [Segment(0, 0, 2), Segment(1, cut, count - 1 - cut)]
        opened.logits(memory, rows, [*tokens[:2], *tokens[cut:-1]], [1])
        found = opened.logits(memory, [Segment(0, 2, 1), Segment(1, count - 1, 1)], [0, tokens[-1]], [1])[0]
    except (InferenceError, RuntimeError, ValueError, AttributeError, TypeError) as error:
        raise _not_computed(opened.model, type(error).__name__) from None
    return 1 - float(torch.cosine_similarity(expected.double(), found.double(), dim=0))


def _packed(segments: Sequence[Segment], tokens: Sequence[int]) -> dict[str, torch.Tensor]:
    positions = [place for part in segments for place in range(part.past, part.past + part.count)]
    return {"input_ids": torch.tensor([tokens]), "position_ids": torch.tensor([positions])}


def _configuration(folder: Path) -> Any:
    from transformers import AutoConfig  # noqa: PLC0415 -- slow to import: only for who opens this engine

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, OSError) as error:
        raise UsageError(
            f"transformers does not know the model's architecture ({type(error).__name__})",
            todo="the model needs code of its own, which is not run, or a newer transformers",
        ) from None
    text = config.get_text_config()
    if not set(getattr(text, "layer_types", None) or ()) <= _LAYERS or getattr(
        text, "attention_chunk_size", None
    ):
        raise UsageError(
            "the model has layers that the engine torch does not compute", todo="choose another engine"
        )
    return config


def _weights(folder: Path, config: Any, precision: Precision | None, adapter: LoraAdapter | None) -> Any:
    from safetensors import SafetensorError  # noqa: PLC0415 -- as above
    from transformers import AutoModelForCausalLM as Auto  # noqa: PLC0415

    from cloister.inference.lowbit.norms import fuse_norms  # noqa: PLC0415 -- as above
    from cloister.inference.lowbit.optimisation import optimise_model  # noqa: PLC0415
    from cloister.inference.lowbit.storage import is_low_bit, load_low_bit  # noqa: PLC0415
    from cloister.inference.lowbit.streaming import LowBitConfig  # noqa: PLC0415
    from cloister.inference.lowbit.streaming import register as register_low_bit  # noqa: PLC0415

    auto: Any = Auto
    settings: dict[str, Any] = {
        "local_files_only": True,
        "trust_remote_code": False,
        "use_safetensors": True,
    }
    short: Any = precision if precision in ("int8", "int4") else None
    register_low_bit()
    try:
        if is_low_bit(folder):
            return _stored_low_bit(load_low_bit(auto, folder, **settings), precision, adapter)
        if short and adapter is None:
            settings["quantization_config"] = LowBitConfig(short)
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}.get(precision or "", "auto")
        model, found = auto.from_pretrained(
            folder, config=config, dtype=dtype, output_loading_info=True, **settings
        )
    except (ValueError, KeyError, OSError, RuntimeError, ImportError, SafetensorError) as error:
        raise InferenceError(
            f"transformers cannot load the model ({type(error).__name__})",
            todo="its files do not fit together, or its architecture has no decoder with a language-model head",
        ) from None
    lacking = len(found["missing_keys"]) + len(found["mismatched_keys"])
    if lacking:
        # transformers would make them up, and compute with random numbers.
        raise InferenceError(
            f"the model's files lack {lacking} of its weights", todo="download or convert the model again"
        )
    if adapter is not None:
        _add(model, adapter)
        if short:
            optimise_model(model, precision=short)
    if model.dtype == torch.float32:
        fuse_norms(model)
    return model


def _stored_low_bit(model: Any, precision: Precision | None, adapter: LoraAdapter | None) -> Any:
    if adapter is not None or precision not in (None, model.cloister_report.precision):
        raise UsageError(
            f"the model is stored in {model.cloister_report.precision}, to which nothing can be added",
            todo="serve it as it is, or name the folder that it was made from",
        )
    return model


def _check_architecture(model: Any) -> None:
    if not getattr(model, "_supports_attention_backend", False):
        raise _not_computed(model, "its attention cannot be replaced")
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        raise _not_computed(model, "it computes the logits of every token")


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer  # noqa: PLC0415 -- as above

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, OSError, ImportError, AttributeError, TypeError) as error:
        raise InferenceError(
            f"transformers cannot load the model's tokenizer ({type(error).__name__})",
            todo="the folder needs tokenizer.json",
        ) from None
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UsageError("the model's tokenizer has no tokenizer.json", todo="convert it with transformers")
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def _ends(model: Any, tokenizer: Any) -> frozenset[int]:
    ends: set[int] = set()
    for found in (getattr(model.generation_config, "eos_token_id", None), tokenizer.eos_token_id):
        ends.update([found] if isinstance(found, int) else found or ())
    return frozenset(ends)


def _add(model: Any, adapter: LoraAdapter) -> None:
    """Add the adapter to the weights: once, in float32, and not at every token."""
    layers = getattr(model.base_model, "layers", ())
    for (number, name), pair in adapter.pairs.items():
        place = f"self_attn.{name}" if name[0] in "qkvo" else f"mlp.{name}"
        try:
            linear = layers[number].get_submodule(place)
            shape = tuple(linear.weight.shape)
        except (IndexError, AttributeError):
            shape = ()
        if shape != (pair.b.shape[0], pair.a.shape[1]):
            raise InferenceError(
                f"the adapter changes layer {number}, {name}, which the model does not have so",
                todo="serve it with the base model that it was trained on",
            )
        added = adapter.scale * (_tensor(pair, "b") @ _tensor(pair, "a"))
        with torch.no_grad():
            # A new tensor: the one there may be the mapped file itself.
            linear.weight.data = (linear.weight.float() + added).to(linear.weight.dtype)


def _tensor(pair: Pair, half: str) -> torch.Tensor:
    stored = pair.a if half == "a" else pair.b
    flat = torch.frombuffer(bytearray(stored.data), dtype=_TYPES[stored.type])
    return flat.reshape(stored.shape).float()


def _not_computed(model: Any, why: str) -> UsageError:
    return UsageError(
        f"the engine torch does not compute a {type(model).__name__}: {why}", todo="choose another engine"
    )
