"""The journal of a key rotation: which headers are written over which, on the disk before the first of them is.

Reading is strict, and what is half a journal is none: it was being written, and no header was touched. While there is
one, a header is what it was or what it becomes, and refused as half written otherwise. Nothing in a journal is secret,
nor believed: what is written from it has to open under the new key first (reseal.py). Format: docs/spec/sealed-file.md,
"Rewrap".
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Literal

from cloister.encoding import Record, decode_json
from cloister.errors import CloisterError, FormatError, IndexMismatch
from cloister.sealing.descriptors import open_regular
from cloister.sealing.envelope import HEADER_SIZE, Header, encode_header

JOURNAL_NAME = "reseal.journal"
FORMAT: Final = "cloister/reseal/v1"
MAX_JOURNAL = 1 << 26


class Change(Record, frozen=True, kw_only=True):
    """One header: the file's id, its key and wrap before, and its wrap under the new key."""

    id: bytes
    old_key: str
    old: bytes
    new: bytes


class Journal(Record, frozen=True, kw_only=True):
    """``reseal.journal``: file name → change, all of them to the key URI ``key``; sealed files (1), or a tree (2)."""

    format: Literal["cloister/reseal/v1"] = FORMAT
    key: str
    suite: Literal[1, 2]
    files: dict[str, Change]

    def headers(self, name: str) -> tuple[bytes, bytes]:
        """The 4096 bytes before and after. Raises :class:`~cloister.errors.FormatError`."""
        change = self.files[name]
        old = Header(file_id=change.id, key_uri=change.old_key, wrapped=change.old, suite=self.suite)
        return encode_header(old), encode_header(self.header(name))

    def header(self, name: str) -> Header:
        """What the header of the file ``name`` becomes."""
        change = self.files[name]
        return Header(file_id=change.id, key_uri=self.key, wrapped=change.new, suite=self.suite)


def read_journal(path: Path) -> Journal | None:
    """The journal at ``path``; None where there is none, or only a part of one.

    Raises :class:`~cloister.errors.IndexMismatch` for what is no plain file or over its bound.
    """
    if not os.path.lexists(path):
        return None
    with open_regular(path, IndexMismatch) as descriptor, os.fdopen(os.dup(descriptor), "rb") as file:
        data = file.read(MAX_JOURNAL + 1)
    if len(data) > MAX_JOURNAL:
        raise IndexMismatch(f"{path.name} is over its bound of {MAX_JOURNAL} bytes", todo="remove it")
    try:
        journal = decode_json(data, Journal, what=path.name, limit=MAX_JOURNAL)
        for name in journal.files:
            journal.headers(name)
    except FormatError:
        return None
    return journal


def refuse_torn_headers(directory: Path) -> None:
    """Raise :class:`~cloister.errors.IndexMismatch` if a rotation was interrupted in the middle of a header.

    Files that are whole under the old key or the new one are no error: each opens with its own.
    """
    journal = read_journal(directory / JOURNAL_NAME)
    for name in journal.files if journal is not None else ():
        try:
            with open_regular(directory / Path(name).name, IndexMismatch) as descriptor:
                found = os.pread(descriptor, HEADER_SIZE, 0)
        except CloisterError:
            continue  # the index says whether the file has to be there
        if found not in journal.headers(name):  # type: ignore[union-attr]
            raise IndexMismatch(
                f"the header of {name} is half written: a rotation of its key was interrupted",
                todo="run the same `cloister reseal` again",
            )
