"""Files of a sealed directory under other paths: a new version of the index, the same bodies.

A sealed file is bound to its id, not to its path, so nothing but the index changes, and only who may sign it can do it.
Refuses a path that is taken or cannot stand in an index. The new index is in place or it is not: its signature is put
beside the directory first, where readers look for it. Format: docs/spec/index.md, "The next version".
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cloister.errors import UsageError
from cloister.sealing.filesystem_local import LocalStore
from cloister.sealing.index import (
    INDEX_NAME,
    SIGNATURE_NAME,
    Index,
    IndexEntry,
    next_signature,
    open_index,
    sign_index,
    signed_message,
    verify_index,
)
from cloister.sealing.seal import as_usage
from cloister.sealing.signing import SigningKey


def rename_files(
    directory: Path, index: Index, paths: Mapping[str, str], *, signing_key: SigningKey
) -> Index:
    """Give files of ``index`` the paths that ``paths`` (old → new) says, all at once; the new index.

    Without ``paths`` it finishes what was interrupted.

    Raises :class:`~cloister.errors.IndexMismatch` for a path that is not there, and
    :class:`~cloister.errors.UsageError` for one that is taken or cannot be.
    """
    store, place = LocalStore(), str(directory.absolute())
    following = str(next_signature(directory))
    with store.locked(place):
        if open_index(directory, signers=[index.signer], resealing=True).digest != index.digest:
            raise UsageError(f"{directory} was changed by another process", todo="look and try again")
        if paths:
            with as_usage():
                data, signature = sign_index(
                    renamed(index, paths), key=signing_key, tree=index.tree, version=index.version + 1
                )
            store.write(following, signature, directory=place)
            store.write(f"{place}/{INDEX_NAME}", data, directory=place)
            store.write(f"{place}/{SIGNATURE_NAME}", signature, directory=place)
            index = verify_index(data, signature, signers=[signing_key.public_key])
        else:
            # What an interrupted run left there may be the signature of the index that took its place.
            signature = signing_key.sign(signed_message(index.digest))
            if signing_key.public_key == index.signer:
                store.write(f"{place}/{SIGNATURE_NAME}", signature, directory=place)
        store.remove(following)
    return index


def renamed(index: Index, paths: Mapping[str, str]) -> dict[str, IndexEntry]:
    """The files of ``index`` under their new paths."""
    moved = {new: index.entry(old) for old, new in paths.items()}
    if len(moved) != len(paths):
        raise UsageError("two files cannot have one path", todo="give each a path of its own")
    files = {path: entry for path, entry in index.files.items() if path not in paths}
    for new in moved:
        if new in files:
            raise UsageError(f"the path {new[:80]!a} is taken", todo="rename that file too")
    return files | moved
