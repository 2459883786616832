"""How a model's text becomes tokens and its answers end: out of the keys of a GGUF file, or the files beside an IR."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cloister.encoding import parse_json
from cloister.errors import FormatError, UsageError
from cloister.inference.engines.openvino_gguf import GgufModel
from cloister.inference.engines.openvino_prompts import Prompts
from cloister.inference.engines.openvino_vocabulary import first_tokens, last_tokens, tokenizer_of_keys
from cloister.inference.model_files import MAX_SMALL, ModelFiles

_DEFAULTS: Final = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}


@dataclass(frozen=True, slots=True)
class Language:
    """How text becomes tokens and an answer ends."""

    backend: Any
    """A ``tokenizers.Tokenizer``."""
    first: tuple[int, ...]
    """Tokens before every text, where the backend does not set them itself."""
    ends: frozenset[int]
    prompts: Prompts
    trained_context: int | None
    vocabulary: int
    """Tokens for which the model has numbers; the tokenizer may have fewer."""
    defaults: Mapping[str, Any]
    """Temperature, top_p and top_k of a request that names none."""


def language_of_keys(model: GgufModel) -> Language:
    """What a GGUF file says. Raises InferenceError."""
    keys = model.keys
    backend = tokenizer_of_keys(keys)
    special = {}
    for name in ("bos", "eos", "unknown", "padding"):
        token = keys.get(f"tokenizer.ggml.{name}_token_id")
        if isinstance(token, int) and backend.id_to_token(token) is not None:
            short = {"unknown": "unk", "padding": "pad"}.get(name, name)
            special[f"{short}_token"] = backend.id_to_token(token)
    return Language(
        backend=backend,
        first=first_tokens(keys),
        ends=last_tokens(keys),
        prompts=Prompts(model.header.chat_template, special),
        trained_context=model.header.trained_context,
        vocabulary=len(keys["tokenizer.ggml.tokens"]),
        defaults=_DEFAULTS,
    )


def language_of_files(model: ModelFiles, vocabulary: int) -> Language:
    from tokenizers import Tokenizer  # noqa: PLC0415 -- native code: only for who opens this engine

    if "tokenizer.json" not in model.descriptors:
        raise UsageError(
            "the model has no tokenizer.json beside openvino_model.xml",
            todo="add the file from the model that it was made of",
        )
    try:
        backend = Tokenizer.from_buffer(model.read("tokenizer.json"))
    except Exception as error:  # tokenizers raises Exception itself
        raise FormatError(f"tokenizer.json is none: {str(error)[:200]}") from None
    config, generation = read_object(model, "config.json"), read_object(model, "generation_config.json")
    settings = read_object(model, "tokenizer_config.json")
    special = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        told = settings.get(name)
        told = told.get("content") if isinstance(told, Mapping) else told
        if isinstance(told, str):
            special[name] = told
    ends: set[int] = set()
    for told in (generation.get("eos_token_id"), config.get("eos_token_id")):
        ends.update(token for token in (told if isinstance(told, list) else [told]) if isinstance(token, int))
    named = backend.token_to_id(special.get("eos_token", ""))
    ends.update([named] if named is not None else [])
    if "chat_template.jinja" in model.descriptors:
        template: Any = model.read("chat_template.jinja").decode(errors="replace")
    else:
        template = settings.get("chat_template")
    length = config.get("max_position_embeddings")
    defaults = dict(_DEFAULTS)
    if generation.get("do_sample") is True:
        defaults |= {name: generation[name] for name in _DEFAULTS if generation.get(name) is not None}
    return Language(
        backend=backend,
        first=(),
        ends=frozenset(ends),
        prompts=Prompts(template if isinstance(template, str) else None, special),
        trained_context=length if isinstance(length, int) else None,
        vocabulary=vocabulary,
        defaults=defaults,
    )


def read_object(model: ModelFiles, name: str) -> Mapping[str, Any]:
    """A file's JSON object; an empty one if there is no such file. Raises :class:`FormatError`."""
    if name not in model.descriptors:
        return {}
    found = parse_json(model.read(name), what=name, limit=MAX_SMALL)
    if not isinstance(found, dict):
        raise FormatError(f"{name} is not a JSON object")
    return found
