"""Schemas compiled before they reach the pipeline, since one that cannot be would end everybody's answers.

GenAI compiles an answer's schema in the middle of a step and throws there, which drops all requests. There is no call that
only compiles. So each schema is first given to a second pipeline: a model of a few numbers with the same vocabulary, asked
for one token. What compiles there compiles in the true pipeline too, out of the compiler's cache, which belongs to the table
of tokens that both share: no step waits for it. Refused by name before that: what the compiler would pass over in silence.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cloister.inference.api_errors import RequestRefused, shutting_down
from cloister.inference.engines.openvino_gguf import Layer
from cloister.inference.engines.openvino_import import genai, openvino

MAX_KNOWN: Final = 1024
"""Schemas of which it is remembered that they compile."""
_WIDTH: Final = 8
_HONOURED: Final = frozenset(
    {
        "$defs", "$ref", "additionalProperties", "anyOf", "const", "definitions", "enum", "exclusiveMaximum",
        "exclusiveMinimum", "items", "maxItems", "maxLength", "maximum", "minItems", "minLength", "minimum", "oneOf",
        "prefixItems", "properties", "required", "type",
    }
)  # fmt: skip
_SAYS_NOTHING: Final = frozenset({"$id", "$schema", "default", "description", "examples", "strict", "title"})
_NAMES: Final = frozenset({"$defs", "definitions", "properties"})
"""Where the keys inside are names, not keywords."""
_VALUES: Final = frozenset({"const", "default", "enum", "examples", "required"})


def check_keywords(schema: object) -> None:
    """Raise RequestRefused for a keyword anywhere in ``schema`` that would not be honoured."""
    if isinstance(schema, list):
        for item in schema:
            check_keywords(item)
    if not isinstance(schema, Mapping):
        return
    for name, value in schema.items():
        if name not in _HONOURED | _SAYS_NOTHING:
            raise RequestRefused(
                f"The engine openvino does not honour {name} in schemas",
                code="unsupported",
                param="response_format",
            )
        if name in _NAMES and isinstance(value, Mapping):
            for inner in value.values():
                check_keywords(inner)
        elif name not in _VALUES:
            check_keywords(value)


class Schemas:
    """Compiles schemas, one after the other."""

    def __init__(self, pipeline: Any) -> None:
        """``pipeline`` is a ``ContinuousBatchingPipeline`` of :class:`SmallestModel`."""
        self._pipeline: Any | None = pipeline
        self._lock = threading.Lock()
        self._known: set[str] = set()

    def check(self, schema: str) -> None:
        """Compile ``schema``. Raises RequestRefused where that cannot be."""
        config = genai().GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = 1, True, False
        config.structured_output_config = genai().StructuredOutputConfig(json_schema=schema)
        tokens = openvino().Tensor(np.zeros((1, 1), np.int64))
        with self._lock:
            if schema in self._known:
                return
            if self._pipeline is None:
                raise shutting_down()
            try:
                self._pipeline.generate([tokens], [config])
            except Exception:  # C++ exceptions arrive as many Python types
                raise RequestRefused(
                    "The schema of response_format cannot be honoured",
                    code="invalid_value",
                    param="response_format",
                ) from None
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known.add(schema)

    def close(self) -> None:
        with self._lock:
            self._pipeline = None


class SmallestHeader:
    architecture = "llama"


class SmallestModel:
    """One layer of nothing, in the form of a GGUF file's: for :func:`cloister.inference.engines.openvino_graph.decoder`."""

    header = SmallestHeader()

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary = vocabulary
        self.keys: dict[str, Any] = {
            "llama.block_count": 1,
            "llama.embedding_length": _WIDTH,
            "llama.attention.head_count": 1,
            "llama.attention.layer_norm_rms_epsilon": 1e-5,
        }

    def __contains__(self, name: str) -> bool:
        return False

    def vector(self, name: str) -> npt.NDArray[np.float32]:
        return np.ones(_WIDTH, np.float32)

    def layer(self, name: str) -> Layer:
        rows = self._vocabulary if name == "token_embd.weight" else _WIDTH
        return Layer(np.zeros((rows, _WIDTH), np.float16))

    def unread(self) -> list[str]:
        return []
