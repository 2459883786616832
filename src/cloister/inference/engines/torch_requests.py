"""OpenAI's bodies as questions to the batch: tokens, limits, ways to choose. What cannot be done is refused by name.

Where a request says nothing of temperature, top_p and top_k, the model's own ``generation_config.json`` speaks, if it
samples; else OpenAI's defaults, 1 and all tokens. A model without a chat template is asked in ChatML, as llama.cpp does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cloister.inference.api_errors import RequestRefused
from cloister.inference.engines import Kind
from cloister.inference.engines.torch_grammar import CALL_START, Grammars
from cloister.inference.engines.torch_jobs import Grammar
from cloister.inference.engines.torch_model import TorchModel
from cloister.inference.engines.torch_sampling import Sampling
from cloister.inference.engines.torch_tools import called_with

CHATML: Final = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_COMMON: Final = frozenset(
    {
        "temperature", "top_p", "n", "stop", "presence_penalty", "frequency_penalty", "logit_bias", "top_k", "min_p",
        "repeat_penalty", "seed", "max_tokens",
    }
)  # fmt: skip
_FIELDS: Final[Mapping[Kind, frozenset[str]]] = {
    "chat": _COMMON
    | {
        "messages", "logprobs", "top_logprobs", "response_format", "tools", "tool_choice", "parallel_tool_calls",
        "reasoning_effort",
    },
    "text": _COMMON | {"prompt", "n_probs"},
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request, understood."""

    prompts: Sequence[Sequence[int]]
    choices: int
    max_tokens: int | None
    stops: Sequence[str]
    sampling: Sampling
    top: int | None
    """Log probabilities to tell with each token; None for none."""
    schema: Mapping[str, Any] | None
    """Of the JSON that the answer is to be."""
    called: Sequence[Mapping[str, Any]]
    """Tools of which one must be called."""
    tools: bool
    """Whether calls are looked for in the answer."""
    one_call: bool


