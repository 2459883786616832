"""A model as OpenVINO computes it, as :class:`~cloister.inference.quality.NextTokens`: all logits of a text in one pass.

OpenVINO's pipeline for serving tells no probability but that of the token it chose. So its quality is measured on the same
graph with the same properties, compiled without the pipeline.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np

from cloister.errors import InferenceError, UsageError
from cloister.inference.engines import EngineSettings
from cloister.inference.engines.openvino_gguf import GgufModel
from cloister.inference.engines.openvino_graph import decoder
from cloister.inference.engines.openvino_import import openvino
from cloister.inference.engines.openvino_model import properties
from cloister.inference.model_files import ModelFiles
from cloister.inference.quality import Prediction, all_tokens


class OpenVinoNext:
    """A compiled model with a state, asked for one text after the other."""

    def __init__(self, request: Any) -> None:
        """``request`` is an ``openvino.InferRequest``."""
        self._request = request

    @classmethod
    @contextlib.contextmanager
    def open(cls, model: ModelFiles, settings: EngineSettings, *, threads: int) -> Iterator[Self]:
        """Load a GGUF model or an OpenVINO IR. Raises InferenceError."""
        if model.kind == "huggingface":
            raise UsageError("OpenVINO's quality is measured on what is converted")
        told = {name: value for name, value in properties(settings, threads).items() if name.isupper()}
        try:
            with model.folder() as folder:
                if model.kind == "gguf":
                    graph = decoder(GgufModel(model.main, what=model.main_name))
                else:
                    graph = openvino().Core().read_model(str(folder / "openvino_model.xml"))
                request = openvino().Core().compile_model(graph, "CPU", told).create_infer_request()
                yield cls(request)
        except RuntimeError as error:  # C++ exceptions
            line = str(error).strip().splitlines()[-1][:200]
            raise InferenceError(f"OpenVINO cannot load the model: {line}") from None

    def predictions(self, tokens: Sequence[int], start: int) -> Iterator[Prediction]:
        self._request.reset_state()
        count = len(tokens)
        inputs: dict[str, Any] = {
            "input_ids": np.array([tokens], np.int64),
            "attention_mask": np.ones((1, count), np.int64),
            "position_ids": np.arange(count, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        known = {name for port in self._request.model_inputs for name in port.get_names()}
        found = self._request.infer({name: value for name, value in inputs.items() if name in known})
        logits = np.array(next(iter(found.values()))[0], np.float32)
        for place in range(start, count):
            yield all_tokens(logits[place - 1])
