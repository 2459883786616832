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
from cloister.inference.engines.request_parts import (
    choices,
    fitting,
    json_schema,
    stop_words,
    template_settings,
    token_lists,
    unsupported,
)
from cloister.inference.engines.tool_text import called_with
from cloister.inference.engines.torch_grammar import CALL_START, Grammars
from cloister.inference.engines.torch_jobs import Grammar
from cloister.inference.engines.torch_model import TorchModel
from cloister.inference.engines.torch_sampling import Sampling

CHATML: Final = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ENGINE: Final = "torch"
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
                raise unsupported(ENGINE, name)
        tools = body.get("tools") or ()
        choice = body.get("tool_choice") or "auto"
        if tools and not self.tools:
            raise unsupported(ENGINE, "tools")
        if choice not in ("auto", "none", "required") or (choice == "required" and not tools):
            raise unsupported(ENGINE, "tool_choice")
        tools = () if choice == "none" else tools
        prompts = [self._chat(body, tools)] if kind == "chat" else self.tokens(body["prompt"], "prompt")
        top = body.get("top_logprobs", 0) if body.get("logprobs") else body.get("n_probs")
        return Ask(
            prompts=prompts,
            choices=choices(body, slots=self._slots),
            max_tokens=body.get("max_tokens"),
            stops=stop_words(body),
            sampling=self._sampling(body),
            top=top,
            schema=json_schema(body.get("response_format")),
            called=tools if choice == "required" else (),
            tools=bool(tools),
            one_call=body.get("parallel_tool_calls") is False,
        )

    def grammar(self, ask: Ask) -> Grammar | None:
        """What one answer has to follow; of its own, since it moves with it. Raises RequestRefused."""
        if ask.called:
            return self._grammars.tool_call(ask.called)
        return None if ask.schema is None else self._grammars.json(ask.schema)

    def tokens(self, texts: Any, param: str) -> list[Sequence[int]]:
        """Each text of OpenAI's ``prompt`` or ``input`` as tokens. Raises RequestRefused."""
        # One token at least has to fit behind a prompt; a text that is only read needs none.
        room = self._context_length - (param != "input")
        return token_lists(texts, param, encode=self._encode, vocabulary=self._vocabulary, room=room)

    def _encode(self, text: str) -> Sequence[int]:
        found: Sequence[int] = self._backend.encode(text).ids
        return found

    def _chat(self, body: Mapping[str, Any], tools: Sequence[Any]) -> Sequence[int]:
        given = template_settings(body, self._template, engine=ENGINE)
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
        tokens = self._backend.encode(text, add_special_tokens=False).ids
        return fitting(tokens, "messages", room=self._context_length - 1)

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
