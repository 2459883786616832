"""How many tokens a text has for a served model: by the model's own tokenizer, for whoever has to fit a prompt.

The tokenizer is read from the model's files beside the engine, which need not tell. Where another server has the model, or
its tokenizer is of a kind that is not known here, a text counts as its bytes, which is never too few.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from cloister.errors import InferenceError
from cloister.inference.model_files import ModelFiles

Count = Callable[[str], int]
_NORMAL: Final = 1
"""GGUF's sort of a token that is part of texts."""
_BEGINS: Final = "\u2581"


def counter_of(files: ModelFiles | None) -> Count:
    """Counts for the model behind ``files``, which may be closed afterwards. Raises :class:`InferenceError`."""
    backend = None if files is None else _backend(files)
    if backend is None:
        return lambda text: len(text.encode("utf-8", errors="surrogatepass"))
    return lambda text: len(backend.encode(text, add_special_tokens=False).ids)


def _backend(files: ModelFiles) -> Any:
    """A ``tokenizers.Tokenizer``, or None where there is none of a known kind."""
    if files.kind == "gguf":
        from cloister.inference.engines.openvino_gguf import GgufModel  # noqa: PLC0415 -- numpy
        from cloister.inference.engines.openvino_vocabulary import tokenizer_of_keys  # noqa: PLC0415 -- tokenizers

        keys = GgufModel(files.main, what=files.main_name).keys
        try:
            return (
                _word_pieces(keys) if keys.get("tokenizer.ggml.model") == "bert" else tokenizer_of_keys(keys)
            )
        except InferenceError:
            return None
    if "tokenizer.json" not in files.descriptors:
        return None
    from tokenizers import Tokenizer  # noqa: PLC0415 -- native code

    try:
        backend = Tokenizer.from_buffer(files.read("tokenizer.json"))
    except Exception as error:  # tokenizers raises Exception itself
        raise InferenceError(f"tokenizer.json is none: {str(error)[:200]}") from None
    backend.no_truncation()
    backend.no_padding()
    return backend


def _word_pieces(keys: Mapping[str, Any]) -> Any:
    """The tokenizer of an encoder of the BERT family, as llama.cpp reads it: lower case, without accents."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers  # noqa: PLC0415 -- native code

    tokens, types = keys.get("tokenizer.ggml.tokens"), keys.get("tokenizer.ggml.token_type")
    if not isinstance(tokens, list) or not isinstance(types, list) or len(types) != len(tokens):
        raise InferenceError("the model has no tokenizer", todo="convert it anew, with its tokenizer")
    numbers: dict[str, int] = {}
    for number, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        text = token.decode(errors="replace")
        if kind == _NORMAL:  # in the file what begins a word has a mark, and not what continues one
            text = text[1:] if text.startswith(_BEGINS) else f"##{text}"
        numbers[text] = number
    made = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]"))  # noqa: S106 -- no password
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return made
