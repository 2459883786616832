"""The quality of one candidate, in a process of its own: how well it predicts a text, where it agrees with the reference.

The reference comes first and leaves what it said in a file; every other candidate is compared with that, place by place, on
the same windows of the same text. Refused: a model that does not say itself how text becomes tokens.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from cloister.errors import InferenceError
from cloister.inference.engines import Engine, EngineSettings, open_engine
from cloister.inference.model_files import ModelFiles
from cloister.inference.next_tokens import (
    EngineNext,
    LlamaCppNext,
    TransformersNext,
    text_tokens,
    token_bytes,
    tokenizer_of,
)
from cloister.inference.optimizer.standing import WINDOW
from cloister.inference.quality import (
    NextTokens,
    Observations,
    Windows,
    compare,
    default_text,
    observe,
    read_text,
    windows_of,
)

_OBSERVED: Final = "reference.npz"


def judge(request: Mapping[str, Any], engine: Engine | None = None) -> Mapping[str, Any]:
    """Perplexity, change and agreement of ``request``'s candidate. Raises what engines and the text raise.

    ``engine`` is the candidate where it is open already, which only the engine torch can be judged by.
    """
    room, given = Path(request["room"]), Path(request["given"])
    text = default_text().decode() if request["text"] is None else read_text(Path(request["text"]))
    with ModelFiles.of_path(given) as model:
        tokenizer = _tokenizer(model)
    windows = _windows(tokenizer, text, request["windows"])
    open_model = getattr(engine, "model", None)
    judged = (
        _opened(request, tokenizer) if open_model is None else TransformersNext.of_open_engine(open_model)
    )
    with judged as model_:
        seen = observe(model_, windows)
    if request["is_reference"]:
        seen.save(room / _OBSERVED)
    found = compare(seen if request["is_reference"] else Observations.load(room / _OBSERVED, windows), seen)
    if found.covered == 0:
        raise InferenceError("the engine tells too few of the likeliest tokens to measure its quality")
    return {
        "perplexity": found.perplexity,
        "change": found.change,
        "change_error": found.change_error,
        "agreement": found.agreement,
        "tokens": found.covered,
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }


def _windows(tokenizer: Any, text: str, count: int) -> Windows:
    tokens, first = text_tokens(tokenizer, text)
    return windows_of(tokens, count=min(count, max(1, len(tokens) // WINDOW)), length=WINDOW, first=first)


def _tokenizer(model: ModelFiles) -> Any:
    if model.kind != "gguf":
        return tokenizer_of(model)
    from cloister.inference.engines.openvino_gguf import GgufModel  # noqa: PLC0415 -- for this kind alone
    from cloister.inference.engines.openvino_vocabulary import tokenizer_of_keys  # noqa: PLC0415

    return tokenizer_of_keys(GgufModel(model.main, what=model.main_name).keys)


@contextlib.contextmanager
def _opened(request: Mapping[str, Any], tokenizer: Any) -> Iterator[NextTokens]:
    settings = EngineSettings(**request["settings"])
    with ModelFiles.of_path(Path(request["path"])) as model:
        if request["engine"] == "llamacpp":
            with LlamaCppNext.open(
                model,
                vocabulary=tokenizer.get_vocab_size(),
                threads=request["threads"],
                kv_cache=settings.kv_cache,
            ) as found:
                yield found
            return
        if request["engine"] == "torch":
            with TransformersNext.as_it_decodes(model, precision=settings.precision) as loaded:
                yield loaded
            return
        if request["engine"] == "openvino":
            from cloister.inference.optimizer.openvino_next import OpenVinoNext  # noqa: PLC0415 -- OpenVINO

            with OpenVinoNext.open(model, settings, threads=request["threads"]) as compiled:
                yield compiled
            return
        from cloister.inference.engines.answer_text import Texts  # noqa: PLC0415 -- tokenizers

        engine = open_engine(request["engine"], model, settings)
    try:
        # One process, one text of ours: what the engine keeps of a prompt tells nobody anything.
        yield EngineNext(engine, token_bytes(tokenizer, Texts(tokenizer).piece), tenant=bytes(32))
    finally:
        engine.close()
