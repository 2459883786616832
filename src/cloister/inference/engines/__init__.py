"""Engines: what computes tokens. One file each; the app knows only the :class:`Engine` protocol.

An engine answers in chunks of OpenAI's streaming shape and knows nothing of HTTP, keys or clients. Built-in
engines and those of plugins are entry points of the group ``cloister.engines`` and load the same way, when
opened by name; a plugin cannot take a built-in's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from cloister.errors import InferenceError, UsageError

GROUP: Final = "cloister.engines"
BUILT_IN: Final = (
    EntryPoint(name="llamacpp", value="cloister.inference.engines.llamacpp:LlamaCppEngine.open", group=GROUP),
)

Kind = Literal["chat", "text"]
Sink = Callable[[Mapping[str, Any]], bool]
"""Takes one chunk on the engine's thread and returns True when no more are wanted. It must not raise."""


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

    def generate(self, kind: Kind, request: Mapping[str, Any], sink: Sink) -> None:
        """Compute one request to its end or until ``sink`` wants no more; blocks.

        ``request`` is a chat-completions or completions body in OpenAI's shape. Chunks have the shape of
        ``chat.completion.chunk`` or ``text_completion``; the last one or ones carry ``usage``.
        Raises RequestRefused (this request) or InferenceError (the engine).
        """
        ...

    def embed(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Answer an embeddings body in OpenAI's shape; blocks. Raises as ``generate``."""
        ...

    def close(self) -> None:
        """Stop what runs, free the model. Idempotent."""
        ...


def open_engine(
    name: str, model: Path | int, *, context_length: int, slots: int, threads: int | None = None
) -> Engine:
    """Open ``model`` (a path, or a file descriptor that the caller keeps) with the engine ``name``.

    ``threads`` is the number of computing threads, None for the engine's own choice.
    Raises UsageError (no such engine) and what the engine raises.
    """
    found = engine_entry_points().get(name)
    if found is None:
        known = ", ".join(sorted(engine_entry_points()))
        raise UsageError(f"there is no engine named {name}", todo=f"choose one of: {known}")
    try:
        opened: Engine = found.load()(model, context_length=context_length, slots=slots, threads=threads)
    except ImportError as error:
        raise InferenceError(
            f"the engine {name} is not installed ({error.name})", todo="pip install 'cloister[inference]'"
        ) from None
    return opened


def engine_entry_points() -> Mapping[str, EntryPoint]:
    """Every engine by name. Raises UsageError where a plugin claims a built-in's name."""
    table = {point.name: point for point in BUILT_IN}
    for point in entry_points(group=GROUP):
        known = table.get(point.name)
        if known is not None and known.value != point.value:
            raise UsageError(
                f"a plugin wants to replace the engine {point.name}",
                todo=f"uninstall what offers {point.value}",
            )
        table[point.name] = point
    return table
