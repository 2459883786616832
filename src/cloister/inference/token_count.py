"""How many tokens a text has for a served model: by the model's own tokenizer, for whoever has to fit a prompt.

The tokenizer is read from the model's files beside the engine, which need not tell. Where another server has the model, or
its tokenizer is of a kind that is not known here, a text counts as its bytes, which is never too few.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cloister.errors import InferenceError
from cloister.inference.model_files import ModelFiles

Count = Callable[[str], int]


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

        try:
            return tokenizer_of_keys(GgufModel(files.main, what=files.main_name).keys)
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
