"""A model's files, whichever kind they are, as a pipeline of OpenVINO GenAI and what belongs to it.

GenAI opens models by path alone. What is given to it is a folder of links to descriptors: of the model's own files, or of
private memory to which the graph was written that was made of a GGUF file. Nothing is written to a disk, and there is no
cache of compiled models. A Hugging Face model becomes GGUF first, in memory. Refused: precisions that would need another
conversion, tokenizers that are only OpenVINO's own.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from cloister.errors import InferenceError, UsageError
from cloister.inference.conversion.gguf import convert_into
from cloister.inference.conversion.quantisation import Quantisation
from cloister.inference.engines import EngineSettings, Precision
from cloister.inference.engines.answer_text import Texts
from cloister.inference.engines.openvino_gguf import GgufModel
from cloister.inference.engines.openvino_graph import Tensors, decoder
from cloister.inference.engines.openvino_import import genai, openvino
from cloister.inference.engines.openvino_language import (
    Language,
    language_of_files,
    language_of_keys,
    read_object,
)
from cloister.inference.engines.openvino_schemas import Schemas, SmallestModel
from cloister.inference.engines.openvino_vocabulary import link_folder, token_table
from cloister.inference.model_files import ModelFiles

MODEL_NAME: Final = "openvino_model.xml"
WEIGHTS_NAME: Final = "openvino_model.bin"
BLOCK: Final = 32
"""Tokens of one block of OpenVINO's key and value cache."""
CHUNK: Final = 256
"""Tokens that one step reads of prompts, beside one of every answer."""
NGRAM: Final[Mapping[str, int]] = {"num_assistant_tokens": 5, "max_ngram_size": 3}
"""With speculation: guesses that a step checks, and the tokens by which they are found earlier in prompt and answer."""
_QUANTISATIONS: Final[Mapping[Precision, Quantisation]] = {"bf16": "bf16", "int8": "q8_0", "int4": "q4_0"}
_ONE: Final = EngineSettings(context_length=BLOCK, slots=1)


class OpenVinoModel:
    """One model, ready to be asked."""

    def __init__(self, pipeline: Any, schemas: Schemas, language: Language) -> None:
        self._pipeline: Any = pipeline
        self.schemas = schemas
        self.backend: Any = language.backend
        self.ends = language.ends
        self.prompts = language.prompts
        self.trained_context = language.trained_context
        self.defaults = language.defaults
        self.vocabulary = language.vocabulary
        self._first = language.first

    def take_pipeline(self) -> Any:
        """The ``ContinuousBatchingPipeline``, once: whoever takes it frees the model by letting go of it."""
        pipeline, self._pipeline = self._pipeline, None
        return pipeline

    def tokens(self, text: str, *, whole: bool = False) -> list[int]:
        """``text`` as tokens; a ``whole`` prompt has its own beginning, or gets it if it lacks it."""
        found: list[int] = self.backend.encode(text, add_special_tokens=not whole).ids
        first = list(self._first)
        return found if found[: len(first)] == first else first + found


def load(model: ModelFiles, settings: EngineSettings, *, threads: int) -> OpenVinoModel:
    """Open ``model``. Raises InferenceError (the model) and UsageError (the settings)."""
    if model.kind == "openvino":
        if settings.precision is not None:
            raise _not_converted()
        with model.folder() as folder:
            language = language_of_files(model, _vocabulary(folder))
            return _opened(folder, language, settings, threads)
    with contextlib.ExitStack() as undo:
        if model.kind == "gguf":
            if settings.precision is not None:
                raise _not_converted()
            descriptor, what = model.main, model.main_name
        else:
            descriptor, what = undo.enter_context(_memory("weights")), "the model"
            convert_into(model, descriptor, quantisation=_quantisation(model, settings.precision))
        found = GgufModel(descriptor, what=what)
        folder = undo.enter_context(_memory_folder())
        write_graph(found, folder)
        language = language_of_keys(found)
        del found
        return _opened(folder, language, settings, threads)


def write_graph(model: Tensors, folder: Path) -> None:
    """Write the graph of ``model`` as an IR into ``folder``. Raises InferenceError."""
    graph = decoder(model)
    openvino().serialize(graph, str(folder / MODEL_NAME), str(folder / WEIGHTS_NAME))


