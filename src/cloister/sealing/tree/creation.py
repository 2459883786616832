"""Making a sealed tree: an empty one, in a new or empty folder, whole or not at all.

Refuses a folder with anything in it, but for what an interrupted making left there. The header is written last: without it
there is no tree. Format: docs/spec/sealed-tree.md.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cloister.errors import FormatError, UsageError
from cloister.sealing.envelope import (
    FILE_ID_SIZE,
    TREE_SUITE,
    WRAP_SALT_SIZE,
    encode_header,
    erase,
    new_header,
)
from cloister.sealing.files import Entropy
from cloister.sealing.segments import KEY_SIZE
from cloister.sealing.staging import sync_folder
from cloister.sealing.tree.checkpoint import MAX_SEGMENT, MIN_SEGMENT, Checkpoint
from cloister.sealing.tree.folder import HEADER_NAME
from cloister.sealing.tree.head import FIRST_VERSION, first_link
from cloister.sealing.tree.journal import PARTIAL, journal_name, write_journal
from cloister.sealing.tree.state import State
from cloister.sealing.tree.storage import FolderStorage, Storage
from cloister.sealing.tree.tree_keys import TreeKeys

DEFAULT_SEGMENT: Final = 65536


def is_tree(directory: Path) -> bool:
    """Whether a sealed tree seems to lie here: nothing is authenticated by it."""
    return (directory / HEADER_NAME).is_file()


def create_tree(
    directory: Path,
    *,
    key_uri: str,
    kek: bytes,
    segment_size: int = DEFAULT_SEGMENT,
    now_ns: Callable[[], int] = time.time_ns,
    entropy: Entropy = os.urandom,
) -> None:
    """An empty tree in a new or empty folder, whole or not at all. ``kek`` is the 32-byte key at ``key_uri``.

    ``segment_size`` is a power of two from 4 to 64 KiB. Raises :class:`~cloister.errors.UsageError` and OSError.
    """
    if not MIN_SEGMENT <= segment_size <= MAX_SEGMENT or segment_size & (segment_size - 1):
        raise UsageError("a segment size is a power of two from 4096 to 65536")
    made = not directory.exists()
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot create {directory}: {error.strerror}") from None
    storage = FolderStorage(directory)
    try:
        create_in(
            storage,
            key_uri=key_uri,
            kek=kek,
            segment_size=segment_size,
            now_ns=now_ns,
            entropy=entropy,
            name=str(directory),
        )
        sync_folder(directory.parent)
    except BaseException:
        if made:
            with contextlib.suppress(OSError):
                directory.rmdir()
        raise
    finally:
        storage.close()


def create_in(
    storage: Storage,
    *,
    key_uri: str,
    kek: bytes,
    segment_size: int,
    now_ns: Callable[[], int],
    entropy: Entropy,
    name: str,
) -> None:
    """As :func:`create_tree`, in any storage. The header comes last: without it there is no tree."""
    journal, partial = journal_name(FIRST_VERSION), HEADER_NAME + PARTIAL
    left_over = {journal, journal + PARTIAL, partial}
    if not {found for found, _ in storage.names()} <= left_over:
        raise UsageError(f"{name} is not empty", todo="name a new folder")
    tree_id, data_key = entropy(FILE_ID_SIZE), bytearray(entropy(KEY_SIZE))
    try:
        header = new_header(
            key_uri=key_uri,
            kek=kek,
            data_key=data_key,
            file_id=tree_id,
            salt=entropy(WRAP_SALT_SIZE),
            suite=TREE_SUITE,
        )
    except FormatError as error:
        erase(data_key)
        raise UsageError(error.what, todo=error.todo) from None
    keys = TreeKeys(tree_id, data_key)
    try:
        for found in left_over:
            storage.remove(found)
        state = State(segment_size, now_ns())
        checkpoint = Checkpoint(state, FIRST_VERSION, first_link(tree_id), {})
        write_journal(storage, keys, checkpoint, entropy).close()
        with contextlib.closing(storage.create(partial)) as file:
            file.write([encode_header(header)], 0)
            file.sync()
        storage.rename(partial, HEADER_NAME)
        storage.sync()
    except BaseException:
        for found in (*left_over, HEADER_NAME):
            with contextlib.suppress(OSError):
                storage.remove(found)
        raise
    finally:
        keys.erase()
