"""What ``cloister mount`` does: see what is to be mounted, mount it in a process of its own, wait to be told to end."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cloister.sealing import KeySource
    from cloister.sealing.tree.head import Head
    from cloister.workload.mount_protocol import MountSpec

ENDING: Final = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
LOOK_SECONDS: Final = 1.0


def make_tree(sealed: Path, uri: str | None, keys: KeySource) -> None:
    """A new, empty sealed tree. Raises :class:`~cloister.errors.UsageError`."""
    from cloister.errors import FormatError, UsageError
    from cloister.sealing.tree import create_tree
    from cloister.sealing.uri import parse_key_uri

    if uri is None:
        raise UsageError("a new tree needs the URI of its key", todo="give --key kbs:///repository/type/tag")
    try:
        parsed = str(parse_key_uri(uri))
    except FormatError as error:
        raise UsageError(error.what, todo=error.todo) from None
    create_tree(sealed, key_uri=parsed, kek=keys.key(parsed))


def what_to_mount(
    sealed: Path,
    mountpoint: Path,
    keys: KeySource,
    *,
    signers: Sequence[str],
    writable: bool,
    minimum_version: int,
) -> MountSpec:
    """The spec for a sealed directory or a sealed tree, whichever is there. Raises the errors of sealing."""
    from cloister.encoding import from_hex
    from cloister.errors import FormatError, UsageError
    from cloister.sealing.files import read_header
    from cloister.sealing.index import open_index
    from cloister.sealing.tree import is_tree
    from cloister.workload.mount_protocol import MountSpec

    if not mountpoint.is_dir() or any(mountpoint.iterdir()):
        raise UsageError(f"{mountpoint} is not an empty folder", todo="make one to mount at")
    tree = is_tree(sealed)
    if tree:
        if signers:
            raise UsageError("a sealed tree is signed by nobody", todo="leave --signer out")
        uris = {_key_of_tree(sealed)}
    else:
        try:
            accepted = [from_hex(text, 32, what="--signer") for text in signers]
        except FormatError as error:
            raise UsageError(error.what, todo="copy it from `cloister keys show`") from None
        if writable:
            raise UsageError(
                f"{sealed} is no sealed tree, so it cannot be written to", todo="make one with --new"
            )
        index = open_index(sealed, signers=accepted, minimum_version=minimum_version)
        uris = {read_header(sealed / entry.file_name).key_uri for entry in index.files.values()}
    return MountSpec(
        source=str(sealed.resolve()),
        mountpoint=str(mountpoint.resolve()),
        kind="tree" if tree else "directory",
        writable=writable,
        uid=os.getuid(),
        gid=os.getgid(),
        signers=tuple(signers),
        minimum_version=minimum_version,
        keys={uri: keys.key(uri) for uri in sorted(uris)},
    )


def _key_of_tree(sealed: Path) -> str:
    from cloister.errors import UsageError
    from cloister.sealing.descriptors import open_regular
    from cloister.sealing.envelope import HEADER_SIZE, TREE_SUITE, parse_header
    from cloister.sealing.tree.opening import HEADER_NAME

    with open_regular(sealed / HEADER_NAME, UsageError) as descriptor:
        data = os.pread(descriptor, HEADER_SIZE, 0)
    return parse_header(data, name=str(sealed), suite=TREE_SUITE).key_uri


def mount_until_told(spec: MountSpec, *, minimum_version: int, as_json: bool) -> None:
    """Mount, say so, wait for Ctrl-C, SIGTERM or SIGHUP, unmount, say so. Raises what the mount met."""
    from cloister.cli.result_line import say
    from cloister.errors import RolledBack, WorkloadError
    from cloister.workload.mount_client import MountProcess

    # Before the first thread: it inherits this, so that the signals come here and nowhere else.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        mount = MountProcess.start(spec, record=_nobody_remembers)
        head = mount.head
        if head is not None and head.version < minimum_version:
            mount.stop()
            raise RolledBack(
                f"the tree is version {head.version}, and at least {minimum_version} is asked for",
                todo="an old copy was put in place of the newest",
            )
        way = "to read and write" if spec.writable else "to read"
        facts = {
            "mounted": spec.mountpoint,
            "kind": spec.kind,
            "writable": spec.writable,
            "head": _facts(head),
        }
        say(as_json, f"mounted {spec.source} at {spec.mountpoint} {way}; Ctrl-C unmounts", facts)
        while mount.alive and signal.sigtimedwait(ENDING, LOOK_SECONDS) is None:
            pass
        if not mount.alive:
            mount.stop()
            raise WorkloadError(f"{spec.mountpoint} was unmounted by somebody else")
        head = mount.stop()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    version = "" if head is None else f", version {head.version}"
    say(
        as_json, f"unmounted {spec.mountpoint}{version}", {"unmounted": spec.mountpoint, "head": _facts(head)}
    )


def _nobody_remembers(head: Head) -> None:
    """An owner's own machine has no broker: ``--minimum-version`` is what the owner remembers."""


def _facts(head: Head | None) -> dict[str, str | int] | None:
    return None if head is None else {"tree": head.tree, "version": head.version, "digest": head.digest}
