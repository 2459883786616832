"""Messages as one text, by the model's own chat template, as ``transformers`` renders it.

A template is a program in Jinja that came with the model; it runs in Jinja's sandbox, without files, modules or attributes
of Python's own. GenAI's own engine for templates knows a part of the language and replaces some templates by others that
look alike, so it is not used. A model without a template is asked in ChatML, as llama.cpp does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NoReturn

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cloister.errors import InferenceError
from cloister.inference.api_errors import RequestRefused

CHATML: Final = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MAX_TEXT: Final = 16 << 20
"""Characters of a rendered prompt."""


class Prompts:
    """One model's template."""

    def __init__(self, source: str | None, special: Mapping[str, str]) -> None:
        """``special`` are the names that templates use (``bos_token``). Raises :class:`InferenceError`."""
        self.source = source or CHATML
        self.special = dict(special)
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.filters["tojson"] = _as_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now(UTC).strftime(form)
        try:
            self._template = environment.from_string(self.source)
        except TemplateError as error:
            raise InferenceError(f"the model's chat template is none: {str(error)[:200]}") from None

    def text(self, messages: Sequence[Mapping[str, Any]], given: Mapping[str, Any]) -> str:
        """``messages`` as one text that asks for an answer. Raises RequestRefused."""
        values = self.special | dict(given)
        try:
            text = self._template.render(messages=list(messages), add_generation_prompt=True, **values)
        except (
            Exception
        ) as error:  # what a template and the messages between them can raise has no common type
            raise RequestRefused(
                f"The model's chat template refuses the messages: {str(error)[:300]}", param="messages"
            ) from None
        if len(text) > MAX_TEXT:
            raise RequestRefused("The messages are too long", code="invalid_value", param="messages")
        return text


def _refuse(text: str) -> NoReturn:
    raise TemplateError(text)


def _as_json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
