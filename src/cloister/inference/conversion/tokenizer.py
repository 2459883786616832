"""A model's tokenizer files, in llama.cpp's words: tokens, how text is cut, what begins and ends it, the chat template.

``tokenizer.json`` is read where it is there, else SentencePiece's ``tokenizer.model``. The files may come from anyone.
Refused are tokenizers that llama.cpp would cut text with otherwise than the model was taught (kinds, rules and
normalisations it does not have): a wrong guess here makes a model stupid, and nobody sees why. Where the two differ in
corners only, a note says so. Sources: ``tokenizers`` 0.23's serialisation; llama.cpp's ``llama-vocab.cpp``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from cloister.encoding import parse_json
from cloister.errors import FormatError, InferenceError
from cloister.inference.conversion.byte_level import byte_level
from cloister.inference.conversion.configuration import Shape
from cloister.inference.conversion.piece_model import read_piece_model
from cloister.inference.conversion.pieces import pieces
from cloister.inference.conversion.vocabulary import Special, Vocabulary
from cloister.inference.model_files import ModelFiles

MAX_TOKENIZER: Final = 64 << 20
MAX_CONFIG: Final = 16 << 20
MAX_TEMPLATE: Final = 1 << 20
_FILE, _PIECES, _CONFIG = "tokenizer.json", "tokenizer.model", "tokenizer_config.json"
_GENERATION, _TEMPLATE = "generation_config.json", "chat_template.jinja"
_CHATGLM3: Final = (
    "[gMASK]sop{% for message in messages %}<|{{ message['role'] }}|>\n {{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_CHATGLM2: Final = (
    "[gMASK]sop{% for message in messages %}{% if message['role'] == 'user' %}[Round {{ loop.index0 // 2 + 1 }}]\n\n"
    "问：{{ message['content'] }}\n\n{% elif message['role'] == 'assistant' %}答：{{ message['content'] }}\n\n"
    "{% else %}{{ message['content'] }}\n\n{% endif %}{% endfor %}{% if add_generation_prompt %}答：{% endif %}"
)


def read_tokenizer(model: ModelFiles, shape: Shape) -> Vocabulary:
    """The vocabulary of a model's files. Raises :class:`FormatError` and :class:`InferenceError`."""
    settings = _object(model, _CONFIG, MAX_CONFIG)
    if _FILE in model.descriptors:
        found = _object(model, _FILE, MAX_TOKENIZER)
        base = _of_json(found, shape)
        base = _framed(found, settings, base)
    elif _PIECES in model.descriptors:
        base = read_piece_model(model.read(_PIECES, MAX_TOKENIZER), settings, shape)
        base = replace(
            base, add_bos=_flag(settings, "add_bos_token", default=shape.architecture != "chatglm")
        )
    else:
        raise InferenceError(
            f"the model has neither {_FILE} nor {_PIECES}", todo="copy its tokenizer beside it"
        )
    numbers = {text: place for place, text in enumerate(base.tokens)}
    special = _special(model, settings, shape, numbers) | dict(base.special)
    return replace(base, special=special, template=_template(model, settings, shape, numbers))


def _of_json(found: Mapping[str, Any], shape: Shape) -> Vocabulary:
    model = found.get("model")
    if not isinstance(model, dict):
        raise FormatError(f"{_FILE} has no model")
    kind = model.get("type", "BPE" if "merges" in model else None)
    if kind != "BPE":
        shown = "".join(char if char.isprintable() else "?" for char in str(kind)[:40])
        raise InferenceError(f"a tokenizer of the kind {shown} cannot be converted here")
    return (
        pieces(found, shape.vocabulary) if model.get("byte_fallback") else byte_level(found, shape.vocabulary)
    )


def _framed(found: Mapping[str, Any], settings: Mapping[str, Any], base: Vocabulary) -> Vocabulary:
    """With what stands before and after each text: by the template in the file, unless the settings say so."""
    first, last, notes = _template_ends(found.get("post_processor"))
    return replace(
        base,
        add_bos=_flag(settings, "add_bos_token", default=first is not None),
        add_eos=_flag(settings, "add_eos_token", default=last is not None),
        special=_named(base, {"bos": first, "eos": last}),
        notes=base.notes + notes,
    )


