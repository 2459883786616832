"""Sealed trees on the command line: listed, read, verified and copied out. All of it takes the key: names are sealed too."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cloister.cli.sealing_progress import Phase
    from cloister.sealing.key_file import KeyFile
    from cloister.sealing.tree import SealedTree


def opened(sealed: Path, keys: KeyFile, minimum_version: int) -> SealedTree:
    """The tree, read-only; the caller closes it. Raises the errors of sealing."""
    from cloister.errors import RolledBack
    from cloister.sealing.tree import open_tree

    tree = open_tree(sealed, keys, writable=False)
    if tree.head.version < minimum_version:
        version = tree.head.version
        tree.close()
        raise RolledBack(
            f"the tree is at version {version}, and at least {minimum_version} is asked for",
            todo="an old copy was put in place of the newest: get the newest",
        )
    return tree


def tree_facts(sealed: Path, keys: KeyFile, minimum_version: int) -> tuple[dict[str, Any], str]:
    """What ``ls`` shows."""
    from cloister.cli.sealed_options import counted
    from cloister.sealing.plain_copy import walk

    with closing(opened(sealed, keys, minimum_version)) as tree:
        found = [entry for entry in walk(tree) if entry.status.kind != "directory"]
        facts = {
            "kind": "tree",
            **_head(tree),
            "bytes": sum(entry.status.size for entry in found),
            "files": {entry.path: {"size": entry.status.size, "kind": entry.status.kind} for entry in found},
        }
        line = f"{counted(len(found))}, {facts['bytes']:,} bytes, version {tree.head.version} of tree {tree.head.tree}"
    return facts, line


def cat_from_tree(
    sealed: Path,
    path: str,
    keys: KeyFile,
    write: Callable[[bytes], object],
    *,
    minimum_version: int,
    start: int,
    end: int | None,
) -> None:
    """Write one file of it out, each segment verified before."""
    from cloister.sealing.plain_copy import read_out

    with closing(opened(sealed, keys, minimum_version)) as tree:
        read_out(tree, path, write, start=start, end=end)


def verify_tree(
    sealed: Path, keys: KeyFile, minimum_version: int, *, quiet: bool
) -> tuple[dict[str, Any], str]:
    """Read all of it."""
    from cloister.cli.sealed_options import counted
    from cloister.cli.sealing_progress import progress_bar
    from cloister.sealing.plain_copy import walk

    with (
        closing(opened(sealed, keys, minimum_version)) as tree,
        progress_bar("verifying", quiet=quiet) as phase,
    ):
        tree.verify(phase)
        count = sum(1 for entry in walk(tree) if entry.status.kind == "file")
        facts = {"files": count, "bytes": phase.bytes, **_head(tree), "opened": True, **phase.facts()}
        size = f"{counted(count)}, {phase.bytes:,} bytes (version {tree.head.version})"
        digest = tree.head.digest
    compared = "(compared with nobody: a broker remembers the newest)"
    return facts, f"{size}: every segment verified: {phase}\nhead          {digest}  {compared}"


def unseal_tree(
    sealed: Path, keys: KeyFile, minimum_version: int, out: Path, *, progress: Phase
) -> tuple[int, int, dict[str, Any]]:
    """Copy all of it out; how many files, how many bytes, and what version it was."""
    from cloister.sealing.plain_copy import copy_out

    with closing(opened(sealed, keys, minimum_version)) as tree:
        files, size = copy_out(tree, out, progress=progress)
        return files, size, _head(tree)


def _head(tree: SealedTree) -> dict[str, Any]:
    return {"tree": tree.head.tree, "version": tree.head.version, "head": tree.head.digest}
