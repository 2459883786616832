"""Paths, and what POSIX says may be done with them. Pure: looks at the state and raises, or says which operation does it.

Refuses names that no file system takes, links that lead out of the tree, folders moved into themselves. Paths through links
are not followed: a mount's kernel does that, and whoever calls us directly gets ``ENOTDIR``.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Final

from cloister.errors import FormatError
from cloister.sealing.tree.fields import MAX_NAME, MAX_TARGET, name_bytes, target_bytes
from cloister.sealing.tree.operations import Move
from cloister.sealing.tree.state import Node, State, upwards

MAX_PATH: Final = 4096


def refused(number: int) -> OSError:
    """As the system would say it."""
    return OSError(number, os.strerror(number))


def find(state: State, path: str) -> Node:
    """What is at a path. Raises ``ENOENT``, ``ENOTDIR``, ``ENAMETOOLONG``."""
    node = state.root
    for name in _components(path):
        if node.children is None:
            raise refused(errno.ENOTDIR)
        below = node.children.get(name)
        if below is None:
            raise refused(errno.ENAMETOOLONG if len(name.encode()) > MAX_NAME else errno.ENOENT)
        node = below
    return node


def place(state: State, path: str) -> tuple[Node, str]:
    """The folder and the name of something that is to be there. Raises also ``EEXIST`` for the root, ``EILSEQ``."""
    parent, _, name = path.rpartition("/")
    folder = find(state, parent)
    if folder.children is None:
        raise refused(errno.ENOTDIR)
    if not path:
        raise refused(errno.EEXIST)
    _components(name)
    try:
        name_bytes(name)
    except FormatError:
        too_long = len(name.encode("utf-8", "surrogateescape")) > MAX_NAME
        raise refused(errno.ENAMETOOLONG if too_long else errno.EINVAL) from None
    return folder, name


def free_place(state: State, path: str) -> tuple[Node, str]:
    """As :func:`place`; ``EEXIST`` where the name is taken."""
    folder, name = place(state, path)
    if name in (folder.children or ()):
        raise refused(errno.EEXIST)
    return folder, name


def _components(path: str) -> list[str]:
    try:
        size = len(path.encode("utf-8"))
    except UnicodeEncodeError:
        raise refused(errno.EILSEQ) from None
    if size > MAX_PATH:
        raise refused(errno.ENAMETOOLONG)
    names = path.split("/") if path else []
    if any(name in ("", ".", "..") for name in names):
        raise refused(errno.EINVAL)
    return names


def plan_move(state: State, old: str, new: str, *, replace: bool, time_ns: int) -> Move | None:
    """How something gets another name; None where old and new are the same. Raises what rename(2) does."""
    folder, name = place(state, old) if old else (state.root, "")
    if not old or not new:
        raise refused(errno.EBUSY)
    node = (folder.children or {}).get(name)
    if node is None:
        raise refused(errno.ENOENT)
    new_folder, new_name = place(state, new)
    there = (new_folder.children or {}).get(new_name)
    if there is not None and not replace:
        raise refused(errno.EEXIST)
    if there is node:
        return None
    if any(above is node for above in upwards(new_folder)):
        raise refused(errno.EINVAL)
    if there is not None:
        if node.kind == "directory" and there.kind != "directory":
            raise refused(errno.ENOTDIR)
        if node.kind != "directory" and there.kind == "directory":
            raise refused(errno.EISDIR)
        if there.children:
            raise refused(errno.ENOTEMPTY)
    _stay_inside(node, depth_of(new_folder))
    return Move(folder.number, name, new_folder.number, new_name, time_ns)


def check_target(target: str, depth: int) -> None:
    """Raise unless a link in a folder of this depth leads to something inside the tree, whatever else is linked there."""
    try:
        target_bytes(target)
    except FormatError:
        long = len(target.encode("utf-8", "surrogateescape")) > MAX_TARGET
        raise refused(errno.ENAMETOOLONG if long else errno.ENOENT if not target else errno.EINVAL) from None
    if target.startswith("/") or climb_of(target) > depth:
        raise refused(errno.EPERM)


def climb_of(target: str) -> int:
    """How many folders up a link begins. Raises ``EPERM`` where it goes up later: behind another link that could be out."""
    names = [name for name in target.split("/") if name not in ("", ".")]
    climb = 0
    while climb < len(names) and names[climb] == "..":
        climb += 1
    if ".." in names[climb:]:
        raise refused(errno.EPERM)
    return climb


def depth_of(folder: Node) -> int:
    """How many folders are above; the root has none."""
    return sum(1 for _ in upwards(folder)) - 1


def _stay_inside(node: Node, depth: int) -> None:
    """Raise if a link in what is moved would lead out from where it is to be."""
    if node.parent is not None and depth >= depth_of(node.parent):
        return
    for link, below in _links(node, depth):
        if climb_of(link.target) > below:
            raise refused(errno.EPERM)


def _links(node: Node, depth: int) -> Iterator[tuple[Node, int]]:
    waiting = [(node, depth)]
    while waiting:
        one, at = waiting.pop()
        if one.kind == "link":
            yield one, at
        waiting += [(below, at + 1) for below in (one.children or {}).values()]
