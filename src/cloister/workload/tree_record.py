"""The broker's memory of one writable tree: the newest version is the least that is opened, and each new one is recorded.

An answer can be lost on its way back: what was recorded without one is remembered, so that the broker's word for it is not
taken for somebody else's version.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Final, Protocol

from cloister.broker.wire import TreeVersion
from cloister.errors import NetworkError, RolledBack, Superseded
from cloister.sealing.tree import Head, create_tree, is_tree

UNANSWERED: Final = 4096
"""So many versions, and the oldest are forgotten: at one in 30 seconds, a day and a half without the broker."""


class Remembers(Protocol):
    """A broker that a workload has attested to; :class:`~cloister.broker.client.BrokerKeys` is one."""

    def tree(self, uri: str) -> TreeVersion | None: ...

    def record_tree(self, uri: str, newest: TreeVersion, *, after: TreeVersion | None) -> None: ...


class TreeRecord:
    """Of the tree that is sealed under ``uri``. One caller at a time."""

    def __init__(self, broker: Remembers, uri: str) -> None:
        self._broker = broker
        self._uri = uri
        self._newest: TreeVersion | None = None
        self._unanswered: deque[TreeVersion] = deque(maxlen=UNANSWERED)

    def newest(self) -> Head | None:
        """What the broker knows. Raises what asking it raises."""
        self._newest = self._broker.tree(self._uri)
        known = self._newest
        return None if known is None else Head(known.tree, known.version, known.digest)

    def record(self, head: Head) -> None:
        """Raises :class:`Superseded` where somebody else has recorded another one, and what asking raises."""
        version = TreeVersion(tree=head.tree, version=head.version, digest=head.digest)
        try:
            try:
                self._broker.record_tree(self._uri, version, after=self._newest)
            except Superseded:
                newest = self._broker.tree(self._uri)
                if newest is None or newest not in self._unanswered:
                    raise
                # It was our own: it arrived, and the answer was lost on the way back.
                self._newest = newest
                self._broker.record_tree(self._uri, version, after=newest)
        except NetworkError:
            self._unanswered.append(version)
            raise
        self._newest = version
        self._unanswered.clear()


def make_where_new(source: Path, minimum: Head | None, *, key_uri: str, kek: bytes) -> None:
    """A tree at ``source`` where there is none and nobody knows of one. Raises :class:`RolledBack`, UsageError, OSError."""
    if is_tree(source):
        return
    if minimum is not None:
        raise RolledBack(
            f"there is no sealed tree at {source}, and the broker knows version {minimum.version} of it",
            todo="put it back; or, if it is lost, start a new one under another key",
        )
    create_tree(source, key_uri=key_uri, kek=kek)