def _opened(folder: Path, language: Language, settings: EngineSettings, threads: int) -> OpenVinoModel:
    texts = Texts(language.backend)
    size = min(language.backend.get_vocab_size(), language.vocabulary)
    special = frozenset(
        place for place, token in language.backend.get_added_tokens_decoder().items() if token.special
    )
    table = token_table(
        [texts.piece(token)[1] for token in range(size)], special, min(language.ends, default=0)
    )
    length = min(settings.context_length, language.trained_context or settings.context_length)
    with _memory_folder() as smallest:
        write_graph(SmallestModel(language.vocabulary), smallest)
        schemas = Schemas(
            _pipeline(smallest, table, scheduler(length=BLOCK, settings=_ONE), properties(_ONE, threads=1))
        )
    found = _pipeline(
        folder, table, scheduler(length=length, settings=settings), properties(settings, threads)
    )
    return OpenVinoModel(found, schemas, language)


def _pipeline(folder: Path, table: Any, scheduling: Any, told: Mapping[str, Any]) -> Any:
    try:
        return genai().ContinuousBatchingPipeline(str(folder), table, scheduling, "CPU", **told)
    except Exception as error:  # C++ exceptions arrive as many Python types
        line = str(error).strip().splitlines()[-1][:200]
        raise InferenceError(
            f"OpenVINO cannot load the model: {line}",
            todo="the files are damaged, or the model is of a kind that is not supported",
        ) from None


def _vocabulary(folder: Path) -> int:
    """The numbers of one row of what the model in ``folder`` computes. Raises InferenceError."""
    try:
        sides = openvino().Core().read_model(str(folder / MODEL_NAME)).output("logits").get_partial_shape()
        return int(sides[len(sides) - 1].get_length())
    except Exception as error:  # as above
        line = str(error).strip().splitlines()[-1][:200]
        raise InferenceError(f"OpenVINO cannot read the model: {line}", todo="convert it anew") from None


def scheduler(*, length: int, settings: EngineSettings) -> Any:
    """The ``SchedulerConfig`` of ``slots`` answers of ``length`` tokens each."""
    config = genai().SchedulerConfig()
    # One more of both, for the request that keeps the pipeline going until the first true one has joined.
    guessed = NGRAM["num_assistant_tokens"]
    config.num_kv_blocks = settings.slots * -(-(length + guessed) // BLOCK) + 2
    config.max_num_seqs = settings.slots * settings.slots + 1
    config.max_num_batched_tokens = (settings.prefill_chunk or CHUNK) + settings.slots
    config.dynamic_split_fuse = True
    # Shared by all who ask: how fast an answer begins would tell what others asked.
    config.enable_prefix_caching = False
    return config


def properties(settings: EngineSettings, threads: int) -> dict[str, Any]:
    """What the CPU plugin is told."""
    return {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
        "KV_CACHE_PRECISION": {"f16": "f16", "q8_0": "u8"}[settings.kv_cache],
        "INFERENCE_PRECISION_HINT": "bf16" if settings.precision == "bf16" else "f32",
        "sampler_num_threads": 1,
    } | ({"prompt_lookup": True} if settings.speculation == "ngram" else {})


@contextlib.contextmanager
def _memory_folder() -> Iterator[Path]:
    """A folder in which the two files of an IR can be written, each a link to private memory."""
    with link_folder() as folder, _memory("graph") as graph, _memory("weights") as weights:
        (folder / MODEL_NAME).symlink_to(f"/proc/self/fd/{graph}")
        (folder / WEIGHTS_NAME).symlink_to(f"/proc/self/fd/{weights}")
        yield folder


@contextlib.contextmanager
def _memory(name: str) -> Iterator[int]:
    descriptor = os.memfd_create(f"cloister-{name}", os.MFD_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _quantisation(model: ModelFiles, precision: Precision | None) -> Quantisation:
    if precision is None:
        stored = read_object(model, "config.json")
        return "bf16" if stored.get("dtype", stored.get("torch_dtype")) == "bfloat16" else "f16"
    if precision not in _QUANTISATIONS:
        raise UsageError(
            "the engine openvino has no weights of 32 bits", todo="leave the precision out, or say bf16"
        )
    return _QUANTISATIONS[precision]


def _not_converted() -> UsageError:
    return UsageError(
        "the engine openvino computes this model in the precision in which it is stored",
        todo="convert it anew in the other one, or serve the Hugging Face model",
    )