def _template_ends(processor: object) -> tuple[str | None, str | None, tuple[str, ...]]:
    steps: object = [processor]
    if isinstance(processor, dict) and processor.get("type") == "Sequence":
        steps = processor.get("processors")
    for step in steps if isinstance(steps, list) else []:
        if not isinstance(step, dict) or step.get("type") != "TemplateProcessing":
            continue
        single = step.get("single")
        if not isinstance(single, list) or not 1 <= len(single) <= 16:
            raise FormatError(f"{_FILE} has a template of a form that cannot be")
        names = [_special_name(part) for part in single]
        inner = names[1 if names[0] else 0 : -1 if names[-1] else None]
        if any(inner) or len(inner) != 1:
            return (
                None,
                None,
                ("the tokens that the tokenizer sets around a text are more than llama.cpp can set",),
            )
        return names[0], names[-1], ()
    return None, None, ()


def _special_name(part: object) -> str | None:
    token = part.get("SpecialToken") if isinstance(part, dict) else None
    name = token.get("id") if isinstance(token, dict) else None
    return name if isinstance(name, str) else None


def _special(
    model: ModelFiles, settings: Mapping[str, Any], shape: Shape, numbers: Mapping[bytes, int]
) -> dict[Special, int]:
    """Token numbers by their roles: as the tokenizer's settings name them, else as the model's configuration does."""
    found: dict[Special, int] = {}
    keys: tuple[tuple[Special, str], ...] = (
        ("bos", "bos"),
        ("eos", "eos"),
        ("unknown", "unk"),
        ("padding", "pad"),
    )
    for role, key in keys:
        name = settings_name(settings, f"{key}_token")
        number = numbers.get(name.encode()) if name is not None else (shape.special or {}).get(key)
        if number is not None and number < shape.vocabulary:
            found[role] = number
    ends = _object(model, _GENERATION, MAX_CONFIG).get("eos_token_id")
    others = [end for end in (ends if isinstance(ends, list) else [ends])[:16] if type(end) is int]
    if shape.architecture == "chatglm":
        others = [numbers[b"<|user|>"]] if b"<|user|>" in numbers else others
    turn = next((end for end in others if end != found.get("eos") and 0 <= end < shape.vocabulary), None)
    if turn is not None:
        found["eot"] = turn
    return found


def _template(
    model: ModelFiles, settings: Mapping[str, Any], shape: Shape, numbers: Mapping[bytes, int]
) -> str | None:
    if _TEMPLATE in model.descriptors:
        try:
            return model.read(_TEMPLATE, MAX_TEMPLATE).decode("utf-8")
        except UnicodeDecodeError:
            raise FormatError(f"{_TEMPLATE} is not UTF-8") from None
    found = settings.get("chat_template")
    if isinstance(found, list):
        named = [entry for entry in found if isinstance(entry, dict) and entry.get("name") == "default"]
        found = named[0].get("template") if named else None
    if found is None and shape.model_type == "chatglm" and b"sop" in numbers:
        return _CHATGLM3 if b"<|user|>" in numbers else _CHATGLM2
    if found is not None and (not isinstance(found, str) or len(found) > MAX_TEMPLATE):
        raise FormatError(f"{_CONFIG} has a chat template that cannot be")
    return found


def settings_name(settings: Mapping[str, Any], key: str) -> str | None:
    """The text of a special token: a string, or an object with its ``content``."""
    value = settings.get(key)
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _named(base: Vocabulary, names: Mapping[Special, str | None]) -> dict[Special, int]:
    try:
        return {role: base.tokens.index(name.encode()) for role, name in names.items() if name is not None}
    except ValueError:
        raise FormatError(f"{_FILE} sets a token around each text that it does not have") from None


def _object(model: ModelFiles, name: str, limit: int) -> Mapping[str, Any]:
    if name not in model.descriptors:
        return {}
    found = parse_json(model.read(name, limit), what=name, limit=limit)
    if not isinstance(found, dict):
        raise FormatError(f"{name} is not an object")
    return found


def _flag(settings: Mapping[str, Any], key: str, *, default: bool) -> bool:
    value = settings.get(key)
    return value if isinstance(value, bool) else default