class Asks:
    """Understands requests to one model."""

    def __init__(self, model: TorchModel, *, context_length: int, slots: int) -> None:
        self._backend = model.tokenizer.backend_tokenizer
        self._tokenizer = model.tokenizer
        self._vocabulary = model.vocabulary
        self._context_length = context_length
        self._slots = slots
        self._defaults = _defaults(model.model.generation_config)
        self._grammars = Grammars(self._backend, vocabulary=model.vocabulary, ends=sorted(model.ends))
        templates = model.tokenizer.chat_template or CHATML
        self._template = templates if isinstance(templates, str) else "".join(templates.values())
        special = CALL_START in model.tokenizer.all_special_tokens
        self.tools = "tools" in self._template and CALL_START in self._template and not special
        """Whether the model's template has tools and writes calls in the one form that is understood here."""

    def read(self, kind: Kind, body: Mapping[str, Any]) -> Ask:
        """Raises RequestRefused."""
        for name in body:
            if name not in _FIELDS[kind]:
                raise _unsupported(name)
        tools = body.get("tools") or ()
        choice = body.get("tool_choice") or "auto"
        if tools and not self.tools:
            raise _unsupported("tools")
        if choice not in ("auto", "none", "required") or (choice == "required" and not tools):
            raise _unsupported("tool_choice")
        tools = () if choice == "none" else tools
        prompts = [self._chat(body, tools)] if kind == "chat" else self.tokens(body["prompt"], "prompt")
        choices = int(body.get("n", 1))
        if choices > self._slots:
            raise RequestRefused(f"n is over {self._slots}", code="invalid_value", param="n")
        stops = body.get("stop") or ()
        top = body.get("top_logprobs", 0) if body.get("logprobs") else body.get("n_probs")
        return Ask(
            prompts=prompts,
            choices=choices,
            max_tokens=body.get("max_tokens"),
            stops=[stops] if isinstance(stops, str) else list(stops),
            sampling=self._sampling(body),
            top=top,
            schema=_schema(body.get("response_format")),
            called=tools if choice == "required" else (),
            tools=bool(tools),
            one_call=body.get("parallel_tool_calls") is False,
        )

    def grammar(self, ask: Ask) -> Grammar | None:
        """What one answer has to follow; of its own, since it moves with it. Raises RequestRefused."""
        if ask.called:
            return self._grammars.tool_call(ask.called)
        return None if ask.schema is None else self._grammars.json(ask.schema)

    def tokens(self, texts: Any, param: str) -> list[list[int]]:
        """Each text of OpenAI's ``prompt`` or ``input`` as tokens. Raises RequestRefused."""
        parts = texts if isinstance(texts, list) else [texts]
        if parts and isinstance(parts[0], int):
            parts = [parts]
        found = []
        for part in parts:
            if isinstance(part, str):
                found.append(self._checked(self._backend.encode(part).ids, param))
                continue
            if not all(isinstance(token, int) and 0 <= token < self._vocabulary for token in part):
                raise RequestRefused(
                    f"{param} has tokens that the model does not know", code="invalid_value", param=param
                )
            found.append(self._checked(list(part), param))
        return found

    def _chat(self, body: Mapping[str, Any], tools: Sequence[Any]) -> list[int]:
        given: dict[str, Any] = {}
        if "reasoning_effort" in body:
            if "reasoning_effort" not in self._template:
                raise _unsupported("reasoning_effort")
            given["reasoning_effort"] = body["reasoning_effort"]
        try:
            text = self._tokenizer.apply_chat_template(
                called_with(body["messages"]),
                tools=list(tools) or None,
                chat_template=None if self._tokenizer.chat_template else CHATML,
                add_generation_prompt=True,
                tokenize=False,
                **given,
            )
        except (
            Exception
        ) as error:  # what a template and the messages between them can raise has no common type
            raise RequestRefused(
                f"The model's chat template refuses the messages: {str(error)[:300]}", param="messages"
            ) from None
        return self._checked(self._backend.encode(text, add_special_tokens=False).ids, "messages")

    def _checked(self, tokens: list[int], param: str) -> list[int]:
        if not tokens:
            raise RequestRefused(f"{param} has no tokens", code="invalid_value", param=param)
        # One token at least has to fit behind a prompt; a text that is only read needs none.
        room = self._context_length - (param != "input")
        if len(tokens) > room:
            raise RequestRefused(
                f"{param} has {len(tokens)} tokens, and {room} fit",
                code="context_length_exceeded",
                param=param,
            )
        return tokens

    def _sampling(self, body: Mapping[str, Any]) -> Sampling:
        bias = []
        for name, value in (body.get("logit_bias") or {}).items():
            if not name.isdecimal() or int(name[:10]) >= self._vocabulary:
                raise RequestRefused(
                    "logit_bias names a token that the model does not know",
                    code="invalid_value",
                    param="logit_bias",
                )
            bias.append((int(name), float(value)))
        names = ("min_p", "presence_penalty", "frequency_penalty", "repeat_penalty", "seed")
        given = {name: body[name] for name in names if name in body}
        if given.get("repeat_penalty") == 0:
            raise RequestRefused("repeat_penalty is 0", code="invalid_value", param="repeat_penalty")
        for name, default in self._defaults.items():
            given[name] = body.get(name, default)
        return Sampling(bias=tuple(bias), **given)


def _defaults(configured: Any) -> dict[str, Any]:
    """Temperature, top_p and top_k of a request that names none."""
    known: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
    if not getattr(configured, "do_sample", None):
        return known
    told = {name: getattr(configured, name, None) for name in known}
    return known | {name: value for name, value in told.items() if value is not None}


def _schema(shape: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    kind = None if shape is None else shape.get("type")
    if shape is None or kind == "text":
        return None
    if kind == "json_object":
        return shape.get("schema") or {"type": "object"}
    named = shape.get("json_schema")
    schema = named.get("schema") if isinstance(named, Mapping) else None
    if kind != "json_schema" or not isinstance(schema, Mapping):
        raise RequestRefused(
            "response_format is none of text, json_object and json_schema with a schema",
            code="invalid_value",
            param="response_format",
        )
    return schema


def _unsupported(name: str) -> RequestRefused:
    return RequestRefused(f"The engine torch does not support {name} here", code="unsupported", param=name)
