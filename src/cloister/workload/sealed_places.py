"""Sealed files where the configuration wants them: directories opened into memory, directories and trees mounted.

A tree's newest version is the broker's to know: an older one is refused, and each new one is recorded. A tree that the
broker knows and that is not there is refused too; one that neither knows is made. Each mount is served by a process of its
own, which ends when the launcher does.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from cloister.errors import CloisterError, Superseded, UsageError
from cloister.sealing.files import read_header
from cloister.sealing.index import Index
from cloister.sealing.restore import restore_directory, room_for
from cloister.sealing.tree import Head
from cloister.workload.broker_session import BrokerSession
from cloister.workload.configuration import Mounted, Restored
from cloister.workload.fixed_paths import require_fixed, require_mounted
from cloister.workload.isolation import User
from cloister.workload.mount_client import MountProcess
from cloister.workload.mount_protocol import MountSpec
from cloister.workload.plan import Plan
from cloister.workload.private_places import make_folder, private_tmpfs
from cloister.workload.tree_record import TreeRecord, make_where_new


class SealedPlaces:
    """Opens what ``plan`` names, for ``user``; ``undo`` closes it again."""

    def __init__(
        self,
        plan: Plan,
        session: BrokerSession,
        *,
        user: User,
        undo: ExitStack,
        progress: Callable[[str, str], None],
    ) -> None:
        self._plan = plan
        self._session = session
        self._user = user
        self._undo = undo
        self._progress = progress
        self._mounts: dict[str, MountProcess] = {}
        self._records: dict[str, TreeRecord] = {}
        """The broker's memory of each tree, by its path."""
        self._refused: str | None = None
        self._lock = threading.Lock()

    @property
    def processes(self) -> tuple[int, ...]:
        """Process ids of the mounts."""
        return tuple(mount.pid for mount in self._mounts.values())

    def open(self) -> None:
        """All of it. Raises what sealing, the broker and mounting raise."""
        file = self._plan.configuration.file
        for restored in file.restore:
            self._restore(restored)
        for mount in file.mount:
            if mount.write:
                self._mount_tree(mount)
            else:
                self._mount_directory(mount)

    def broken(self) -> str | None:
        """What the program cannot go on without, in words."""
        for path, mount in self._mounts.items():
            if not mount.alive:
                return f"the mount at {path} is gone"
        with self._lock:
            return self._refused

    def _restore(self, wanted: Restored) -> None:
        index = self._plan.indexes[wanted.path]
        target = Path(wanted.path)
        private_tmpfs(target, size=room_for(index), user=self._user, undo=self._undo, huge="within_size")
        restore_directory(
            self._plan.configuration.path(wanted.source),
            index,
            self._session.held,
            target,
            owner=(self._user.uid, self._user.gid),
        )
        self._progress("in memory", f"{wanted.path}, {index.size:,} bytes")

    def _mount_directory(self, wanted: Mounted) -> None:
        source = self._plan.configuration.path(wanted.source)
        index = self._plan.indexes[wanted.path]
        keys = {uri: self._session.held.key(uri) for uri in sorted(_key_uris(source, index))}
        pinned = index.digest.hex() if wanted.index == "measured" else ""
        self._start(wanted, source, keys, pinned=pinned)

    def _mount_tree(self, wanted: Mounted) -> None:
        source, uri = self._plan.configuration.path(wanted.source), str(wanted.key)
        kek = self._session.held.key(uri)
        minimum = self._record_of(wanted).newest() if wanted.record else None
        make_where_new(source, minimum, key_uri=uri, kek=kek)
        self._start(wanted, source, {uri: kek}, minimum=minimum)

    def _start(
        self,
        wanted: Mounted,
        source: Path,
        keys: dict[str, bytes],
        *,
        minimum: Head | None = None,
        pinned: str = "",
    ) -> None:
        mountpoint = Path(wanted.path)
        make_folder(mountpoint, self._undo)
        require_fixed(mountpoint)
        if any(os.scandir(mountpoint)):
            raise UsageError(f"{mountpoint} is not empty", todo="mount over an empty folder")
        spec = MountSpec(
            source=str(source.resolve()),
            mountpoint=str(mountpoint),
            kind="tree" if wanted.write else "directory",
            writable=wanted.write,
            uid=self._user.uid,
            gid=self._user.gid,
            signers=self._plan.configuration.file.signers,
            minimum_version=wanted.minimum_version,
            index_digest=pinned,
            verify=wanted.verify,
            keys=keys,
            minimum=minimum,
            record_seconds=wanted.record_seconds,
        )
        mount = MountProcess.start(spec, record=self._recorder(wanted))
        self._mounts[wanted.path] = mount
        self._undo.callback(self._stop, wanted.path)
        require_mounted(mountpoint)
        self._progress("mounted", f"{wanted.path}, {'read and write' if wanted.write else 'read'}")

    def _record_of(self, wanted: Mounted) -> TreeRecord:
        if wanted.path not in self._records:
            self._records[wanted.path] = TreeRecord(self._session.keys, str(wanted.key))
        return self._records[wanted.path]

    def _recorder(self, wanted: Mounted) -> Callable[[Head], None]:
        known = self._record_of(wanted)

        def record(head: Head) -> None:
            if not wanted.record:
                return
            try:
                known.record(head)
            except Superseded:
                # Somebody else writes a copy of this tree: one of the two would be lost, so nobody goes on.
                with self._lock:
                    self._refused = f"the broker knows another, newer version of the tree at {wanted.path}"
                raise
            except CloisterError as error:
                self._progress("not recorded", f"{wanted.path}: {error}")
                raise

        return record

    def _stop(self, path: str) -> None:
        self._mounts.pop(path).stop()


def _key_uris(source: Path, index: Index) -> set[str]:
    return {read_header(source / entry.file_name).key_uri for entry in index.files.values()}
