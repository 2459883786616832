"""OpenAI's bodies as OpenVINO's jobs: tokens, limits, ways to choose. What cannot be done is refused by name.

Log probabilities are those of the chosen tokens, and only where the likeliest is chosen (temperature 0): OpenVINO tells no
others. It has no biases of single tokens. Where a request says nothing of temperature, top_p and top_k, the model's own
``generation_config.json`` speaks, if it samples; else OpenAI's defaults. Stop words and texts are the engine's own work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from cloister.inference.api_errors import RequestRefused
from cloister.inference.engines import Kind
from cloister.inference.engines.openvino_import import genai
from cloister.inference.engines.openvino_model import OpenVinoModel
from cloister.inference.engines.openvino_schemas import check_keywords
from cloister.inference.engines.request_parts import (
    choices,
    fitting,
    json_schema,
    stop_words,
    template_settings,
    token_lists,
    unsupported,
)

_COMMON: Final = frozenset(
    {
        "temperature", "top_p", "n", "stop", "presence_penalty", "frequency_penalty", "top_k", "min_p",
        "repeat_penalty", "seed", "max_tokens",
    }
)  # fmt: skip
_FIELDS: Final[Mapping[Kind, frozenset[str]]] = {
    "chat": _COMMON
    | {
        "messages", "logprobs", "top_logprobs", "response_format", "tool_choice", "parallel_tool_calls",
        "reasoning_effort",
    },
    "text": _COMMON | {"prompt", "n_probs"},
}  # fmt: skip
ENGINE: Final = "openvino"
_SEEDS: Final = 1 << 53


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request, understood."""

    prompts: Sequence[Sequence[int]]
    choices: int
    max_tokens: int | None
    stops: Sequence[str]
    logprobs: bool
    seed: int | None
    sampling: Mapping[str, Any]
    """Fields of ``openvino_genai.GenerationConfig``."""
    schema: str | None
    """Of the JSON that the answer is to be."""


class Asks:
    """Understands requests to one model."""

    def __init__(
        self, model: OpenVinoModel, *, context_length: int, slots: int, guesses: Mapping[str, int]
    ) -> None:
        """``guesses`` are fields of every ``GenerationConfig``, where later tokens are guessed."""
        self._guesses = guesses
        self._model = model
        self._context_length = context_length
        self._slots = slots

    def read(self, kind: Kind, body: Mapping[str, Any]) -> Ask:
        """Raises RequestRefused."""
        for name in body:
            if name not in _FIELDS[kind]:
                raise unsupported(ENGINE, name)
        if body.get("tool_choice", "none") not in ("none", "auto"):
            raise unsupported(ENGINE, "tool_choice")
        sampling = self._sampling(body)
        top = body.get("top_logprobs", 1) if body.get("logprobs") else body.get("n_probs")
        if top is not None and (top > 1 or sampling["do_sample"]):
            name = "top_logprobs over 1" if top > 1 else "logprobs at a temperature over 0"
            raise unsupported(ENGINE, name, "top_logprobs" if top > 1 else "logprobs")
        return Ask(
            prompts=[self._chat(body)] if kind == "chat" else self._texts(body["prompt"]),
            choices=choices(body, slots=self._slots),
            max_tokens=body.get("max_tokens"),
            stops=stop_words(body),
            logprobs=top is not None,
            seed=body.get("seed"),
            sampling=sampling,
            schema=_schema(body.get("response_format")),
        )

    def config(self, ask: Ask, prompt: Sequence[int], number: int, entropy: Callable[[int], bytes]) -> Any:
        """The ``openvino_genai.GenerationConfig`` of the answer ``number`` to ``prompt``. Raises RequestRefused."""
        config = genai().GenerationConfig()
        for name, value in (*ask.sampling.items(), *self._guesses.items()):
            setattr(config, name, value)
        seed = int.from_bytes(entropy(8)) if ask.seed is None else ask.seed + number
        config.rng_seed = seed % _SEEDS
        config.max_new_tokens = self.room(ask, prompt)
        config.logprobs = int(ask.logprobs)
        if self._model.ends:
            config.stop_token_ids = set(self._model.ends)
            config.set_eos_token_id(min(self._model.ends))
        if ask.schema is not None:
            self._model.schemas.check(ask.schema)
            config.structured_output_config = genai().StructuredOutputConfig(json_schema=ask.schema)
        try:
            config.validate()
        except RuntimeError as error:
            text = str(error).strip().splitlines()[-1][:200]
            raise RequestRefused(f"The engine refuses the request: {text}") from None
        return config

    def room(self, ask: Ask, prompt: Sequence[int]) -> int:
        """Tokens that an answer may have."""
        room = self._context_length - len(prompt)
        return min(ask.max_tokens or room, room)

    def _texts(self, texts: Any) -> list[Sequence[int]]:
        model = self._model
        return token_lists(
            texts, "prompt", encode=model.tokens, vocabulary=model.vocabulary, room=self._context_length - 1
        )

    def _chat(self, body: Mapping[str, Any]) -> Sequence[int]:
        given = template_settings(body, self._model.prompts.source, engine=ENGINE)
        text = self._model.prompts.text(body["messages"], given)
        return fitting(self._model.tokens(text, whole=True), "messages", room=self._context_length - 1)

    def _sampling(self, body: Mapping[str, Any]) -> dict[str, Any]:
        asked = {name: body.get(name, value) for name, value in self._model.defaults.items()}
        penalty = body.get("repeat_penalty", 1.0)
        if penalty == 0:
            raise RequestRefused("repeat_penalty is 0", code="invalid_value", param="repeat_penalty")
        sampling = {
            "presence_penalty": float(body.get("presence_penalty", 0)),
            "frequency_penalty": float(body.get("frequency_penalty", 0)),
            "repetition_penalty": float(penalty),
        }
        # Where one token alone can be drawn, nothing is drawn: OpenVINO takes neither 0 for top_p nor 1 for min_p.
        least = float(body.get("min_p", 0))
        if asked["temperature"] == 0 or asked["top_p"] == 0 or asked["top_k"] == 1 or least == 1:
            return sampling | {"do_sample": False}
        sampling |= {
            "do_sample": True,
            "temperature": float(asked["temperature"]),
            "top_p": float(asked["top_p"]),
            "min_p": least,
        }
        return sampling | ({"top_k": asked["top_k"]} if asked["top_k"] else {})


def _schema(shape: Mapping[str, Any] | None) -> str | None:
    schema = json_schema(shape)
    if schema is None:
        return None
    check_keywords(schema)
    return msgspec.json.encode(schema).decode()
