"""Engines: what computes tokens. One file each; the app knows only the :class:`Engine` protocol.

An engine answers in chunks of OpenAI's streaming shape and knows nothing of HTTP, keys or clients. Built-in
engines and those of plugins are entry points of the group ``cloister.engines`` and load the same way, when
opened by name; a plugin cannot take a built-in's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final, Literal, Protocol

from cloister.errors import InferenceError, UsageError
from cloister.inference.lora import LoraAdapter
from cloister.inference.model_files import ModelFiles, ModelKind

GROUP: Final = "cloister.engines"
BUILT_IN: Final = tuple(
    EntryPoint(name=name, value=f"cloister.inference.engines.{name}:{engine}.open", group=GROUP)
    for name, engine in (
        ("llamacpp", "LlamaCppEngine"),
        ("openvino", "OpenVinoEngine"),
        ("torch", "TorchEngine"),
        ("upstream", "UpstreamEngine"),
    )
)
AUTO: Final = "auto"
"""Not an engine: what to name it by is found out before anything is measured."""
MAX_SLOTS: Final = 64
MAX_CONTEXT: Final = 1 << 20
MAX_THREADS: Final = 1024
_EXTRAS: Final = {"llamacpp": "inference", "openvino": "openvino", "torch": "torch"}

Kind = Literal["chat", "text"]
Precision = Literal["fp32", "bf16", "int8", "int4"]
KvCache = Literal["f16", "q8_0", "q4_0"]
Speculation = Literal["off", "ngram", "draft"]
Sink = Callable[[Mapping[str, Any]], bool]
"""Takes one chunk on the engine's thread and returns True when no more are wanted. It must not raise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """How a model is to be computed. An engine refuses what it cannot do."""

    context_length: int
    """Tokens of one request, prompt and answer together; the model's own length is an upper bound."""
    slots: int
    """Requests computed at the same time."""
    threads: int | None = None
    """Computing threads; None for the engine's own choice."""
    adapter: LoraAdapter | None = None
    """Added to the model for every request."""
    precision: Precision | None = None
    """Of the weights while they compute; None as they are stored."""
    kv_cache: KvCache = "f16"
    prefix_cache: bool = False
    """Whether the beginning of a prompt is not computed again for the tenant who asked with it before."""
    speculation: Speculation = "off"
    prefill_chunk: int | None = None
    """Tokens of a prompt that are read in one go, between the steps of other requests; None for the engine's own."""
    draft: ModelFiles | None = None
    """The small model whose guesses the large one checks; with ``speculation`` "draft" alone."""
    upstream: str | None = None
    """Address of the server that computes: ``unix:/path`` or ``http://127.0.0.1:PORT``."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What an engine has done since it was opened."""

    running: int
    """Requests being computed now."""
    prompt_tokens: int
    """Tokens of prompts that were computed; those found in the cache are not among them."""
    cached_tokens: int
    completion_tokens: int


class Engine(Protocol):
    """A model, loaded and ready. Every method may be called from several threads at once."""

    @property
    def context_length(self) -> int:
        """Tokens of one request, prompt and answer together."""
        ...

    @property
    def slots(self) -> int:
        """Requests computed at the same time."""
        ...

    @property
    def embedding_length(self) -> int | None:
        """Numbers in an embedding; None if this engine makes none."""
        ...

    @property
    def tools(self) -> bool:
        """Whether the model was taught to call functions."""
        ...

    def generate(
        self, kind: Kind, request: Mapping[str, Any], sink: Sink, *, tenant: bytes | None = None
    ) -> None:
        """Compute one request to its end or until ``sink`` wants no more; blocks.

        ``request`` is a chat-completions or completions body in OpenAI's shape. Chunks have the shape of
        ``chat.completion.chunk`` or ``text_completion``; the last one or ones carry ``usage``. ``tenant`` stands for who
        asks (32 bytes): what is kept of a prompt serves nobody else, and nothing is kept where it is None.
        Raises RequestRefused (this request) or InferenceError (the engine).
        """
        ...

    def embed(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Answer an embeddings body in OpenAI's shape; blocks. Raises as ``generate``."""
        ...

    def stats(self) -> EngineStats: ...

    def close(self) -> None:
        """Stop what runs, free the model. Idempotent."""
        ...


def open_engine(name: str, model: ModelFiles | None, settings: EngineSettings) -> Engine:
    """Open ``model`` with the engine ``name``; its files stay the caller's, who may close them then.

    ``model`` is None for an engine whose model another server holds. Raises UsageError (no such engine, or a setting
    that it lacks) and what the engine raises.
    """
    found = engine_entry_points().get(name)
    if found is None:
        known = ", ".join(sorted(engine_entry_points()))
        raise UsageError(f"there is no engine named {name}", todo=f"choose one of: {known}")
    try:
        opened: Engine = found.load()(model, settings)
    except ImportError as error:
        extra = _EXTRAS.get(name, "inference")
        raise InferenceError(
            f"the engine {name} is not installed ({error.name})", todo=f"pip install 'cloister[{extra}]'"
        ) from None
    return opened


def engine_entry_points() -> Mapping[str, EntryPoint]:
    """Every engine by name. Raises UsageError where a plugin claims a built-in's name."""
    table = {point.name: point for point in BUILT_IN}
    for point in entry_points(group=GROUP):
        known = table.get(point.name)
        if point.name == AUTO or (known is not None and known.value != point.value):
            raise UsageError(
                f"a plugin wants to replace the engine {point.name}",
                todo=f"uninstall what offers {point.value}",
            )
        table[point.name] = point
    return table


def usual_engine(kind: ModelKind) -> str:
    """What :data:`AUTO` stands for where nobody measured: the same on every machine, since it is measured."""
    return {"gguf": "llamacpp", "huggingface": "torch", "openvino": "openvino"}[kind]


def check_bounds(settings: EngineSettings, *, slots: int = MAX_SLOTS) -> None:
    """Raise :class:`UsageError` for numbers that no engine computes with; ``slots`` is the most that this one has."""
    if not 1 <= settings.slots <= slots:
        raise UsageError(f"{settings.slots} slots: between 1 and {slots} are served")
    if not 16 <= settings.context_length <= MAX_CONTEXT:
        raise UsageError(
            f"a context of {settings.context_length} tokens: between 16 and {MAX_CONTEXT} are served"
        )
    if settings.threads is not None and not 1 <= settings.threads <= MAX_THREADS:
        raise UsageError(f"{settings.threads} threads: between 1 and {MAX_THREADS} compute")


def refuse(engine: str, lacking: Mapping[str, bool]) -> None:
    """Raise :class:`UsageError` for the first setting that was asked for and that ``engine`` lacks."""
    for what, asked in lacking.items():
        if asked:
            raise UsageError(
                f"the engine {engine} has no {what}", todo="leave it out, or choose another engine"
            )
