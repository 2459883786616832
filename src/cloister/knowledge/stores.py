"""What keeps a serving workload's documents: the index in memory with its sealed tree, or a server inside the mesh.

Servers are spoken to by plugins (entry points of ``cloister.knowledge_stores``), found by the kind that the measured rules
name. A plugin is measured with the installed packages like everything else of the image.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Final, Protocol, cast

from cloister.broker.client import BrokerKeys
from cloister.broker.mesh_client import PAUSE, MeshIdentity
from cloister.encoding import labelled_hash
from cloister.errors import CloisterError, KnowledgeError, UsageError
from cloister.knowledge.rules import Server
from cloister.knowledge.store import Place, Store
from cloister.sealing import KeySource

GROUP: Final = "cloister.knowledge_stores"
_log = logging.getLogger("cloister.knowledge")
INDEX_LABEL: Final = "cloister/knowledge-index-key/v1"

Keep = Callable[[], None]
"""Is called behind each change."""


class Plugin(Protocol):
    """Opens what is at a place."""

    def __call__(self, place: Place, *, model: str, dimensions: int) -> Store:
        """``model`` is the digest of what vectors are computed with. Raises NetworkError, KnowledgeError, UsageError."""
        ...


def find_plugin(kind: str) -> Plugin:
    """The installed plugin of this kind. Raises :class:`~cloister.errors.UsageError`, KnowledgeError."""
    found: list[EntryPoint] = [one for one in entry_points(group=GROUP) if one.name == kind]
    if len(found) != 1:
        raise UsageError(
            f"{'no' if not found else 'more than one'} store of documents is called {kind} here",
            todo="install the package that brings it, once",
        )
    try:
        return cast("Plugin", found[0].load())
    except (ImportError, AttributeError) as error:
        raise KnowledgeError(
            f"the store {kind} is not installed ({error.name})", todo=f"pip install 'cloister[{kind}]'"
        ) from None


def on_server(
    server: Server,
    address: tuple[str, int],
    identity: MeshIdentity,
    *,
    model: str,
    dimensions: int,
    undo: ExitStack,
) -> Store:
    """The store at ``address``, whose certificate has to be that of the workload which the rules name."""
    plugin = find_plugin(server.kind)
    identity.credential()
    undo.callback(Following(identity).close)
    place = Place(*address, server.name, server.own, server.database, lambda: identity.credential().client)
    store = plugin(place, model=model, dimensions=dimensions)
    undo.callback(store.close)
    return store


def in_memory(
    directory: Path, *, keys: KeySource, key_uri: str, model: str, dimensions: int, undo: ExitStack
) -> tuple[Store, Keep]:
    """The index that is kept in the sealed tree at ``directory``, which is begun where there is none."""
    from cloister.knowledge.index import Index  # noqa: PLC0415 -- of the extra alone
    from cloister.knowledge.kept import KeptIndex  # noqa: PLC0415 -- as above
    from cloister.workload.memory_folder import memory_folder  # noqa: PLC0415
    from cloister.workload.tree_record import TreeRecord  # noqa: PLC0415

    kek = keys.key(key_uri)
    place = undo.enter_context(memory_folder("knowledge")) / "index.db"
    record = TreeRecord(keys, key_uri) if isinstance(keys, BrokerKeys) else None
    kept = undo.enter_context(KeptIndex.restored(directory, place, kek=kek, key_uri=key_uri, record=record))
    index = Index.open(place, labelled_hash(INDEX_LABEL, kek), model=model, dimensions=dimensions)
    undo.callback(index.close)
    kept.keep(index)
    return index, lambda: kept.keep(index)


class Following:
    """A thread that renews an identity in time and follows the manifest, so that no question waits for the broker.

    Whoever keeps the broker from being reached keeps the manifest of before in force here, until the certificate ends.
    """

    def __init__(self, identity: MeshIdentity, *, pause: float = PAUSE) -> None:
        self._identity = identity
        self._pause = pause
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="mesh identity", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """No more renewals. It does not wait for one that is under way."""
        self._ended.set()
        self._thread.join(0.1)

    def _follow(self) -> None:
        while not self._ended.wait(self._pause):
            try:
                self._identity.refresh()
                self._identity.credential()
            except CloisterError as error:
                _log.warning("the mesh certificate was not renewed: %s", error)
