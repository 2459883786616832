"""Models that say how likely each next token is: through ``transformers``, through llama.cpp, through any engine.

llama.cpp is asked place by place with a prompt that grows by one token; it keeps what it computed before, so that a place
costs about one token. For that it gets a server of its own: the engine that serves keeps nothing between strangers. What an
engine tells in OpenAI's shape is its likeliest few tokens, by their bytes.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from cloister.encoding import parse_json
from cloister.errors import InferenceError, UsageError
from cloister.inference.engines import Engine, Precision
from cloister.inference.model_files import ModelFiles
from cloister.inference.quality import Prediction, all_tokens

if TYPE_CHECKING:
    from cloister.inference.engines.torch_model import TorchModel

MAX_TOP: Final = 20
"""Tokens that OpenAI's interface tells at most."""
USUAL_TOP: Final = 1024
"""Tokens that llama.cpp is asked for at each place: it writes each out in 18 µs."""
_TOKENIZER: Final = "tokenizer.json"
_TRIES: Final = 256


class TransformersNext:
    """A model of ``transformers``, in this process: the reference, in 32 bits, or as it is."""

    def __init__(
        self,
        model: Any,
        within: Callable[[int], AbstractContextManager[Any]] = lambda _: contextlib.nullcontext(),
    ) -> None:
        """``model`` is a causal language model, in evaluation mode, which reads so many tokens ``within`` a context."""
        self._model = model
        self._within = within

    @classmethod
    @contextlib.contextmanager
    def open(cls, model: ModelFiles, *, dtype: str = "float32") -> Iterator[Self]:
        """Load a Hugging Face model with PyTorch, without running code of its own."""
        import torch  # noqa: PLC0415 -- only for whoever measures with it
        from transformers import AutoModelForCausalLM  # noqa: PLC0415

        if model.kind != "huggingface":
            raise UsageError(f"transformers does not load a model of the kind {model.kind}")
        with model.folder() as folder:
            found = AutoModelForCausalLM.from_pretrained(
                folder, dtype=getattr(torch, dtype), trust_remote_code=False, local_files_only=True
            )
        found.train(mode=False)
        yield cls(found)

    @classmethod
    def as_it_decodes(cls, model: ModelFiles, *, precision: Precision | None) -> AbstractContextManager[Self]:
        """A model as the engine torch answers with it. Its layers may read prompts with other kernels than those that
        compute one token, and with better weights: those of one token count here, at every place."""
        from cloister.inference.engines.torch_model import load  # noqa: PLC0415 -- torch is heavy

        return cls._decoding(load(model, precision=precision, adapter=None).model)

    @classmethod
    def of_open_engine(cls, model: TorchModel) -> AbstractContextManager[Self]:
        """As :meth:`as_it_decodes`, of an engine that is open and is asked nothing meanwhile."""
        from cloister.inference.engines.torch_attention import Segment, computing  # noqa: PLC0415 -- as above

        return cls._decoding(model.model, lambda count: computing(None, [Segment(0, 0, count)]))

    @classmethod
    @contextlib.contextmanager
    def _decoding(cls, model: Any, *within: Callable[[int], AbstractContextManager[Any]]) -> Iterator[Self]:
        from cloister.inference.lowbit.layer import one_kernel  # noqa: PLC0415 -- as above

        with one_kernel(model, rows=1):
            yield cls(model, *within)

    def predictions(self, tokens: Sequence[int], start: int) -> Iterator[Prediction]:
        import torch  # noqa: PLC0415 -- as above

        with torch.inference_mode(), self._within(len(tokens)):
            logits = self._model(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits[0]
        for place in range(start, len(tokens)):
            yield all_tokens(logits[place - 1].float().numpy())


class LlamaCppNext:
    """A GGUF model in a llama.cpp server that nobody else uses."""

    def __init__(self, server: Any, vocabulary: int, top: int) -> None:
        self._server = server
        self._vocabulary = vocabulary
        self._top = min(top, vocabulary)
        self._plain = 0

    @classmethod
    @contextlib.contextmanager
    def open(
        cls,
        model: ModelFiles,
        *,
        vocabulary: int,
        context_length: int = 512,
        threads: int = 1,
        kv_cache: str = "f16",
        top: int = USUAL_TOP,
    ) -> Iterator[Self]:
        """Load a GGUF model with ``vocabulary`` tokens, of which the ``top`` likeliest are told at each place.

        Raises :class:`InferenceError`.
        """
        import xllamacpp  # noqa: PLC0415 -- 100 MB of native code

        from cloister.inference.engines.llamacpp_parameters import server_parameters  # noqa: PLC0415

        if model.kind != "gguf":
            raise UsageError(f"llama.cpp does not load a model of the kind {model.kind}")
        params = server_parameters(
            str(model.path(model.main_name)),
            context_length=context_length,
            slots=1,
            threads=threads,
            embedding=False,
        )
        params.cache_prompt = True
        if kv_cache != "f16":
            kind = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{kv_cache.upper()}")
            params.cache_type_k = params.cache_type_v = kind
        with tempfile.TemporaryDirectory(prefix="cloister-") as directory:
            params.hostnames = [str(Path(directory) / "closed.sock")]
            try:
                server = xllamacpp.Server(params)
            except (RuntimeError, ValueError):
                raise InferenceError(f"llama.cpp cannot load {model.main_name}") from None
        found = cls(server, vocabulary, top)
        del server
        try:
            found._find_plain()
            yield found
        finally:
            found._server = None

    def predictions(self, tokens: Sequence[int], start: int) -> Iterator[Prediction]:
        for place in range(start, len(tokens)):
            # Chosen is what follows in the text, so that it is told however unlikely it is; most tokens can be.
            found = self._ask(tokens[:place], self._top, tokens[place])
            found = found or self._ask(tokens[:place], self._top, self._plain)
            numbers = np.array(sorted(found), np.int64)
            complete = np.array_equal(numbers, np.arange(self._vocabulary))
            logprobs = np.array([found[number] for number in numbers.tolist()], np.float32)
            yield Prediction(numbers, logprobs, complete=complete)

    def _find_plain(self) -> None:
        """A token that llama.cpp tells probabilities with: it tells none with an end, or with half a character."""
        middle = self._vocabulary // 2
        for plain in range(middle, min(middle + _TRIES, self._vocabulary)):
            if self._ask([0], 1, plain):
                self._plain = plain
                return
        raise InferenceError("llama.cpp tells no probabilities of this model's tokens")

    def asked(self, prompt: str | Sequence[int]) -> Mapping[int, float]:
        """Token → logarithm of its probability after a prompt, which llama.cpp cuts itself if it is a text.

        Nothing kept is used, so that the same tokens give the same numbers to the last bit.
        """
        return self._ask(prompt, self._vocabulary, self._plain, cached=False)

    def _ask(
        self, prompt: str | Sequence[int], top: int, chosen: int, *, cached: bool = True
    ) -> Mapping[int, float]:
        request = {
            "prompt": prompt if isinstance(prompt, str) else list(prompt),
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": top,
            "cache_prompt": cached,
            # What is told are the probabilities before this; what is chosen does not matter.
            "logit_bias": [[chosen, 1e4]],
        }
        answer = self._server.handle_completions(request)
        told = _told([answer]) if isinstance(answer, Mapping) else ()
        return {entry["id"]: _finite(entry["logprob"]) for entry in told}


class EngineNext:
    """Any engine, asked as its users ask it: completions of one token with the likeliest tokens told."""

    def __init__(self, engine: Engine, tokens: Mapping[bytes, int], *, tenant: bytes | None = None) -> None:
        """``tokens``: the bytes of each token → its number. ``tenant`` lets an engine keep the beginning of a prompt."""
        self._engine = engine
        self._tokens = tokens
        self._tenant = tenant

    def predictions(self, tokens: Sequence[int], start: int) -> Iterator[Prediction]:
        for place in range(start, len(tokens)):
            yield self._predict(tokens[:place])

    def _predict(self, tokens: Sequence[int]) -> Prediction:
        chunks: list[Mapping[str, Any]] = []

        def keep(chunk: Mapping[str, Any]) -> bool:
            chunks.append(chunk)
            return False

        request = {"prompt": list(tokens), "max_tokens": 1, "temperature": 0.0, "n_probs": MAX_TOP}
        self._engine.generate("text", request, keep, tenant=self._tenant)
        found: dict[int, float] = {}
        for entry in _told(chunks):
            number = entry.get("id", self._tokens.get(bytes(entry.get("bytes") or entry["token"].encode())))
            if number is not None and entry["logprob"] is not None:
                found.setdefault(number, entry["logprob"])
        return Prediction(
            np.array(list(found), np.int64), np.array(list(found.values()), np.float32), complete=False
        )


def _told(chunks: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    for chunk in chunks:
        for choice in chunk.get("choices") or ():
            content = (choice.get("logprobs") or {}).get("content")
            if content:
                # The chosen token last: it need not be among the likeliest.
                return [*content[0]["top_logprobs"], content[0]]
    return ()


def _finite(logprob: float | None) -> float:
    return -1e4 if logprob is None else logprob


def tokenizer_of(model: ModelFiles) -> Any:
    """The ``tokenizers.Tokenizer`` of a Hugging Face model. Raises :class:`UsageError` where it has none."""
    from tokenizers import Tokenizer  # noqa: PLC0415 -- native code, only for whoever measures

    if _TOKENIZER not in model.descriptors:
        raise UsageError(f"the model has no {_TOKENIZER} to cut a text with")
    data = model.read(_TOKENIZER)
    parse_json(data, what=_TOKENIZER, limit=len(data))
    return Tokenizer.from_str(data.decode())


def text_tokens(tokenizer: Any, text: str) -> tuple[list[int], list[int]]:
    """A text's tokens, and the tokens that are set before every text."""
    first = tokenizer.encode("").ids
    return list(tokenizer.encode(text, add_special_tokens=False).ids), list(first[:1])


def token_bytes(tokenizer: Any, piece: Callable[[int], tuple[str, bytes]]) -> dict[bytes, int]:
    """The bytes of each token → its number, the first where several have the same; ``piece`` tells a token's bytes."""
    found: dict[bytes, int] = {}
    for number in range(tokenizer.get_vocab_size()):
        found.setdefault(piece(number)[1], number)
    return found
